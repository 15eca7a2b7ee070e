"""`bigmodel bench`: the time and memory of work, and its share of the machine's peaks."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bigmodel_cli.bench.machine import machine
from bigmodel_cli.bench.report import to_text
from bigmodel_cli.bench.result import Measured, Result
from bigmodel_cli.bench.targets import FACTS
from bigmodel_cli.bench.turns import take_turns
from bigmodel_cli.bench.worker import Asked, Here, Process, Subject
from bigmodel_cli.console import short_names
from bigmodel_cli.overrides import Change

__all__ = ["Request", "bench", "to_text"]


@dataclass(frozen=True)
class Request:
    """What a call of `bench` asks for; without targets, the built-in set."""

    targets: Sequence[str] = ()
    changes: Sequence[Change] = ()
    device: str = "auto"
    seconds: float = 5.0
    doing: str = "training"
    command: Sequence[str] = ()

    def asked(self) -> list[Asked]:
        """What each worker is to do."""
        return [
            Asked(target, self.doing, self.device, not self.targets, self.changes)
            for target in self.targets or FACTS
        ]


def bench(request: Request, start: Callable[[Asked], Subject] | None = None) -> Result:
    """Time the targets in turns, each in a process of its own; one alone in this one."""
    asked_for = request.asked()
    start = start or (Here if len(asked_for) == 1 else Process)
    with contextlib.ExitStack() as stack:
        subjects = []
        for asked in asked_for:  # one after the other: some measure what is fastest
            subjects.append(start(asked))
            stack.callback(subjects[-1].close)
        blocks = take_turns(subjects, request.seconds, lambda found: False)
        names = short_names([[Path(place) for place in s.places] for s in subjects])
        measured = []
        for name, subject, own in zip(names, subjects, blocks, strict=True):
            tensors, process = subject.peaks()
            work, facts = subject.work(), replace(subject.facts(), name=name)
            measured.append(Measured(facts, own, work, tensors, process))
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return Result(measured, machine(), request.command, now)
