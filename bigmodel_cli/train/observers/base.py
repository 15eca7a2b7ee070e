"""What watches a training: each observer is one idea, and the loop knows none of them by name."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bigmodel_cli.train.run import Run


class Observer:
    """Watches a training; nothing that is not overridden does anything.

    What `on_start` raises ends the run before its first step. A record is one line of metrics.jsonl
    as plain values, with its "step".
    """

    def on_start(self, run: Run) -> None:
        """The run begins, or goes on."""

    def cut(self, step: int, rewinds: int) -> None:
        """Forget the records after `step`, and of going back more often than `rewinds` times: they
        are made again.
        """

    def on_log(self, record: dict[str, Any]) -> None:
        """The figures of the steps since the last such record."""

    def on_validation(self, record: dict[str, Any]) -> None:
        """The figures of a validation, under "val"."""

    def on_event(self, record: dict[str, Any]) -> None:
        """Something that happened between two records, such as a smaller micro-batch or going back."""

    def on_message(self, text: str) -> None:
        """A line for whoever watches."""

    def on_checkpoint(self, step: int) -> None:
        """A checkpoint of this step is about to be committed: it must not outlive its records."""

    def on_end(self, run: Run) -> None:
        """The training came to its end, and the averaged weights, if there are any, are in the
        model.
        """

    def close(self) -> None:
        """Let go of everything, however the run ended. It may be called twice."""


class Recorder(Observer):
    """An observer to which all records are alike."""

    def write(self, record: dict[str, Any]) -> None:
        """Take one record."""

    def on_log(self, record: dict[str, Any]) -> None:
        """The figures of some steps."""
        self.write(record)

    def on_validation(self, record: dict[str, Any]) -> None:
        """The figures of a validation."""
        self.write(record)

    def on_event(self, record: dict[str, Any]) -> None:
        """Something that happened."""
        self.write(record)


class Observers(Observer):
    """Several observers as one: each is told everything, in this order."""

    def __init__(self, each: Sequence[Observer]) -> None:
        self.each = each

    def on_start(self, run: Run) -> None:
        """The run begins, or goes on."""
        for observer in self.each:
            observer.on_start(run)

    def cut(self, step: int, rewinds: int) -> None:
        """Forget the records after `step`."""
        for observer in self.each:
            observer.cut(step, rewinds)

    def on_log(self, record: dict[str, Any]) -> None:
        """The figures of some steps."""
        for observer in self.each:
            observer.on_log(record)

    def on_validation(self, record: dict[str, Any]) -> None:
        """The figures of a validation."""
        for observer in self.each:
            observer.on_validation(record)

    def on_event(self, record: dict[str, Any]) -> None:
        """Something that happened."""
        for observer in self.each:
            observer.on_event(record)

    def on_message(self, text: str) -> None:
        """A line for whoever watches."""
        for observer in self.each:
            observer.on_message(text)

    def on_checkpoint(self, step: int) -> None:
        """A checkpoint is about to be committed."""
        for observer in self.each:
            observer.on_checkpoint(step)

    def on_end(self, run: Run) -> None:
        """The training came to its end."""
        for observer in self.each:
            observer.on_end(run)

    def close(self) -> None:
        """Close all, also where one raises."""
        with contextlib.ExitStack() as stack:
            for observer in reversed(self.each):
                stack.callback(observer.close)
