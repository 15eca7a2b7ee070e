"""metrics.jsonl: the record that every plot and tracker reads."""

from __future__ import annotations

from typing import Any

from bigmodel_cli.metrics_log import MetricsLog
from bigmodel_cli.train.observers.base import Recorder


class Log(Recorder):
    """Writes every record as a line of the run's metrics.jsonl."""

    def __init__(self, metrics: MetricsLog) -> None:
        self.metrics = metrics

    def write(self, record: dict[str, Any]) -> None:
        self.metrics.write(record)

    def cut(self, step: int, rewinds: int) -> None:
        """Drop the lines that will be written again."""
        self.metrics.cut(step, rewinds)

    def on_checkpoint(self, step: int) -> None:
        """Sync the records to disk."""
        self.metrics.sync()
