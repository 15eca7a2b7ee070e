"""What watches a training: the loop calls observers through this interface only."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bigmodel_cli.train.run import Run


class Observer:
    """Watches a training; the methods do nothing unless overridden.

    An exception of `on_start` ends the run before its first step. A record is one line of
    metrics.jsonl as plain values, with its "step".
    """

    def on_start(self, run: Run) -> None:
        """The run starts or resumes."""

    def cut(self, step: int, rewinds: int) -> None:
        """Drop the records after `step`, and those of rewinds after the first `rewinds`."""

    def write(self, record: dict[str, Any]) -> None:
        """A record: the figures of the steps since the last one, of a validation (under "val"), or
        an event such as a smaller micro-batch or a rewind.
        """

    def on_message(self, text: str) -> None:
        """A line of text for the user."""

    def on_checkpoint(self, step: int) -> None:
        """A checkpoint of this step is about to be committed;
        its records must be on disk before.
        """

    def between_steps(self, run: Run) -> None:
        """A step is over, or the run has just begun, and another one follows; the time that this
        takes is not counted as training, and a signal may end it.
        """

    def on_end(self, run: Run) -> None:
        """The training is complete; any averaged weights are in the model."""

    def close(self) -> None:
        """Release everything, however the run ended. It may be called twice."""


class Observers(Observer):
    """Several observers as one, called in this order."""

    def __init__(self, each: Sequence[Observer]) -> None:
        self.each = each

    def on_start(self, run: Run) -> None:
        for observer in self.each:
            observer.on_start(run)

    def cut(self, step: int, rewinds: int) -> None:
        for observer in self.each:
            observer.cut(step, rewinds)

    def write(self, record: dict[str, Any]) -> None:
        for observer in self.each:
            observer.write(record)

    def on_message(self, text: str) -> None:
        for observer in self.each:
            observer.on_message(text)

    def on_checkpoint(self, step: int) -> None:
        for observer in self.each:
            observer.on_checkpoint(step)

    def between_steps(self, run: Run) -> None:
        for observer in self.each:
            observer.between_steps(run)

    def on_end(self, run: Run) -> None:
        for observer in self.each:
            observer.on_end(run)

    def close(self) -> None:
        """Close all, also where one raises."""
        with contextlib.ExitStack() as stack:
            for observer in reversed(self.each):
                stack.callback(observer.close)
