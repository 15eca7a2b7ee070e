"""A run's directory: the lock, the resolved spec, the log of figures, and the status that a job scheduler can read."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
from pathlib import Path
from types import TracebackType
from typing import Any

from bigmodel_cli.console import say, strict_json
from bigmodel_cli.errors import ResourceError, SpecError

MOST_TRIED = 10_000


def fresh_directory(root: Path, name: str) -> Path:
    """The first of root/name, root/name-2, root/name-3 ... that is not there."""
    candidates = (root / (name if n == 1 else f"{name}-{n}") for n in range(1, MOST_TRIED))
    return next(path for path in candidates if not path.exists())


class MetricsLog:
    """metrics.jsonl: one JSON object a line, null for what is not a finite number.

    Where it cannot be written, one warning is said and training goes on.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.broken = False

    def write(self, record: dict[str, Any]) -> None:
        """Append a record."""
        if self.broken:
            return
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(strict_json(record) + "\n")
        except OSError as error:
            self.fail(error)

    def cut(self, step: int, rewinds: int = 0) -> None:
        """Drop what was recorded after `step`, and a line that was torn when the process died: a resume writes them again.

        So it does with what is said of going back (train.rewind) more often than `rewinds` times.
        """
        if not self.path.is_file():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
            try:
                record = json.loads(line)
                again = record["step"] > step or record.get("rewind", {}).get("number", 0) > rewinds
                if line.endswith("\n") and not again:
                    kept.append(line)
            except (ValueError, KeyError, TypeError, AttributeError):
                continue
        try:
            _replace(self.path, "".join(kept))
        except OSError as error:
            self.fail(error)

    def fail(self, error: OSError) -> None:
        """Say once that there will be no log."""
        self.broken = True
        say(
            f"warning: {self.path}: cannot be written: {os.strerror(error.errno or 0)}; training goes on without the log"
        )


class RunDirectory:
    """`path` with its lock held, until the `with` block ends or the process dies."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path, self.descriptor = path, descriptor
        self.checkpoints = path / "checkpoints"
        self.metrics = MetricsLog(path / "metrics.jsonl")
        self.last_step = 0
        self.last_checkpoint: str | None = None

    @classmethod
    def open(cls, path: Path, *, resume: bool) -> RunDirectory:
        """Make the directory (or enter it, to resume) and take its lock.

        Raises `ResourceError` where it cannot be written or another process holds it, and `SpecError` where it holds a run
        already, or none to resume.
        """
        if resume and not path.is_dir():
            raise SpecError(f"--resume: {path}: no such run; start it without --resume")
        made = not path.exists()
        try:
            path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path / "run.lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            if made and path.is_dir():
                path.rmdir()
            raise ResourceError(
                f"{path}: cannot be written: {os.strerror(error.errno or 0)}; choose another place with --out"
            ) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = os.read(descriptor, 200).decode("utf-8", "replace").strip() or "another process"
            os.close(descriptor)
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise ResourceError(f"{path}: cannot be locked: {os.strerror(error.errno or 0)}") from None
            raise ResourceError(f"{path}: in use by {owner}; wait for it, or choose another place with --out") from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
        directory = cls(path, descriptor)
        if not resume and any(p.name != "run.lock" for p in path.iterdir()):
            directory.close()
            raise SpecError(
                f"{path}: holds a run (or other files) already; go on with it by --resume, or choose another --out"
            )
        return directory

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the lock back."""
        os.close(self.descriptor)

    def begin(self, spec: str, step: int, rewinds: int = 0) -> None:
        """Record the resolved spec, and cut the log to the step that training goes on from. Raises `ResourceError`."""
        try:
            _replace(self.path / "spec.yaml", spec)
        except OSError as error:
            raise ResourceError(f"{self.path}: cannot be written: {os.strerror(error.errno or 0)}") from None
        self.metrics.cut(step, rewinds)
        self.write_status("running", 0, "", step)

    def keep(self, name: str, text: str) -> None:
        """Write another file of the run; where that fails, a warning is said."""
        try:
            _replace(self.path / name, text)
        except OSError as error:
            say(f"warning: {self.path / name}: cannot be written: {os.strerror(error.errno or 0)}")

    def write_status(
        self, state: str, code: int, message: str, last_step: int | None = None, last_checkpoint: Path | None = None
    ) -> None:
        """Write status.json: running, done, stopped or failed, with the exit status. A disk that is full is no new fault."""
        if last_step is not None:
            self.last_step = last_step
        if last_checkpoint is not None:
            self.last_checkpoint = os.path.relpath(last_checkpoint, self.path)
        values = {
            "state": state,
            "code": code,
            "message": message,
            "last_step": self.last_step,
            "last_checkpoint": self.last_checkpoint,
        }
        try:
            _replace(self.path / "status.json", json.dumps(values, indent=1, allow_nan=False) + "\n")
        except OSError as error:
            say(f"warning: {self.path / 'status.json'}: cannot be written: {os.strerror(error.errno or 0)}")


def _replace(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old text or the new one."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_text(text, encoding="utf-8")
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
