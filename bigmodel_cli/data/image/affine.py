"""Affine maps of images."""

from __future__ import annotations

from bigmodel_cli.device import constant
from bigmodel_cli.lazy import F, Tensor, torch


def affine(images: Tensor, angle: Tensor, moved: Tensor, scale: Tensor, shear: Tensor) -> Tensor:
    """Rotate by `angle` degrees clockwise, shear along x by `shear` degrees, `scale`, then move by
    `moved` (B, 2) pixels.

    As torchvision's `affine` with bilinear interpolation, one map for each image. The sampling grid
    needs the inverse map.
    """
    height, width = images.shape[2:]
    a, t = torch.deg2rad(angle), torch.tan(torch.deg2rad(shear))
    cos, sin = torch.cos(a), torch.sin(a)
    # forward: scale * [[cos, -sin], [sin, cos]] @ [[1, -t], [0, 1]]; its determinant is scale^2
    xx, xy = cos - t * sin, sin + t * cos  # rows of the inverse, times scale
    yx, yy = -sin, cos
    # (B, 2, 2)
    inverse = (
        torch.stack((torch.stack((xx, xy), -1), torch.stack((yx, yy), -1)), 1)
        / scale[:, None, None]
    )
    offset = -(inverse @ moved[:, :, None])  # (B, 2, 1)
    size = constant((width, height), inverse.device, inverse.dtype)
    theta = torch.cat(
        (inverse * size[None, None, :] / size[None, :, None], 2 * offset / size[None, :, None]),
        dim=2,
    )
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(
        images, grid.to(images.dtype), mode="bilinear", padding_mode="zeros", align_corners=False
    )
