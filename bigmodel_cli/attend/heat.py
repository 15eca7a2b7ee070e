"""A map over an image: where the answer comes from, by one method, with what is known of it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.data import Ticks, input_of
from bigmodel_cli.lazy import F, Tensor
from bigmodel_cli.tasks import ClassificationOptions, Task, build_task

BASELINES = {"mean": "the image's mean colour", "blur": "the blurred image"}
"""Option -> what pixels are replaced by in a test of a map."""
KEPT = 0.8
"""Most of its probability that a class may keep without any of the image, for a test to count."""


@dataclass(frozen=True)
class Trial:
    """A map put to the test: what the network keeps of the class's probability, as a share.

    `deleted` and `inserted` are for each of `shares` of the pixels, the most important by the map:
    replaced by the `baseline`, and shown alone on it (Petsiuk et al. 2018). `at_random`
    are the means over the shares (areas under the curves) of the same for maps of random numbers of
    the same resolution: (deletion, insertion) of each.
    """

    shares: tuple[float, ...]
    deleted: tuple[float, ...]
    inserted: tuple[float, ...]
    at_random: tuple[tuple[float, float], ...]
    baseline: str = "mean"

    @property
    def areas(self) -> tuple[float, float]:
        """The areas under the curves of deletion (lower is better) and insertion (higher)."""
        return area(self.deleted, 1.0), area((*self.inserted[:-1],), self.deleted[-1], 1.0)

    @property
    def verdict(self) -> str:
        """Whether the map does better than the random ones, in words."""
        if self.deleted[-1] > KEPT:
            of = "without any of the image" if self.baseline == "mean" else "of the blurred image"
            return f"this says little: {of} the class keeps {100 * self.deleted[-1]:.0f} %"
        deletion, insertion = self.areas
        better = (
            deletion < min(one for one, _ in self.at_random),
            insertion > max(one for _, one in self.at_random),
        )
        count = len(self.at_random)
        if all(better):
            return f"better than each of {count} random maps in both"
        if any(better):
            which, other = ("deletion", "insertion")[:: 1 if better[0] else -1]
            return f"better than each of {count} random maps in {which}, not in {other}"
        return (
            f"not better than {count} random maps: do not read the map as what this network needs"
        )

    @property
    def sentence(self) -> str:
        """The figures and what they mean, for people."""
        deletion, insertion = self.areas
        low, high = (
            f"{100 * min(both):.0f} to {100 * max(both):.0f} %"
            for both in zip(*self.at_random, strict=True)
        )
        return (
            f"as more and more of the most important pixels are replaced by"
            f" {BASELINES[self.baseline]}, the class"
            f" keeps {100 * deletion:.0f} % of its probability on average (random maps:"
            f" {low}); as they are shown alone, {100 * insertion:.0f} % (random maps: {high}):"
            f" {self.verdict}"
        )

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        deletion, insertion = self.areas
        return {
            "deletion": deletion,
            "insertion": insertion,
            "in_place_of_pixels": BASELINES[self.baseline],
            "random_deletion": [one for one, _ in self.at_random],
            "random_insertion": [one for _, one in self.at_random],
            "shares": list(self.shares),
            "kept_when_deleted": list(self.deleted),
            "kept_when_alone": list(self.inserted),
            "verdict": self.verdict,
        }


def area(values: tuple[float, ...], first: float, last: float | None = None) -> float:
    """The area under a curve over equal steps from 0 to 1, by the trapezoidal rule.

    `values` come after `first`, and before `last`, where it is given.
    """
    every = (first, *values, *([] if last is None else [last]))
    return sum((a + b) / 2 for a, b in itertools.pairwise(every)) / (len(every) - 1)


@dataclass(frozen=True)
class Heat:
    """`image` (C, H, W) with pixels in 0..1, `heat` (H, W) in 0..1, the class and its probability.

    A regression has a `value` instead of a probability. `method` names how the heat was made, of
    what the module `layer` gave. `axes` label rows (upwards) and columns where the image is a
    spectrogram, and `ticks` are round values on them (see data/audio/ticks.py). `size` is that of
    the map before it was resized, `coarse` (h, w) that map, not scaled. `heat` is None where the
    map has one position; `note` is a remark on the heat, if any. `accounts` are the map's sum and
    what the class's score has of the layer, for HiResCAM.
    """

    image: Tensor
    heat: Tensor | None
    label: str
    probability: float
    size: tuple[int, int]
    method: str
    axes: tuple[str, str] | None
    note: str = ""
    value: float | None = None
    layer: str = ""
    coarse: Tensor | None = None
    accounts: tuple[float, float] | None = None
    trial: Trial | None = None
    ticks: tuple[Ticks, Ticks] | None = None

    @property
    def caption(self) -> str:
        """The model's prediction, for people."""
        if not self.label:
            return ""
        return f"{self.label}: " + (
            f"{100 * self.probability:.1f} %" if self.value is None else f"{self.value:.6g}"
        )

    @property
    def remarks(self) -> list[str]:
        """Sentences on how far the map is to be trusted."""
        found = [self.note] if self.note else []
        if self.accounts is not None:
            total, score = self.accounts
            found.append(
                f"HiResCAM: the map's sum is {total:.4g} of the {score:.4g} that the class's score"
                " has from this layer; that it says how much each place adds is certain only where"
                " nothing but means and one linear layer follow"
            )
        return [*found, f"test: {self.trial.sentence}"] if self.trial is not None else found

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        heat = self.heat.tolist() if self.heat is not None else None
        said = {"probability": self.probability} if self.value is None else {"value": self.value}
        values: dict[str, Any] = {"label": self.label, **said, "map": list(self.size), "heat": heat}
        values |= {"method": self.method, "layer": self.layer}
        if self.accounts is not None:
            values |= {"sum": self.accounts[0], "score_of_layer": self.accounts[1]}
        if self.trial is not None:
            values["test"] = self.trial.to_json()
        return {**values, "note": self.note} if self.note else values


def likeliest(info: DatasetInfo) -> Task:
    """A classification task of these classes."""
    return build_task(ClassificationOptions(), info)


def picture_of(image: Tensor, info: DatasetInfo, note: str = "") -> Heat:
    """A normalised image (1, C, H, W) without a map."""
    kind = input_of(info)
    rows, columns = image.shape[-2:]
    pixels, ticks = kind.pixels_of(image[0].cpu()), kind.ticks(columns)
    return Heat(pixels, None, "", 0.0, (rows, columns), "", kind.axes, note, ticks=ticks)


def heat_over(
    image: Tensor,
    heat: Tensor,
    logits: Tensor,
    info: DatasetInfo,
    task: Task | None,
    method: str,
    layer: str = "",
    chosen: int | None = None,
    accounts: tuple[float, float] | None = None,
    note: str = "",
) -> Heat:
    """A map (1, 1, h, w) resized to a normalised image (1, C, H, W), scaled to a maximum of 1.

    It is of the foremost of the logits (1, K), or of the one chosen.
    """
    task = task or likeliest(info)
    _, label, said = task.foremost(logits, chosen)
    height, width = image.shape[-2:]
    rows, columns = heat.shape[-2:]
    kind = input_of(info)
    whole = None
    if rows == columns == 1:
        note = (
            f"the network's last map is 1 x 1 for images of {height} x {width}, so that it cannot"
            " say where: no region is drawn; larger images (data.size), fewer strides, or an"
            " earlier layer (--cam-layer) leave a larger map"
        )
    else:
        if not bool(heat.max() > 0):
            note = note or (
                f"nowhere does this map ({layer}) speak for this class: the heat is 0 everywhere"
            )
        whole = resized(heat, (height, width))
        whole = (whole / whole.max().clamp(min=1e-12)).cpu()
    value = None if task.of_probability else said
    return Heat(
        kind.pixels_of(image[0].cpu()),
        whole,
        label,
        said,
        (rows, columns),
        method,
        kind.axes,
        note,
        value,
        layer,
        heat[0, 0].cpu(),
        accounts,
        ticks=kind.ticks(width),
    )


def resized(heat: Tensor, size: tuple[int, int]) -> Tensor:
    """(1, 1, h, w) -> (H, W)   bilinear."""
    return F.interpolate(heat, size=size, mode="bilinear", align_corners=False)[0, 0]
