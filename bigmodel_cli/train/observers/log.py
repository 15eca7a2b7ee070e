"""metrics.jsonl: the record that every plot and tracker reads."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from bigmodel_cli.console import say, strict_json
from bigmodel_cli.disk import replace_text, sync
from bigmodel_cli.train.observers.base import Observer


class Log(Observer):
    """metrics.jsonl: one JSON object a line, null for numbers that are not finite.

    Where it cannot be written, there is one warning, and training goes on.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.broken = False

    def write(self, record: dict[str, Any]) -> None:
        if self.broken:
            return
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(strict_json(record) + "\n")
        except OSError as error:
            self.fail(error)

    def on_checkpoint(self, step: int) -> None:
        """Flush the records to disk: a checkpoint of this step must not outlive its records."""
        if self.broken or not os.path.isfile(self.path):
            return
        try:
            sync(self.path)
        except OSError as error:
            self.fail(error)

    def cut(self, step: int, rewinds: int) -> None:
        """Drop what a resumed run writes again: records after `step`, the record of a result
        (`averaged`), a line torn by a kill, and records of going back (train.rewind) more than
        `rewinds` times.
        """
        if not os.path.isfile(self.path):
            return
        kept = []
        try:
            for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines(
                keepends=True
            ):
                with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
                    record = json.loads(line)
                    again = (
                        record["step"] > step or record.get("rewind", {}).get("number", 0) > rewinds
                    )
                    if line.endswith("\n") and not again and "averaged" not in record:
                        kept.append(line)
            replace_text(self.path, "".join(kept))
        except OSError as error:
            self.fail(error)

    def fail(self, error: OSError) -> None:
        """Warn once that there will be no log."""
        self.broken = True
        say(
            f"warning: {self.path}: cannot be written: {os.strerror(error.errno or 0)}; training"
            " goes on without the log"
        )
