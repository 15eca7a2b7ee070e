"""Masked image modelling: rebuild the patches that were hidden. It needs no labels."""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast

from pydantic import Field

from bigmodel_cli.config import NO_FACTS, Facts
from bigmodel_cli.draw import KEY, draw
from bigmodel_cli.errors import SpecError
from bigmodel_cli.lazy import Module, Tensor, torch
from bigmodel_cli.tasks.base import AnyTaskOptions, CountsSamples
from bigmodel_cli.tasks.shown import Pictures

ORDER = 4
"""The stream of a row's random numbers that puts its patches in order."""


class MaskedImageOptions(AnyTaskOptions):
    """Rebuild hidden patches of images from the others (He et al. 2022, masked autoencoder); scored by the squared error."""

    type: Literal["masked_image"] = "masked_image"
    fraction: Annotated[float, Field(gt=0, lt=1)] = Field(0.75, description="of an image's patches that are hidden")
    normalize: bool = Field(
        True, description="compare with each patch's pixels brought to mean 0 and deviation 1, as the paper does"
    )

    def build(self, facts: Facts = NO_FACTS) -> MaskedImage:
        """The task."""
        return MaskedImage(self)

    def pictures(self) -> Pictures | None:
        """Images, what the model sees of them, and what it makes of that."""
        note = ", each hidden patch at its true mean and deviation, which the loss does not ask for"
        return Pictures("rebuilt", "rebuilt images", note if self.normalize else "", MaskedImage(self).rows)

    def visible(self, patches: int) -> int:
        """How many of so many patches stay visible. Raises `SpecError` where that is none or all."""
        seen = round(patches * (1 - self.fraction))
        if not 0 < seen < patches:
            fault = "leaves none visible" if seen == 0 else "hides none"
            raise SpecError(
                f"task.fraction: {self.fraction} of the image's {patches} patches {fault}; take another, or smaller patches"
            )
        return seen


class MaskedImage(CountsSamples):
    """batch {"image": (B, C, H, W), "key": (B,)}; the model maps images and visible patches (B, K) to all pixels (B, N, P).

    The loss of an image is the mean squared error over its hidden patches, which are as many in every image; sums are over
    images. What is hidden is drawn from the rows' keys, whatever the batch. Training hides other patches in each epoch; evaluation
    always the same of a sample, by its number in the split, so that its figures can be compared.
    """

    name = "masked_image"
    metric = "loss"
    higher_is_better = False
    derived_from = "loss"
    needs = "image_shape"
    reads: tuple[str, ...] = ("image",)

    def __init__(self, options: MaskedImageOptions) -> None:
        self.options = options

    def loss(self, model: Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Summed error of the images, and how many there are."""
        images = batch["image"]
        errors = self.errors(model, images, self.ranks(batch[KEY], _patches(model)))
        return errors.sum(), torch.full((), len(images), device=images.device)

    def score(self, model: Module, batch: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        """Per image: its error ("loss")."""
        images = batch["image"]
        errors = self.errors(model, images, self.ranks(batch[KEY], _patches(model))).double()
        return {"loss": (errors, torch.ones_like(errors, dtype=torch.int64))}

    def derived(self, metrics: dict[str, float]) -> dict[str, float]:
        """Nothing more."""
        return {}

    def ranks(self, keys: Tensor, patches: int) -> Tensor:
        """(B,) -> (B, N)   in what order the patches of an image with that key are shown."""
        return draw(keys, ORDER, patches)

    def rebuild(self, model: Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) twice: what evaluation lets the model see of the images, zero elsewhere; and with the rest rebuilt.

        Where the loss compares normalised patches, the rebuilt ones are shown at the true mean and deviation.
        """
        model_: Any = model
        images = batch["image"]
        pixels = model_.patchify(images)
        visible, hidden = self.divide(self.ranks(batch[KEY], pixels.shape[1]))
        rebuilt = model(images, visible).float()
        if self.options.normalize:
            mean, deviation = moments(pixels)
            rebuilt = rebuilt * deviation + mean
        gone = torch.zeros(hidden.shape[0], pixels.shape[1], 1, dtype=torch.bool, device=images.device)
        gone = gone.scatter(1, hidden[..., None], True)  # (B, N, 1)
        return model_.unpatchify(pixels.masked_fill(gone, 0.0)), model_.unpatchify(torch.where(gone, rebuilt, pixels))

    def rows(self, model: Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Images (B, C, H, W) by their title: as they are, what is seen of them, and what is made of that."""
        seen, rebuilt = self.rebuild(model, batch)
        last = "rebuilt at\ntrue mean,\ndeviation" if self.options.normalize else "rebuilt"
        return {"image": batch["image"], "seen": seen, last: rebuilt}

    def errors(self, model: Module, images: Tensor, ranks: Tensor) -> Tensor:
        """(B,)   each image's mean squared error over its hidden patches, all but the K of lowest rank."""
        visible, hidden = self.divide(ranks)
        targets = self.targets(cast(Any, model).patchify(images))
        squares = (model(images, visible).float() - targets).square().mean(2)  # (B, N)
        errors: Tensor = squares.gather(1, hidden).mean(1)
        return errors

    def divide(self, ranks: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N) -> (B, K), (B, N - K)   the patches that are visible, in the image's order, and those that are hidden."""
        order, seen = ranks.argsort(dim=1, stable=True), self.options.visible(ranks.shape[1])
        return order[:, :seen].sort(1).values, order[:, seen:]

    def targets(self, patches: Tensor) -> Tensor:
        """(B, N, P) -> (B, N, P)   what is to be rebuilt of the patches' pixels."""
        if not self.options.normalize:
            return patches
        mean, deviation = moments(patches)
        return (patches - mean) / deviation


def moments(patches: Tensor) -> tuple[Tensor, Tensor]:
    """(B, N, P) -> (B, N, 1) twice   each patch's mean and deviation, the latter a little above zero (He et al. 2022)."""
    return patches.mean(2, keepdim=True), (patches.var(2, keepdim=True) + 1e-6).sqrt()


def _patches(model: Module) -> int:
    rows, columns = cast(Any, model).grid
    return int(rows * columns)
