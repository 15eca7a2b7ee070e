"""Augmentation: torchvision's v2 transforms by name.

The common ones work on a whole batch at once, on the device.

All randomness is keyed by (seed, epoch, sample): what happens to a sample does not depend on the
batch or process it is in. Images are (B, C, H, W) float with pixels in 0..1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from bigmodel_cli.config import Fraction, NonNegative, Options, Positive
from bigmodel_cli.data.image.affine import affine
from bigmodel_cli.data.order import Ints, draw
from bigmodel_cli.device import constant, sent
from bigmodel_cli.draw import key_of
from bigmodel_cli.errors import SpecError, did_you_mean
from bigmodel_cli.lazy import F, Tensor, torch

Change = Callable[[Tensor, Ints, int, int], Tensor]
"""(images (B, C, H, W), samples (B,), epoch, seed) -> the same shape, each sample by its own
numbers.
"""
Pair = Annotated[list[Fraction], Field(min_length=2, max_length=2)]


class _DrawnOptions(Options):
    """A change of whole batches that takes `draws` numbers for each image."""

    draws: ClassVar[int]

    def apply(self, images: Tensor, u: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape; u is (B, draws) in [0, 1)."""
        raise NotImplementedError

    def change(self, index: int, images: Tensor, samples: Ints, epoch: int, seed: int) -> Tensor:
        """The change of these samples, as the spec's change number `index`."""
        u = draw(seed, epoch, samples, 100 + index, self.draws)
        return self.apply(images, sent(torch.from_numpy(u), images.device))

    def build(self, index: int) -> Change:
        """The spec's change number `index`."""
        return partial(self.change, index)


class RandomCropOptions(_DrawnOptions):
    """Pad every edge and cut out a window of the old size at a random place."""

    draws: ClassVar[int] = 2
    type: Literal["RandomCrop"] = "RandomCrop"
    padding: Annotated[int, Field(gt=0, le=1000)] = Field(
        4, description="pixels added at each edge"
    )
    fill: Literal["black", "mirror"] = Field(
        "black", description="what is added: black, or the image mirrored at its edge"
    )

    def apply(self, images: Tensor, u: Tensor) -> Tensor:
        height, width = images.shape[2:]
        corner = (u * (2 * self.padding + 1)).long()  # (B, 2)
        rows = corner[:, :1] + torch.arange(height, device=images.device)  # (B, H)
        columns = corner[:, 1:] + torch.arange(width, device=images.device)  # (B, W)
        if self.fill == "mirror" and self.padding >= min(height, width):
            raise SpecError(
                f"data.augment: RandomCrop: padding: {self.padding} pixels cannot be mirrored at"
                f" the edges of images of {height} x {width}; give fewer"
            )
        mode = "reflect" if self.fill == "mirror" else "constant"
        padded = F.pad(images, [self.padding] * 4, mode).permute(0, 2, 3, 1)
        own = torch.arange(len(images), device=images.device)[:, None, None]
        return padded[own, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


class RandomFlipOptions(_DrawnOptions):
    """Mirror left and right with probability p."""

    draws: ClassVar[int] = 1
    type: Literal["RandomHorizontalFlip"] = "RandomHorizontalFlip"
    p: Fraction = Field(0.5, description="probability")
    alternate: bool = Field(
        False,
        description="draw once for each image, and mirror it in every other epoch from then on"
        " (Jordan 2024): two epochs show all images from both sides",
    )

    @model_validator(mode="after")
    def _either_side(self) -> RandomFlipOptions:
        if self.alternate and self.p != 0.5:
            raise ValueError("alternate: each image is mirrored in half of the epochs; leave p out")
        return self

    def change(self, index: int, images: Tensor, samples: Ints, epoch: int, seed: int) -> Tensor:
        """Of alternating flips the draw is that of epoch 0, whose other half is an odd epoch's."""
        if not self.alternate:
            return super().change(index, images, samples, epoch, seed)
        u = draw(seed, 0, samples, 100 + index, self.draws)
        return self.apply(images, sent(torch.from_numpy((u + epoch % 2 / 2) % 1), images.device))

    def apply(self, images: Tensor, u: Tensor) -> Tensor:
        return torch.where((u[:, 0] < self.p)[:, None, None, None], images.flip(-1), images)


class RandomAffineOptions(_DrawnOptions):
    """Turn, move, scale and shear about the centre, bilinear, black outside."""

    draws: ClassVar[int] = 5
    type: Literal["RandomAffine"] = "RandomAffine"
    degrees: Annotated[float, Field(ge=0, le=180)] = Field(
        description="largest rotation in degrees, either way"
    )
    translate: Pair = Field(
        [0.0, 0.0], description="largest shift, as fractions of width and height"
    )
    scale: Annotated[list[Positive], Field(min_length=2, max_length=2)] = Field(
        [1.0, 1.0], description="least and greatest"
    )
    shear: Annotated[float, Field(ge=0, lt=90)] = Field(
        0.0, description="largest shear along x in degrees, either way"
    )

    def apply(self, images: Tensor, u: Tensor) -> Tensor:
        height, width = images.shape[2:]
        angle = (2 * u[:, 0] - 1) * self.degrees
        most = (self.translate[0] * width, self.translate[1] * height)
        moved = (2 * u[:, 1:3] - 1) * constant(most, u.device, torch.float32)
        scale = self.scale[0] + u[:, 3] * (self.scale[1] - self.scale[0])
        shear = (2 * u[:, 4] - 1) * self.shear
        return affine(images, angle, moved, scale, shear)


class RandomErasingOptions(_DrawnOptions):
    """Paint a rectangle black with probability p (Zhong et al. 2020)."""

    draws: ClassVar[int] = 5
    type: Literal["RandomErasing"] = "RandomErasing"
    p: Fraction = Field(0.5, description="probability")
    scale: Pair = Field([0.02, 0.33], description="least and greatest part of the image")
    ratio: Annotated[list[Positive], Field(min_length=2, max_length=2)] = Field(
        [0.3, 3.3], description="height over width"
    )

    def apply(self, images: Tensor, u: Tensor) -> Tensor:
        height, width = images.shape[2:]
        area = (self.scale[0] + u[:, 1] * (self.scale[1] - self.scale[0])) * height * width
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        ratio = torch.exp(low + u[:, 2] * (high - low))
        tall = (area * ratio).sqrt().round().clamp(max=height)
        wide = (area / ratio).sqrt().round().clamp(max=width)
        top = (u[:, 3] * (height - tall + 1)).floor()
        left = (u[:, 4] * (width - wide + 1)).floor()
        y = torch.arange(height, device=u.device)[None, :, None]
        x = torch.arange(width, device=u.device)[None, None, :]
        inside = (y >= top[:, None, None]) & (y < (top + tall)[:, None, None])
        # (B, H, W)
        inside = inside & (x >= left[:, None, None]) & (x < (left + wide)[:, None, None])
        inside = inside & (u[:, 0] < self.p)[:, None, None]
        return images.masked_fill(inside[:, None], 0.0)


class V2Options(Options):
    """Any other transform of torchvision.transforms.v2 by name, sample by sample (use data.workers
    for slow ones).
    """

    type: Literal["v2"] = "v2"
    name: str = Field(
        description="the transform's name, for instance ColorJitter or TrivialAugmentWide"
    )
    args: dict[str, NonNegative | int | str | bool | list[float] | list[int] | None] = Field(
        {}, description="its arguments by name"
    )

    def build(self, index: int) -> Change:
        """The spec's change number `index`.

        Raises `SpecError` for a transform that does not exist.
        """
        return partial(_sample_by_sample, _v2(index, self), self.name, index)


AugmentOptions = Annotated[
    RandomCropOptions | RandomFlipOptions | RandomAffineOptions | RandomErasingOptions | V2Options,
    Field(discriminator="type"),
]


class Augmentation:
    """The transforms of a spec in order.

    Raises `SpecError` for a v2 transform or argument that does not exist.
    """

    def __init__(self, options: list[Any]) -> None:
        self.changes: list[Change] = [own.build(index) for index, own in enumerate(options)]

    def __call__(self, images: Tensor, samples: Ints, epoch: int, seed: int) -> Tensor:
        """(B, C, H, W) -> the same shape, each sample by its own numbers."""
        for change in self.changes:
            images = change(images, samples, epoch, seed)
        return images


def _v2(index: int, options: V2Options) -> Any:
    import inspect

    from torchvision.transforms import v2

    names = [
        n
        for n in dir(v2)
        if inspect.isclass(getattr(v2, n)) and issubclass(getattr(v2, n), v2.Transform)
    ]
    if options.name not in names:
        hint = did_you_mean(options.name, names)
        raise SpecError(
            f"data.augment.{index}.name: torchvision.transforms.v2 has no {options.name!r}{hint}"
        )
    known = inspect.signature(getattr(v2, options.name)).parameters
    for name in options.args:
        if name not in known:
            raise SpecError(
                f"data.augment.{index}.args.{name}: {options.name} has no such"
                f" argument{did_you_mean(name, known)}"
            )
    try:
        return getattr(v2, options.name)(**options.args)
    except Exception as error:  # whatever the library raises for arguments that do not fit
        raise SpecError(f"data.augment.{index}.args: {options.name}: {error}") from None


def _sample_by_sample(
    transform: Any, name: str, index: int, images: Tensor, samples: Ints, epoch: int, seed: int
) -> Tensor:
    """The transform on each image as uint8, under a random state of its own.

    Raises `SpecError` for one that fails on such images, or changes their shape: evaluation has
    them as they are.
    """
    pixels = (images * 255).round().to(torch.uint8)
    with torch.random.fork_rng(devices=[]):
        changed = []
        for image, sample in zip(pixels, samples.tolist(), strict=True):
            torch.manual_seed(int(key_of(seed, epoch, index, sample)) & 0x7FFFFFFFFFFFFFFF)
            changed.append(_changed(transform, image, f"data.augment.{index}: {name}"))
    out = torch.stack(changed)
    return out.to(images.dtype) / 255 if out.dtype == torch.uint8 else out


def _changed(transform: Any, image: Tensor, place: str) -> Tensor:
    try:
        changed = transform(image)
    except (
        Exception
    ) as error:  # whatever the library raises for arguments and images that do not fit
        raise SpecError(
            f"{place}: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        ) from None
    if not isinstance(changed, torch.Tensor) or changed.shape != image.shape:
        before = " x ".join(map(str, image.shape))
        after = (
            " x ".join(map(str, changed.shape))
            if isinstance(changed, torch.Tensor)
            else f"a {type(changed).__name__}"
        )
        raise SpecError(
            f"{place} makes {after} of an image of {before} (channels, height, width); take one"
            " that keeps the size, or arguments by which it does"
        )
    return changed
