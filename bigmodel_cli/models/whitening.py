"""A first convolution whose kernels whiten patches of the training images."""

from __future__ import annotations

from bigmodel_cli.lazy import F, Module, Tensor, nn, torch


class Whitening(Module):
    """(B, C, H, W) -> (B, 2 C k k, H - k + 1, W - k + 1)   patches along their principal axes.

    Each axis of the patches' second moment is divided by its root, sqrt(eigenvalue + eps), so that
    all of them have a variance of one; each has two channels, of opposite sign, which let an
    activation see both sides (Page 2018; Jordan 2024, "94% on CIFAR-10 in 3.29 seconds"). The axes
    are taken once, from the first batch, and are kept in checkpoints as BatchNorm's statistics are;
    the bias alone is trained. Until then they are the pixels of a patch themselves.
    """

    weight: Tensor

    def __init__(self, channels: int, kernel: int, eps: float) -> None:
        super().__init__()
        self.kernel, self.eps = kernel, eps
        size = channels * kernel * kernel
        self.register_buffer("weight", _pixels(channels, kernel))
        self.bias = nn.Parameter(torch.zeros(2 * size))

    def learnt(self) -> bool:
        """Whether axes were taken, here or by the run whose checkpoint was loaded."""
        pixels = _pixels(self.weight.shape[1], self.kernel)
        return not torch.equal(self.weight.cpu(), pixels.to(self.weight.dtype))

    def forward(self, images: Tensor) -> Tensor:
        """The patches, whitened."""
        return F.conv2d(images, self.weight, self.bias)

    def learn(self, images: Tensor) -> None:
        """Take the axes of the patches of these images (B, C, H, W), in double precision."""
        channels = images.shape[1]
        patches = F.unfold(images.cpu().double(), self.kernel).transpose(1, 2).flatten(0, 1)
        moment = patches.T @ patches / len(patches)
        values, vectors = torch.linalg.eigh(moment)  # the vectors are columns
        axes = vectors.T / (values.clamp(min=0) + self.eps).sqrt()[:, None]
        axes = axes.flip(0)  # the axis of the largest variance first
        signs = torch.where(axes.sum(1, keepdim=True) < 0, -1.0, 1.0)  # an axis has no sign
        both = torch.cat((axes * signs, -axes * signs))
        self.weight.copy_(both.view(-1, channels, self.kernel, self.kernel))


def _pixels(channels: int, kernel: int) -> Tensor:
    """(2 C k k, C, k, k)   the pixels of a patch as axes, and the opposite ones."""
    size = channels * kernel * kernel
    axes = torch.eye(size).view(size, channels, kernel, kernel)
    return torch.cat((axes, -axes))
