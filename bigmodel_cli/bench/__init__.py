"""`bigmodel bench`: the time and memory of work, and its share of the machine's peaks."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bigmodel_cli.bench.machine import machine
from bigmodel_cli.bench.report import to_text
from bigmodel_cli.bench.result import Block, Measured, Result
from bigmodel_cli.bench.roof import forget
from bigmodel_cli.bench.targets import FACTS
from bigmodel_cli.bench.turns import Turns
from bigmodel_cli.bench.verdict import LOOKS, UNDECIDED, judge, judge_apart
from bigmodel_cli.bench.worker import Asked, Here, Process, Subject
from bigmodel_cli.console import short_names
from bigmodel_cli.overrides import Change

__all__ = ["Request", "bench", "compared", "to_text"]


PROCESSES = 3
"""Of each target, where several are compared: two processes of one program differ a little."""
ALONE, COMPARED = 5.0, 20.0
"""Seconds of a target by default: alone, and at most beside others."""


@dataclass(frozen=True)
class Request:
    """What a call of `bench` asks for; without targets, the built-in set."""

    targets: Sequence[str] = ()
    changes: Sequence[Change] = ()
    device: str = "auto"
    seconds: float | None = None
    doing: str = "training"
    command: Sequence[str] = ()
    processes: int = PROCESSES
    roof: bool = False  # the machine's peaks are measured anew

    def asked(self) -> list[Asked]:
        """What each target's workers are to do."""
        return [
            Asked(target, self.doing, self.device, not self.targets, self.changes)
            for target in self.targets or FACTS
        ]


def bench(request: Request, start: Callable[[Asked], Subject] | None = None) -> Result:
    """Time the targets in turns, each in processes of its own; one alone in this one."""
    if request.roof:
        forget()
    asked_for = request.asked()
    alone = len(asked_for) == 1
    start = start or (Here if alone else Process)
    count = 1 if alone else request.processes
    seconds = (ALONE if alone else COMPARED) if request.seconds is None else request.seconds
    with contextlib.ExitStack() as stack:
        subjects: list[Subject] = []
        for number, asked in enumerate(asked_for * count):
            # one after the other: some measure what is fastest
            subjects.append(start(replace(asked, quiet=number >= len(asked_for))))
            stack.callback(subjects[-1].close)
        turns = Turns(subjects)
        kinds = len(asked_for)
        turns.take(seconds * kinds, lambda found: not alone and _decided(found, kinds))
        names = short_names([[Path(place) for place in s.places] for s in subjects[:kinds]])
        measured: list[Measured] = []
        for number, name in enumerate(names):
            own = [
                [replace(block, process=process) for block in blocks]
                for process, blocks in enumerate(turns.blocks[number::kinds])
            ]
            measured.append(_measured(name, subjects[number], own, measured))
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return Result(measured, machine(), request.command, now)


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
    tensors, process = subject.peaks()
    facts, work = replace(subject.facts(), name=name), subject.work()
    verdict = None
    if before and before[0].facts.unit == facts.unit:
        verdict = judge(before[0].by_process(), blocks, before[0].facts.size / facts.size)
    return Measured(facts, [b for own in blocks for b in own], work, verdict, tensors, process)


def compared(results: Sequence[Result]) -> Result:
    """Saved results as one, each target with a verdict against the first of all.

    There is none where the machines, the work or the units differ.
    """
    first = results[0].measured[0]
    measured: list[Measured] = []
    for result in results:
        for own in result.measured:
            alike = (
                dict(result.machine) == dict(results[0].machine)
                and own.facts.device == first.facts.device
                and (own.facts.doing, own.facts.unit) == (first.facts.doing, first.facts.unit)
            )
            verdict = None
            if own is not first and alike:
                scale = first.facts.size / own.facts.size
                verdict = judge_apart(first.by_process(), own.by_process(), scale)
            measured.append(replace(own, verdict=verdict))
    if len({m.facts.name for m in measured}) < len(measured):
        measured = [
            replace(m, facts=replace(m.facts, name=f"{m.facts.name} ({number})"))
            for number, m in enumerate(measured, 1)
        ]
    return replace(results[0], measured=measured)
