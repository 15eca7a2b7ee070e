"""What `bench` measured, as plain values: written as JSON, read back, and compared later."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from bigmodel_cli.bench.losses import Machine, Operation, Roofline, advice, roofline

SCHEMA = 2
"""The version of the JSON's form; 1 was a flat list of timings."""
WHOLE = "whole"


@dataclass(frozen=True)
class Mood:
    """What else the machine did during a block.

    `stolen` is the share of its processors' time that a hypervisor took for others, `others` the
    share that other processes used, and `mhz` the mean frequency; None where the system does not
    tell.
    """

    stolen: float | None = None
    others: float | None = None
    mhz: float | None = None


@dataclass(frozen=True)
class Block:
    """Steps that ran one after the other.

    `seconds` are of each step as a whole, `parts` of each step's parts by name ("wait" for data,
    "forward", "backward", "update"), and what is left of it. `processor` are seconds of processor
    time that the process used, of all threads, `reference` those of a fixed piece of work beside
    it: how fast the machine was. `place` is the block's turn among all of a call,
    `process` the number of the target's process; `joules` what the device used in all of it, where
    that is told. One that was `rejected` (why) does not count.
    """

    seconds: tuple[float, ...]
    parts: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    processor: float = 0.0
    reference: float = 0.0
    place: int = 0
    process: int = 0
    mood: Mood = Mood()
    rejected: str = ""
    joules: float | None = None

    @property
    def steps(self) -> int:
        """All of them; where parts are of other steps, as on a GPU, those too."""
        marked = max((len(values) for values in self.parts.values()), default=0)
        return len(self.seconds) + (marked if marked != len(self.seconds) else 0)

    @property
    def median(self) -> float:
        """Of its steps."""
        return statistics.median(self.seconds)


@dataclass(frozen=True)
class Facts:
    """What was measured: known before the first step, but for the memory.

    `unit` is what a step is counted in, `size` how many of them one has (a mean). `told` are
    further figures by name, of what is done (cache bytes, the seconds to a first token).
    """

    name: str
    doing: str
    unit: str
    size: float
    batch_size: int
    precision: str
    memory_format: str
    compiled: bool
    parameters: int
    device: str
    threads: int
    data: str
    """Where batches came from: "real" or "random"."""
    foreseen: Mapping[str, Any] = field(default_factory=dict)
    """Bytes of training by a dry run, as `Memory.to_json`."""
    told: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Work:
    """What one step asks of the machine, and the machine's peaks.

    `useful` FLOPs are those of the mathematics: pairs that a query sees, experts that were chosen,
    nothing twice. `matrix_rate` (FLOP/s, of the precision) and `copy_rate` (bytes/s) are measured.
    `must_read` are the bytes of weights and caches that the decoding of a step has to read.
    """

    useful: float
    matrix_rate: float
    copy_rate: float
    must_read: float | None = None
    operations: Sequence[Operation] = ()
    peaks: str = ""
    """How they were measured: shape, precision, threads, date."""
    step: float = 0.0
    """Seconds of the steps beside which the operations were timed; 0 where none were."""
    note: str = ""
    """What is to be known of the operations."""


@dataclass(frozen=True)
class Verdict:
    """How much longer a step of one target takes than one of another.

    `change` is 0.03 for 3 % longer, `low` and `high` its 99 % interval, `floor` the most that
    processes of one target differ, as a part of their time; None where there are too few rounds to
    know. `says` is "slower", "faster", "same"
    (within the tolerance) or "undecided"; `rounds` counted, and `rejected` did not. Of targets that
    were timed `apart`, at different times, these are blocks.
    """

    change: float
    low: float | None
    high: float | None
    floor: float | None
    says: str
    rounds: int
    rejected: int
    apart: bool = False

    @property
    def told(self) -> bool:
        """Whether there were enough rounds, without other work in most of them, to tell anything;
        also that it is not decided.
        """
        return self.low is not None and self.rejected <= self.rounds


@dataclass(frozen=True)
class Measured:
    """One target in one kind of work."""

    facts: Facts
    blocks: Sequence[Block]
    work: Work | None = None
    verdict: Verdict | None = None  # against the first target
    peak_tensors: int | None = None  # bytes at once, as an allocator counts them
    peak_process: int | None = None  # bytes of the process, above those before the model
    peak_device: int | None = None  # bytes of the device that the process's allocator kept

    @property
    def counted(self) -> list[Block]:
        """The blocks that are not rejected; all, where every one is."""
        kept = [block for block in self.blocks if not block.rejected]
        return kept or list(self.blocks)

    def by_process(self) -> list[list[Block]]:
        """The blocks of each process, in turn."""
        numbers = sorted({block.process for block in self.blocks})
        return [[b for b in self.blocks if b.process == number] for number in numbers]

    def steps(self) -> list[float]:
        """Seconds of each counted step."""
        return [second for block in self.counted for second in block.seconds]

    @property
    def median(self) -> float:
        """Seconds of a step."""
        return statistics.median(self.steps())

    def percentile(self, share: float) -> float:
        """Seconds that this share of the steps does not exceed."""
        times = sorted(self.steps())
        return times[min(len(times) - 1, int(share * len(times)))]

    @property
    def per_second(self) -> float:
        """The rate, in units."""
        return self.facts.size / self.median

    @property
    def share(self) -> float | None:
        """Useful FLOP/s as a part of the measured matrix rate; above 1 where that has changed."""
        return None if self.work is None else self.work.useful / self.median / self.work.matrix_rate

    @property
    def joules(self) -> float | None:
        """Of a step; None where the system does not tell."""
        told = [b for b in self.counted if b.joules is not None]
        steps = sum(block.steps for block in told)
        return sum(block.joules or 0.0 for block in told) / steps if steps else None

    @property
    def read_share(self) -> float | None:
        """The rate at which decoding has to read, as a part of the copy rate; None for others."""
        if self.work is None or self.work.must_read is None:
            return None
        seconds = self.parts().get("decode", self.median)
        return self.work.must_read / seconds / self.work.copy_rate if seconds else None

    @property
    def roofline(self) -> Roofline | None:
        """Where the time of the median step goes; None where no operations were watched.

        They are timed beside other steps than those that count: their times are in proportion.
        """
        work = self.work
        if work is None or not work.operations or not work.step:
            return None
        wait = min(self.parts().get("wait", 0.0), self.median)
        return roofline(work.operations, self.median, wait, self.median / work.step)

    @property
    def advice(self) -> str | None:
        """What to change, by what loses most time."""
        found, facts = self.roofline, self.facts
        machine = Machine(facts.precision, facts.compiled, facts.device.startswith("cpu"))
        return None if found is None else advice(found, machine)

    def ratio(self, first: Measured) -> float | None:
        """The rate relative to another's; None where the units differ."""
        same = self.facts.unit == first.facts.unit
        return self.per_second / first.per_second if same else None

    def summary(self) -> dict[str, Any]:
        """The figures of its steps, by name."""
        return {
            "name": self.facts.name,
            "doing": self.facts.doing,
            "unit": self.facts.unit,
            "median_s": self.median,
            "p95_s": self.percentile(0.95),
            "steps": len(self.steps()),
            "per_second": self.per_second,
            **({} if self.joules is None else {"joules": self.joules}),
            "parts_s": self.parts(),
            "mfu": self.share,
            "read_share": self.read_share,
            "roofline": None if (found := self.roofline) is None else found.to_json(),
            "advice": self.advice,
        }

    def parts(self) -> dict[str, float]:
        """Median seconds of each part of a step."""
        names = list(dict.fromkeys(name for block in self.counted for name in block.parts))
        return {
            name: statistics.median(s for block in self.counted for s in block.parts.get(name, ()))
            for name in names
        }


@dataclass(frozen=True)
class LeftOut:
    """A target that could not do a kind of work, and why."""

    name: str
    doing: str
    reason: str


@dataclass(frozen=True)
class Result:
    """All of one call: what, on which machine, and how it was called."""

    measured: Sequence[Measured]
    machine: Mapping[str, Any]
    command: Sequence[str]
    date: str
    left_out: Sequence[LeftOut] = ()

    def by_doing(self) -> dict[str, list[Measured]]:
        """The targets of each kind of work, the first being what others are compared with."""
        doings = dict.fromkeys(m.facts.doing for m in self.measured)
        return {name: [m for m in self.measured if m.facts.doing == name] for name in doings}

    def to_json(self) -> dict[str, Any]:
        """As plain values, every sample among them, and a summary of each target."""
        rows = [{**m.summary(), **asdict(m)} for m in self.measured]
        groups = self.by_doing()
        for row, measured in zip(rows, self.measured, strict=True):
            row["ratio_to_first"] = measured.ratio(groups[measured.facts.doing][0])
        return {
            "schema_version": SCHEMA,
            "date": self.date,
            "command": list(self.command),
            "machine": dict(self.machine),
            "benchmarks": rows,
            "left_out": [asdict(found) for found in self.left_out],
        }
