"""The base classes of trackers, which send a run's records elsewhere, beside metrics.jsonl."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from bigmodel_cli.config import Options
from bigmodel_cli.packages import need


@dataclass(frozen=True)
class TrackedRun:
    """A run, as a tracker gets it when the run starts or resumes."""

    path: Path  # its directory, whose name is the run's
    spec: dict[str, Any]  # resolved, as plain values
    tell: Callable[[str], None]  # shows a line to the user


class Tracker:
    """Sends records elsewhere.

    Its methods are called one after the other in a thread of its own, `close` at most once.

    An exception, or a slow `close`, is a warning, after which the run goes on without the tracker.
    """

    what = "the tracker"
    """What a run then goes on without, for the warning."""

    def start(self) -> None:
        """Begin, which may take its time."""

    def write(self, record: dict[str, Any]) -> None:
        """Take one record of metrics.jsonl."""

    def cut(self, step: int) -> None:
        """Drop the records after `step`, which will be written again; after `start`, and at a
        rewind.
        """

    def close(self, done: bool) -> None:
        """Finish writing; `done`: the training is complete."""


class Service(Tracker):
    """A tracker that knows a run by an id, kept in the run's directory,
    and cannot delete records.
    """

    def __init__(self, run: TrackedRun, type: str) -> None:
        self.run, self.type = run, type
        self.file = run.path / f"{type}.id"
        self.known = self.file.exists()  # there may be records

    def id(self, make: Callable[[], str]) -> str:
        """The run's id, made and saved at first use."""
        if not self.known:
            self.file.write_text(f"{make()}\n", encoding="utf-8")
        return self.file.read_text(encoding="utf-8").strip()

    def write(self, record: dict[str, Any]) -> None:
        """Send the finite numbers of a record."""
        if values := figures(record):
            self.known = True
            self.send(values, record["step"])

    def send(self, values: dict[str, float], step: int) -> None:
        """Send numbers of one step."""

    def cut(self, step: int) -> None:
        """Report that records cannot be deleted."""
        if self.known:
            self.run.tell(
                f"{self.type}: its records of steps after {step} stay beside the new ones: it"
                " cannot delete records"
            )


class AnyTrackerOptions(Options):
    """Options of a tracker. Each class has a `type` of its own."""

    type: Any
    package: ClassVar[str | None] = None
    """The package that pip installs and Python imports for it."""

    def check(self) -> None:
        """Import what the tracker needs. Raises `MissingPackage`, before anything is trained."""
        if self.package is not None:
            need(self.package, self.package, f"train.trackers: {self.type}")

    @abstractmethod
    def build(self, run: TrackedRun) -> Tracker:
        """The tracker of a run.

        A `BigmodelError` that it raises ends the run before its first step.
        """


def figures(record: dict[str, Any]) -> dict[str, float]:
    """The finite numbers of a record, as "train/loss" and "val/accuracy"."""
    found: dict[str, float] = {}
    for name, value in record.items():
        if isinstance(value, dict):
            found |= {f"{name}/{inner}": number for inner, number in value.items()}
        elif isinstance(value, float):
            found[f"train/{name}"] = value
    return {name: value for name, value in found.items() if math.isfinite(value)}
