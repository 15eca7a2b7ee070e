"""TensorBoard's event files."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Any, Literal

from bigmodel_cli.errors import ResourceError
from bigmodel_cli.trackers.base import AnyTrackerOptions, TrackedRun, Tracker, figures


class TensorBoardOptions(AnyTrackerOptions):
    """TensorBoard event files in the run's folder `tensorboard`."""

    type: Literal["tensorboard"] = "tensorboard"
    package = "tensorboard"

    def build(self, run: TrackedRun) -> TensorBoard:
        """Begin a file. Raises `ResourceError`."""
        return TensorBoard(run.path / "tensorboard")


class TensorBoard(Tracker):
    """The same figures as metrics.jsonl, as TensorBoard event files.

    They are not written by torch's SummaryWriter, whose thread ends with a traceback where the disk
    is full. Raises `ResourceError` where they cannot be written.
    """

    what = "TensorBoard's files"

    def __init__(self, directory: Path) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        self.path = (
            directory
            / f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.0"
        )
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self.file = open(self.path, "ab", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise self._fault(error, "; make room, or leave it out of train.trackers") from None
        self.records: Any = RecordWriter(self.file)
        self._event(
            {"file_version": "brain.Event:2"}, "; make room, or leave it out of train.trackers"
        )

    def write(self, record: dict[str, Any]) -> None:
        """Add one record of metrics.jsonl."""
        values = [{"tag": name, "simple_value": value} for name, value in figures(record).items()]
        if values:
            self._event({"step": record["step"], "summary": {"value": values}})

    def cut(self, step: int) -> None:
        """Make readers ignore earlier records of later steps."""
        self._event({"step": step + 1, "session_log": {"status": 1}})  # START

    def close(self, done: bool) -> None:
        self.file.close()

    def _event(self, values: dict[str, Any], remedy: str = "") -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        try:
            self.records.write(Event(wall_time=time.time(), **values).SerializeToString())
        except OSError as error:
            raise self._fault(error, remedy) from None

    def _fault(self, error: OSError, remedy: str) -> ResourceError:
        return ResourceError(
            f"{self.path}: cannot be written: {os.strerror(error.errno or 0)}{remedy}"
        )
