"""Bytes of one process in a training: what stays, what a step adds, and what there is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bigmodel_cli.bench.mesh.axes import Axes
from bigmodel_cli.bench.mesh.gathering import SUMS
from bigmodel_cli.bench.paper import AVERAGES, GRADIENTS, OPTIMIZER, WEIGHTS, Paper

FULL = 0.95
"""The part of a device's memory that can be had."""
MOMENTS = ("as the backward pass begins", "in the backward pass", "late in the backward pass")
SUMMING, UPDATE = "in the sum of gradients", "in the update"
SAVING = "as a checkpoint is saved"
BESIDE = "temporary"
"""The kind of what these hold for themselves; a checkpoint, one weight at a time in whole."""


@dataclass(frozen=True)
class Memory:
    """Bytes of a device: `stays` and `most` by kind, of which `at_peak` are held at once, `moment`;
    `validation` is needed at least where a process gathers all weights to validate.
    """

    stays: Mapping[str, float]
    most: Mapping[str, float]
    at_peak: Mapping[str, float]
    moment: str
    room: float
    validation: float = 0.0

    @property
    def kept(self) -> float:
        """All that stays, gradients among it."""
        return sum(self.stays.values())

    @property
    def peak(self) -> float:
        """The most at once."""
        return sum(self.at_peak.values())

    @property
    def passes(self) -> float:
        """What is added at the peak, beside all that stays."""
        return max(self.peak - self.kept, 0.0)

    @property
    def usable(self) -> float:
        """What there is that can be had."""
        return FULL * self.room

    @property
    def fits(self) -> bool:
        """Whether the device has as much."""
        return max(self.peak, self.kept) <= self.usable

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        kinds = {
            name: {"most": size, "at_peak": self.at_peak.get(name, 0.0)}
            for name, size in self.most.items()
        }
        return {
            "kept": self.kept,
            "passes": self.passes,
            "room": self.room,
            "fits": self.fits,
            "peak": self.peak,
            "moment": self.moment,
            "kinds": kinds,
            "validation": self.validation,
        }


def memory_of(paper: Paper, axes: Axes, passes: int, trees: int, room: float) -> Memory:
    """Of a step of so many micro-batches; gradients are kept `trees` times more where they are
    summed in pairs.
    """
    stays = dict(paper.kept)
    stays[GRADIENTS] *= 1 + trees
    still = {name: stays[name] for name in (WEIGHTS, OPTIMIZER, AVERAGES)}
    moments: dict[str, dict[str, float]] = {}
    for name, moment in zip(MOMENTS, paper.moments, strict=True):
        grown = {kind: max(size, 0.0) for kind, size in moment.items()}
        own = grown.pop(SUMS, 0.0)
        moments[name] = {**still, GRADIENTS: own if passes == 1 else stays[GRADIENTS], **grown}
    moments[SUMMING] = {**stays, BESIDE: paper.summing}
    moments[UPDATE] = {**stays, BESIDE: paper.update}
    moments[SAVING] = {**still, BESIDE: paper.largest}
    at = max(moments, key=lambda name: sum(moments[name].values()))
    most = {**stays, **{k: size for k, size in paper.most.items() if k != SUMS}}
    most[BESIDE] = max(paper.summing, paper.update, paper.largest)
    validation = 0.0
    if axes.shard > 1:
        validation = sum(still.values()) + axes.shard * stays[WEIGHTS]
    found = {name: size for name, size in most.items() if size}
    return Memory(stays, found, moments[at], at, room, validation)
