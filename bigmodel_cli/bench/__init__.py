"""`bigmodel bench`: the time and memory of work, and its share of the machine's peaks."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from bigmodel_cli.bench.fitting import largest
from bigmodel_cli.bench.kinds import KINDS
from bigmodel_cli.bench.machine import machine
from bigmodel_cli.bench.report import to_text
from bigmodel_cli.bench.result import Block, LeftOut, Measured, Result
from bigmodel_cli.bench.roof import forget
from bigmodel_cli.bench.targets import FACTS
from bigmodel_cli.bench.turns import Turns
from bigmodel_cli.bench.variants import variants
from bigmodel_cli.bench.verdict import LOOKS, UNDECIDED, judge, judge_apart
from bigmodel_cli.bench.worker import Asked, Here, Process, Subject
from bigmodel_cli.console import say, short_names
from bigmodel_cli.errors import BigmodelError, ResourceError, SpecError, Unfit, did_you_mean
from bigmodel_cli.overrides import Change
from bigmodel_cli.progress import progress

__all__ = ["Request", "bench", "compared", "to_text"]


PROCESSES = 3
"""Of each target, where several are compared: two processes of one program differ a little."""
MANY = 6
"""More of them than this have one process each."""
ALONE, COMPARED = 5.0, 20.0
"""Seconds of a target by default: alone, and at most beside others."""
AUTO = "auto"
Start = Callable[[Asked], Subject]


@dataclass(frozen=True)
class Request:
    """What a call of `bench` asks for; without targets, the built-in set.

    `batch` is a number of samples at once, "auto" for the largest that fits, or None for what specs
    say; `sweeps` are as `variants` takes them.
    """

    targets: Sequence[str] = ()
    changes: Sequence[Change] = ()
    device: str = "auto"
    seconds: float | None = None
    doings: Sequence[str] = ("training",)
    command: Sequence[str] = ()
    processes: int = PROCESSES
    batch: str | None = None
    sweeps: Sequence[str] = ()
    plugins: Mapping[str, str] = field(default_factory=dict)  # of targets that have others
    roof: bool = False  # the machine's peaks are measured anew

    def check(self) -> None:
        """Raise `SpecError` for what is not to be had."""
        for name in self.doings:
            if name not in KINDS:
                raise SpecError(
                    f"--doing {name}: not one of {', '.join(KINDS)}{did_you_mean(name, KINDS)}"
                )
            if not self.targets and not KINDS[name].built_in:
                raise SpecError(f"--doing {name}: name a spec or checkpoint whose data is there")
        if self.batch not in (None, AUTO) and not (self.batch.isdecimal() and int(self.batch)):
            raise SpecError(f"--batch {self.batch}: neither a number of samples nor auto")
        variants(self.sweeps)

    def asked(self, doing: str) -> list[Asked]:
        """What each target's workers are to do."""
        kind = KINDS[doing]
        every = [
            Asked(
                target,
                doing,
                self.device,
                not self.targets,
                [*self.changes, *variant.changes],
                number=number,
                title=variant.title,
                plugins=self.plugins.get(target),
            )
            for number, target in enumerate(
                self.targets or [name for name in FACTS if name in kind.built_in]
            )
            for variant in variants(self.sweeps)
        ]
        if self.batch is not None and self.batch != AUTO:
            return [asked.of_batch(int(self.batch)) for asked in every]
        if self.batch is None and kind.sizes:
            return [
                replace(asked.of_batch(size), title=f"{asked.title} batch {size}")
                for asked in every
                for size in kind.sizes
            ]
        return every


def bench(request: Request, start: Start | None = None) -> Result:
    """Time the targets in turns, each in processes of its own; one alone in this one."""
    request.check()
    if request.roof:
        forget()
    measured: list[Measured] = []
    left_out: list[LeftOut] = []
    for doing in request.doings:
        asked = request.asked(doing)
        if request.batch == AUTO:
            # each has the whole memory: one after the other
            for one in asked:
                found, left = _at_its_largest(request, one, start)
                measured += found
                left_out += left
        else:
            found, left = _timed(request, asked, start)
            measured += found
            left_out += left
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return Result(measured, machine(), request.command, now, left_out)


def _timed(
    request: Request, asked_for: Sequence[Asked], start: Start | None
) -> tuple[list[Measured], list[LeftOut]]:
    """What one kind of work takes, and the targets that cannot do it (raised where all cannot)."""
    alone = len(asked_for) == 1
    start = start or (Here if alone else Process)
    count = 1 if alone or len(asked_for) > MANY else request.processes
    seconds = (ALONE if alone else COMPARED) if request.seconds is None else request.seconds
    with contextlib.ExitStack() as stack:
        asked_for, subjects, left = _opened(asked_for, count, start, stack)
        turns, kinds = Turns(subjects), len(asked_for)
        with progress(f"timing {asked_for[0].doing}", seconds * kinds, "s") as shown:
            started = turns.clock()

            def decided(found: list[list[Block]]) -> bool:
                shown.to(min(turns.clock() - started, seconds * kinds))
                return not alone and _decided(found, kinds)

            turns.take(seconds * kinds, decided)
        names = names_of(asked_for, [s.places for s in subjects[:kinds]])
        measured: list[Measured] = []
        for number, name in enumerate(names):
            own = [
                [replace(block, process=process) for block in blocks]
                for process, blocks in enumerate(turns.blocks[number::kinds])
            ]
            measured.append(_measured(name, subjects[number], own, measured))
    return measured, left


def _opened(
    asked_for: Sequence[Asked], count: int, start: Start, stack: contextlib.ExitStack
) -> tuple[list[Asked], list[Subject], list[LeftOut]]:
    """`count` subjects of each target that can do the work, one after the other, since some measure
    what is fastest; raises the first fault where none can.
    """
    able: list[Asked] = []
    subjects: list[Subject] = []
    left: list[LeftOut] = []
    first: BigmodelError | None = None
    whole = count * len(asked_for)
    with progress("opening", whole, "processes" if whole > 1 else "process") as shown:
        for asked in asked_for:
            if len(asked_for) > 1:
                asked = replace(asked, speaker=f"{asked.target}{asked.title}")
            try:
                subjects.append(start(asked))
            except (ResourceError, Unfit) as fault:
                if len(asked_for) == 1:
                    raise
                first = first or fault
                left.append(LeftOut(f"{asked.target}{asked.title}", asked.doing, str(fault)))
                continue
            stack.callback(subjects[-1].close)
            able.append(asked)
            shown.add(1)
        if not able:
            assert first is not None
            raise first
        for asked in able * (count - 1):
            subjects.append(start(replace(asked, quiet=True)))
            stack.callback(subjects[-1].close)
            shown.add(1)
    return able, subjects, left


def _at_its_largest(
    request: Request, asked: Asked, start: Start | None
) -> tuple[list[Measured], list[LeftOut]]:
    """The same at the largest batch that fits; a smaller one where memory lacks later."""
    start = start or Process
    try:
        size = largest(asked, start)
    except (ResourceError, Unfit) as fault:
        if len(request.asked(asked.doing)) == 1:
            raise
        return [], [LeftOut(f"{asked.target}{asked.title}", asked.doing, str(fault))]
    while True:
        try:
            return _timed(request, [asked.of_batch(size)], start)
        except ResourceError:
            if size == 1:
                raise
            say(f"--batch auto: {size:,} samples did not fit for long; fewer are taken")
            size = max(1, size * 7 // 8)


def names_of(asked_for: Sequence[Asked], places: Sequence[Sequence[str]]) -> list[str]:
    """The shortest distinct part of each target's path, and what sets its variants apart."""
    own = {asked.number: [*map(Path, own)] for asked, own in zip(asked_for, places, strict=True)}
    short = dict(zip(own, short_names(list(own.values())), strict=True))
    return [short[asked.number] + asked.title for asked in asked_for]


def _decided(blocks: list[list[Block]], kinds: int) -> bool:
    """Whether each target after the first has a verdict, at one of the looks."""
    if len(blocks[0]) not in LOOKS:
        return False
    first = blocks[::kinds]
    return all(judge(first, blocks[i::kinds]).says != UNDECIDED for i in range(1, kinds))


def _measured(
    name: str, subject: Subject, blocks: list[list[Block]], before: Sequence[Measured]
) -> Measured:
    """The figures of a target, by one of its processes; and the verdict against the first."""
    facts, work = replace(subject.facts(), name=name), subject.work()
    peaks = subject.peaks()
    verdict = None
    if before and before[0].facts.unit == facts.unit:
        verdict = judge(before[0].by_process(), blocks, before[0].facts.size / facts.size)
    return Measured(
        facts,
        [b for own in blocks for b in own],
        work,
        verdict,
        peaks.tensors,
        peaks.process,
        peaks.device,
    )


def compared(results: Sequence[tuple[str, Result]]) -> Result:
    """Results and what they are called (their files) as one, each target with a verdict against the
    first of all.

    Those of the first result keep theirs. There is none where the machines, the work or the units
    differ.
    """
    (_, base), *_ = results
    first = base.measured[0]
    measured = [(results[0][0], own) for own in base.measured]
    for name, result in results[1:]:
        for own in result.measured:
            alike = (
                dict(result.machine) == dict(base.machine)
                and own.facts.device == first.facts.device
                and (own.facts.doing, own.facts.unit) == (first.facts.doing, first.facts.unit)
            )
            verdict = None
            if alike:
                scale = first.facts.size / own.facts.size
                verdict = judge_apart(first.by_process(), own.by_process(), scale)
            measured.append((name, replace(own, verdict=verdict)))
    names = [own.facts.name for _, own in measured]
    shown = [
        replace(own, facts=replace(own.facts, name=f"{own.facts.name} ({name})"))
        if names.count(own.facts.name) > 1
        else own
        for name, own in measured
    ]
    return replace(base, measured=shown)
