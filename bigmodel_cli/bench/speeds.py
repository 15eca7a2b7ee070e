"""How long the parts of a step take on a device: as was learnt here, or by published rates."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Protocol

from bigmodel_cli.bench.clusters import (
    ATTENTION,
    CALLED,
    JOINED,
    LAUNCH,
    MOVING,
    PRODUCTS,
    Card,
)
from bigmodel_cli.bench.named import ATTENTION as LOOKING
from bigmodel_cli.bench.named import OPTIMIZER
from bigmodel_cli.bench.paper import PARTS, Paper
from bigmodel_cli.bench.rates import Rates
from bigmodel_cli.bench.roof import Peaks
from bigmodel_cli.bench.watching import Call
from bigmodel_cli.lazy import torch

CPU, KNOWN = "cpu", ("cpu", "cuda")


class Speeds(Protocol):
    """A device that computes in one way."""

    precision: str
    memory_format: str
    compiled: bool
    at_peaks: bool  # nothing is slower than the device's best
    memory: float  # bytes
    kind: str  # of device: "cpu", "cuda"

    @property
    def matrix_rate(self) -> float:
        """FLOP/s of the best products in that precision."""

    def parts(self, paper: Paper, passes: int) -> dict[str, float]:
        """Seconds of the parts of a step of so many micro-batches."""

    def by_name(self, paper: Paper, passes: int) -> dict[str, float]:
        """Seconds of its operations by name."""

    def eager(self) -> Speeds:
        """The same device, whose network is not compiled."""


class Learnt:
    """This machine."""

    compiled = at_peaks = False

    def __init__(
        self, rates: Rates, precision: str, memory_format: str, memory: float, device: torch.device
    ) -> None:
        self.rates, self.precision, self.memory_format = rates, precision, memory_format
        self.memory, self.kind = memory, device.type if device.type in KNOWN else CPU

    @property
    def matrix_rate(self) -> float:
        return self.rates.rate_of(self.precision)

    def parts(self, paper: Paper, passes: int) -> dict[str, float]:
        host, found = self.rates.host, {}
        for part in PARTS:
            inside = host.times * self.rates.of(paper.parts[part])
            times = 1 if part == "update" else passes
            found[part] = times * (inside + host.call * paper.dispatched[part])
        found["update"] += host.step + host.weight * paper.weights
        return found

    def by_name(self, paper: Paper, passes: int) -> dict[str, float]:
        return _by_name(
            paper, passes, lambda call: self.rates.host.times * self.rates.seconds(call)
        )

    def eager(self) -> Learnt:
        return self


class AtPeaks:
    """This machine, at the rates of its best products and copies: no step takes less."""

    compiled, at_peaks = False, True

    def __init__(
        self, peaks: Peaks, precision: str, memory_format: str, memory: float, device: torch.device
    ) -> None:
        self.peaks, self.precision, self.memory_format = peaks, precision, memory_format
        self.memory, self.kind = memory, device.type if device.type in KNOWN else CPU

    @property
    def matrix_rate(self) -> float:
        return self.peaks.matrix_rate

    def seconds(self, call: Call) -> float:
        """Of a call: the larger of computing and moving."""
        return max(call.flops / self.peaks.matrix_rate, call.bytes / self.peaks.copy_rate)

    def parts(self, paper: Paper, passes: int) -> dict[str, float]:
        return {
            part: (1 if part == "update" else passes)
            * sum(count * self.seconds(call) for call, count in paper.parts[part].items())
            for part in PARTS
        }

    def by_name(self, paper: Paper, passes: int) -> dict[str, float]:
        return _by_name(paper, passes, self.seconds)

    def eager(self) -> AtPeaks:
        return self


class Published:
    """A device with published rates, which works through its queue while the host goes on."""

    at_peaks = False

    def __init__(self, card: Card, precision: str, memory_format: str, compiled: bool) -> None:
        self.card, self.precision, self.memory_format = card, precision, memory_format
        self.compiled, self.memory, self.kind = compiled, card.memory, "cuda"

    @property
    def matrix_rate(self) -> float:
        return self.card.rates[self.precision]

    def seconds(self, call: Call) -> float:
        """Of a call: the larger of computing and moving, at the part of the rates that is reached.

        What multiplies in fp32 beside autocast has fp32's rate.
        """
        half = call.kind in (torch.bfloat16, torch.float16)
        rate = self.card.rates[self.precision if half else "fp32"]
        part = ATTENTION if call.name == LOOKING else PRODUCTS
        joined = self.compiled and not call.flops and call.name != OPTIMIZER
        fused = JOINED if joined else 1.0
        moving = fused * call.bytes / (MOVING * self.card.copies)
        return fused * LAUNCH + max(call.flops / (part * rate), moving)

    def parts(self, paper: Paper, passes: int) -> dict[str, float]:
        found = {}
        for part in PARTS:
            device = sum(n * self.seconds(call) for call, n in paper.parts[part].items())
            calls = sum(paper.parts[part].values()) * (JOINED / 2 if self.compiled else 1.0)
            found[part] = (1 if part == "update" else passes) * max(device, CALLED * calls)
        return found

    def by_name(self, paper: Paper, passes: int) -> dict[str, float]:
        return _by_name(paper, passes, self.seconds)

    def eager(self) -> Published:
        return Published(self.card, self.precision, self.memory_format, False)


def _by_name(paper: Paper, passes: int, seconds: Callable[[Call], float]) -> dict[str, float]:
    found: dict[str, float] = defaultdict(float)
    for part in PARTS:
        for call, count in paper.parts[part].items():
            found[call.name] += (1 if part == "update" else passes) * count * seconds(call)
    return dict(found)
