"""What one of many processes sends, counted on paper: bytes by rings (Patarasuk and Yuan 2009)."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from bigmodel_cli.bench.mesh.axes import Axes
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.shares import Team

WEIGHTS, GRADIENTS = "weights gathered", "gradients summed"
PRODUCTS = "activations summed"
UPDATES = "matrices gathered for the update"
OUTER = "outer"
"""The part of a step in which weights come that then stay until the backward pass is over."""


def ring_gather(whole: float, count: int) -> float:
    """Bytes that each of `count` sends so that all have a whole of which each had a part; as many
    where each comes to have a part of a sum.
    """
    return (count - 1) / count * whole


def ring_sum(size: float, count: int) -> float:
    """Bytes that each of `count` sends so that all have a sum of this size."""
    return 2 * ring_gather(size, count)


def bytes_of(tensor: Tensor) -> int:
    """Of its numbers."""
    return int(tensor.numel()) * int(tensor.element_size())


@dataclass(frozen=True)
class Way:
    """What is sent, along which axis of the mesh, in which part of a step."""

    kind: str
    axis: str
    part: str


@dataclass
class Traffic:
    """Bytes that a process sends, and how many exchanges there are, in a micro-batch's passes and
    in the update.
    """

    bytes: Counter[Way] = field(default_factory=Counter)
    calls: Counter[Way] = field(default_factory=Counter)
    part: str = ""
    kind: str = PRODUCTS

    def note(self, kind: str, axis: str, size: float, calls: float = 1) -> None:
        """One more exchange, in which this process sends so many bytes."""
        way = Way(kind, axis, self.part)
        self.bytes[way] += size  # type: ignore[assignment]
        self.calls[way] += calls  # type: ignore[assignment]

    @contextlib.contextmanager
    def within(self, part: str, kind: str = PRODUCTS) -> Iterator[None]:
        """Inside, what is exchanged belongs to that part of a step, and what a team exchanges is of
        that kind.
        """
        before = self.part, self.kind
        self.part, self.kind = part, kind
        try:
            yield
        finally:
            self.part, self.kind = before

    def plus(self, other: Traffic, times: float) -> Traffic:
        """With another's, so many times."""
        found = Traffic(Counter(self.bytes), Counter(self.calls))
        for own, theirs in ((found.bytes, other.bytes), (found.calls, other.calls)):
            for way, number in theirs.items():
                own[way] += times * number  # type: ignore[assignment]
        return found


class PaperTeam(Team):
    """The last of processes that compute each part together: its share is never the smallest."""

    def __init__(self, size: int, traffic: Traffic) -> None:
        self.rank, self.size, self.traffic = size - 1, size, traffic

    def sum(self, x: Tensor) -> Tensor:
        self.traffic.note(self.traffic.kind, "tensor", ring_sum(bytes_of(x), self.size))
        return x.detach().clone(memory_format=torch.contiguous_format)

    def largest(self, x: Tensor) -> Tensor:
        return self.sum(x)

    def all_of(self, x: Tensor) -> list[Tensor]:
        """Shares as large as this process's."""
        whole = self.size * bytes_of(x)
        self.traffic.note(self.traffic.kind, "tensor", ring_gather(whole, self.size))
        return [torch.empty_like(x) for _ in range(self.size)]

    def neighbours(self, count: int) -> Team:
        return self if count == self.size else PaperTeam(count, self.traffic)


@dataclass(frozen=True)
class Exchange:
    """All of one kind that a process sends in a step along one axis: bytes, how often, and seconds
    of it; `hidden`: it can go on beside computing.
    """

    kind: str
    axis: str
    bytes: float
    calls: float
    seconds: float = 0.0
    hidden: bool = False


def exchanges(traffic: Traffic, passes: int, ahead: bool = False) -> list[Exchange]:
    """Of a step of so many micro-batches, the largest first; `ahead`: these pass twice forward."""
    found: dict[tuple[str, str], Exchange] = {}
    for way, size in traffic.bytes.items():
        if not way.part:  # of an update that only makes the optimizer's state
            continue
        times = 1 if way.part == "update" else passes * (1 + (ahead and way.part == "forward"))
        before = found.get((way.kind, way.axis), Exchange(way.kind, way.axis, 0.0, 0.0))
        found[way.kind, way.axis] = replace(
            before,
            bytes=before.bytes + times * size,
            calls=before.calls + times * traffic.calls[way],
        )
    return sorted((e for e in found.values() if e.calls), key=lambda e: -e.bytes)


def timed(
    found: list[Exchange], axes: Axes, bandwidth: Mapping[str, float], latency: float
) -> list[Exchange]:
    """The same with seconds, by the bytes/s along each axis.

    FSDP2 gathers and sums beside the passes of other blocks; sums of tensor parallel are
    waited for in the pass, and those of whole gradients come after the last one.
    """
    return [
        replace(
            e,
            seconds=e.bytes / bandwidth[e.axis] + e.calls * _phases(e) * latency,
            hidden=axes.shard > 1 and e.axis != "tensor" and e.kind in (WEIGHTS, GRADIENTS),
        )
        for e in found
    ]


def _phases(exchange: Exchange) -> int:
    """How many rounds of its ring an exchange has: two where a sum comes to all."""
    whole = exchange.kind in (GRADIENTS, PRODUCTS) and exchange.axis != "shard"
    return 2 if whole else 1
