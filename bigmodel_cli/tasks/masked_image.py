"""Masked image modelling: reconstruct hidden patches. It needs no labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from bigmodel_cli.config import NO_DATASET, DatasetInfo
from bigmodel_cli.draw import KEY, draw, several
from bigmodel_cli.errors import SpecError
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.tasks.base import Answers, AnyTaskOptions, Batch, Scores, Task
from bigmodel_cli.tasks.shown import Learnt, Pictures, Spell, of_input

ORDER = 4
"""Stream of a row's random numbers that shuffles its patches."""
DRAWS = 8
"""How often a user's image is judged, with other patches hidden each time."""


class MaskedImageOptions(AnyTaskOptions):
    """Reconstruct hidden patches of images (He et al. 2022, MAE); scored by the squared error."""

    type: Literal["masked_image"] = "masked_image"
    output: ClassVar[str] = "patches"
    mask_ratio: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.75, description="of an image's patches that are hidden"
    )
    normalize: bool = Field(
        True,
        description=(
            "compare with each patch's pixels brought to mean 0 and deviation 1, as the paper does"
        ),
    )

    def build(self, info: DatasetInfo = NO_DATASET) -> MaskedImage:
        return MaskedImage(self)

    def pictures(self) -> Pictures | None:
        """Images, their visible patches, and the reconstructions."""
        note = ", each hidden patch at its true mean and deviation, which the loss does not ask for"
        return Pictures(
            "rebuilt", "rebuilt images", note if self.normalize else "", MaskedImage(self).rows
        )

    def unlearnable(self, model: str, learners: Sequence[str]) -> str:
        """Why this model cannot learn the task."""
        return (
            f"task.type: masked_image rebuilds hidden patches, and model.type: {model} cannot; use"
            " vit with reconstruct"
        )

    def example(self, model: Any, info: DatasetInfo, x: Tensor, second: int) -> tuple[Tensor, ...]:
        """Images, and the indices of visible patches."""
        rows, columns = model.grid(info)
        return x, torch.arange(self.visible(rows * columns), device=x.device).expand(len(x), -1)

    def visible(self, patches: int) -> int:
        """The number of visible patches.

        Raises `SpecError` where none or all are visible.
        """
        seen = round(patches * (1 - self.mask_ratio))
        if not 0 < seen < patches:
            fault = "leaves none visible" if seen == 0 else "hides none"
            raise SpecError(
                f"task.mask_ratio: {self.mask_ratio} of the image's {patches} patches {fault}; take"
                " another, or smaller patches"
            )
        return seen


class MaskedImage(Task):
    """batch {"image": (B, C, H, W), "key": (B,)}; the model gives all pixels (B, N, P).

    It maps images and the indices of visible patches (B, K) to them.

    The loss of an image is the mean squared error over its hidden patches, as many in every image;
    sums are over images. The patches are drawn by the rows' keys, whatever the batch. Training
    hides other patches in each epoch; evaluation always hides the same ones of a sample, by its
    index in the split, so that figures can be compared.
    """

    name = "masked_image"
    chooses = False
    draws = True
    needs = "images"
    reads = ("image",)

    def __init__(self, options: MaskedImageOptions) -> None:
        self.options = options

    def check(self, model: Any, info: DatasetInfo, names: frozenset[str], source: str) -> None:
        """Also refuse a ratio that hides no patch or all."""
        super().check(model, info, names, source)
        rows, columns = model.grid(info)
        self.options.visible(rows * columns)

    def forward(
        self, model: Any, batch: Batch, training: bool = True
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Patches and reconstructed ones, (B, N, P) each, and indices of hidden ones (B, N - K)."""
        pixels = model.patchify(batch["image"])
        # The patches in a random order by the image's key: the first are visible.
        order = draw(batch[KEY], ORDER, pixels.shape[1]).argsort(dim=1, stable=True)
        seen = self.options.visible(order.shape[1])
        visible = order[:, :seen].sort(1).values
        return pixels, model(batch["image"], visible).float(), order[:, seen:]

    def asked(self, batch: Batch) -> Batch:
        """Each image several times, with other patches hidden."""
        return several(batch, DRAWS)

    def shown(self, batch: Batch, spell: Spell) -> Learnt:
        """The first image; all of them are learnt."""
        hidden = f"{self.options.mask_ratio:.0%} of its patches hidden"
        return Learnt(f"{of_input(batch, spell)} -> {hidden}", len(batch["image"]))

    def loss(self, outputs: tuple[Tensor, Tensor, Tensor], batch: Batch) -> tuple[Tensor, Tensor]:
        """Summed error of the images, and their number."""
        errors = self.errors(*outputs)
        return errors.sum(), torch.full((), len(errors), device=errors.device)

    def score(self, outputs: tuple[Tensor, Tensor, Tensor], batch: Batch) -> tuple[Scores, Answers]:
        """Per image: its error ("loss")."""
        errors = self.errors(*outputs).double()
        return {"loss": (errors, torch.ones_like(errors, dtype=torch.int64))}, {}

    def rebuild(self, model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) twice: the visible patches, zero elsewhere; and the reconstructions.

        Where the loss compares normalised patches, reconstructed ones get the true mean and
        deviation.
        """
        pixels, rebuilt, hidden = self.forward(model, batch)
        if self.options.normalize:
            mean, deviation = moments(pixels)
            rebuilt = rebuilt * deviation + mean
        gone = torch.zeros_like(pixels[..., :1], dtype=torch.bool)  # (B, N, 1)
        gone = gone.scatter(1, hidden[..., None], True)
        return model.unpatchify(pixels.masked_fill(gone, 0.0)), model.unpatchify(
            torch.where(gone, rebuilt, pixels)
        )

    def rows(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        """Images (B, C, H, W) by title: originals, their visible patches, reconstructions."""
        seen, rebuilt = self.rebuild(model, batch)
        last = "rebuilt at\ntrue mean,\ndeviation" if self.options.normalize else "rebuilt"
        return {"image": batch["image"], "seen": seen, last: rebuilt}

    def errors(self, pixels: Tensor, rebuilt: Tensor, hidden: Tensor) -> Tensor:
        """(B,)   each image's mean squared error over its hidden patches."""
        squares = (rebuilt - self.targets(pixels)).square().mean(2)  # (B, N)
        return squares.gather(1, hidden).mean(1)

    def targets(self, patches: Tensor) -> Tensor:
        """(B, N, P) -> (B, N, P)   the targets of the patches' pixels."""
        if not self.options.normalize:
            return patches
        mean, deviation = moments(patches)
        return (patches - mean) / deviation


def moments(patches: Tensor) -> tuple[Tensor, Tensor]:
    """(B, N, P) -> (B, N, 1) twice   each patch's mean and deviation (plus an epsilon)."""
    return patches.mean(2, keepdim=True), (patches.var(2, keepdim=True) + 1e-6).sqrt()
