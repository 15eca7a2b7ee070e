"""How long operations take on this machine, learnt from some networks and foreseen for others.

What an operation takes beyond its peak (`FLOOR`, and FLOPs over the matrix rate, or bytes over the
copy rate) is known for the sizes that were measured, and interpolated between them: the logarithm
of its time over the peak's, as a mean of the nearest measured operations of the same form,
weighted by how near their sizes are. Of a form that was never measured it is that of its kind.
"""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from bigmodel_cli.bench.paper import Paper, calls_of
from bigmodel_cli.bench.watching import Call

FLOOR, LEAST = 2e-6, 3e-7
"""Seconds of a call beside its work, and the least that one takes."""
NEAREST, SOFT = 5, 0.02
"""How many measured operations count, and the square of a distance (in logarithms) which is near.
"""
KINDS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""Of precisions."""
ROUNDS, SWEEPS, NEAR, HELD = 12, 400, 0.03, 0.1
"""Of the fit of what the host takes: how often weights are set, how often each number is, and the
part of a step below which a network counts fully; the part of all networks' weight that operations
have which take as long as they were measured.
"""
PRODUCT, MOVING = "product", "moving"
Key = tuple[str, ...]


@dataclass(frozen=True)
class Sample:
    """An operation that was measured: `seconds` of a call."""

    form: str
    kind: str
    flops: float
    bytes: float
    sizes: tuple[int, ...]
    seconds: float

    @classmethod
    def of(cls, call: Call, seconds: float | None = None) -> Sample:
        """Of a call, its time or another."""
        own = call.seconds if seconds is None else seconds
        kind = str(call.kind).removeprefix("torch.")
        return cls(call.form, kind, call.flops, call.bytes, call.sizes, own)

    @property
    def keys(self) -> Sequence[Key]:
        """What it is compared with, the most alike first."""
        name = self.form.partition(" ")[0]
        kind = PRODUCT if self.flops else MOVING
        return (self.form, self.kind), (self.form,), (name,), (kind, "", self.kind), (kind, "")

    @property
    def place(self) -> tuple[float, ...]:
        """Where it lies among those of its form."""
        whole = self.flops or self.bytes
        return math.log(whole + 1), *(math.log(n + 1) for n in self.sizes)


@dataclass(frozen=True)
class Host:
    """What a step takes beyond its operations as they are foreseen: they themselves `times` as
    long, and seconds of the step, of each call, of each weight.
    """

    times: float = 1.0
    step: float = 0.0
    call: float = 0.0
    weight: float = 0.0

    def seconds(self, inside: float, calls: float, weights: float) -> float:
        """Of a whole step."""
        return self.times * inside + self.step + self.call * calls + self.weight * weights


@dataclass
class Rates:
    """The measured operations, the machine's peaks by precision, and what the host takes.

    `reference` are the seconds of the reference work beside them.
    """

    samples: Sequence[Sample]
    matrix_rates: Mapping[str, float]  # by kind: "float32"
    copy_rate: float
    host: Host = Host()
    reference: float = 0.0
    date: float = 0.0
    among: dict[Key, list[tuple[tuple[float, ...], float]]] = field(
        default_factory=dict, init=False
    )

    def __post_init__(self) -> None:
        among: dict[Key, list[tuple[tuple[float, ...], float]]] = defaultdict(list)
        for sample in self.samples:
            ratio = math.log(max(sample.seconds, LEAST) / self.at_peaks(sample))
            for key in sample.keys:
                among[key].append((sample.place, ratio))
        self.among = dict(among)

    def rate_of(self, precision: str) -> float:
        """FLOP/s of the best products."""
        return self.matrix_rates[KINDS[precision]]

    def at_peaks(self, sample: Sample) -> float:
        """Seconds at the peak that operations of its kind are compared with.

        Of products those of their FLOPs alone: a small one, whose bytes would decide, takes no less
        time where heads share keys, which lessens its bytes.
        """
        fastest = max(self.matrix_rates.values())
        rate = self.matrix_rates.get(sample.kind, fastest)
        count = sample.sizes[0] if len(sample.sizes) == 1 else 1  # of weights at once
        work = sample.flops / rate if sample.flops else sample.bytes / self.copy_rate
        return FLOOR * count + work

    def seconds(self, call: Call) -> float:
        """Of a call, foreseen."""
        own = Sample.of(call)
        for key in own.keys:
            known = self.among.get(key)
            if known:
                return self.at_peaks(own) * math.exp(_near(own.place, known))
        return self.at_peaks(own)

    def of(self, calls: Mapping[Call, float]) -> float:
        """Seconds of calls, each as often as it is made."""
        return sum(count * self.seconds(call) for call, count in calls.items())

    def step(self, paper: Paper, accumulate: int) -> float:
        """Seconds of a step of so many micro-batches."""
        inside = self.of(calls_of(paper, accumulate))
        return self.host.seconds(inside, paper.calls(accumulate), paper.weights)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "samples": [list(asdict(sample).values()) for sample in self.samples],
            "matrix_rates": dict(self.matrix_rates),
            "copy_rate": self.copy_rate,
            "host": asdict(self.host),
            "reference": self.reference,
            "date": self.date,
        }

    @classmethod
    def from_json(cls, text: str) -> Rates:
        """The inverse. Raises `ValueError`, `TypeError` or `KeyError` for anything else."""
        values = json.loads(text)
        samples = [
            Sample(row[0], row[1], row[2], row[3], tuple(row[4]), row[5])
            for row in values["samples"]
        ]
        return cls(**{**values, "samples": samples, "host": Host(**values["host"])})


def _near(place: Sequence[float], known: Iterable[tuple[Sequence[float], float]]) -> float:
    """The mean of the nearest, by the inverse of their squared distances."""
    apart = []
    for other, value in known:
        short = min(len(place), len(other))  # of another form, what both have
        square = sum((a - b) ** 2 for a, b in zip(place[:short], other[:short], strict=True))
        apart.append((square, value))
    nearest = sorted(apart)[:NEAREST]
    weights = [1 / (square + SOFT) for square, _ in nearest]
    return sum(w * v for w, (_, v) in zip(weights, nearest, strict=True)) / sum(weights)


def merged(calls: Iterable[Call]) -> list[Sample]:
    """One for each form and size: the median of their times."""
    found: dict[Sample, list[float]] = defaultdict(list)
    for call in calls:
        found[Sample.of(call, 0.0)].append(call.seconds)
    return [
        Sample(s.form, s.kind, s.flops, s.bytes, s.sizes, statistics.median(times))
        for s, times in found.items()
    ]


def learnt(networks: Sequence[Sequence[Call]], others: Sequence[Call], rates: Rates) -> list[float]:
    """Seconds of the operations of each network, as they are foreseen by all but that one."""
    found = []
    for number, own in enumerate(networks):
        rest = [call for n, calls in enumerate(networks) if n != number for call in calls]
        found.append(replace(rates, samples=merged([*rest, *others])).of(Counter(own)))
    return found


def host_of(steps: Sequence[tuple[float, float, float, float]]) -> Host:
    """What the host takes, of steps as (seconds, those of their operations, calls, weights): the
    parts of a step are to be 1, nothing is below 0.

    Least squares with weights by how far each is off (Holland and Welsch 1977), so that a network
    which was disturbed, or is foreseen badly, does not move the others. One more row holds that
    operations take as long as they were measured.
    """
    rows = [[x / s for x in (inside, 1.0, calls, weights)] for s, inside, calls, weights in steps]
    rows.append([1.0, 0.0, 0.0, 0.0])
    found, trusted = [1.0, 0.0, 0.0, 0.0], [1.0] * len(steps) + [HELD * len(steps)]
    for _ in range(ROUNDS):
        for _ in range(SWEEPS):
            for i in range(len(found)):
                above = below = 0.0
                for row, trust in zip(rows, trusted, strict=True):
                    others = sum(found[j] * row[j] for j in range(len(found)) if j != i)
                    above += trust * row[i] * (1 - others)
                    below += trust * row[i] ** 2
                found[i] = max(0.0, above / below) if below else found[i]
        off = [abs(1 - sum(a * b for a, b in zip(found, row, strict=True))) for row in rows]
        trusted = [NEAR / max(NEAR, distance) for distance in off[:-1]] + [HELD * len(steps)]
    return Host(*found)
