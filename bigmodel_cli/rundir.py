"""A run's directory: its lock, its resolved spec, and the status that a job scheduler can read."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import socket
from pathlib import Path
from typing import Any

from bigmodel_cli.console import say
from bigmodel_cli.disk import refusal, replace_text, sync
from bigmodel_cli.distributed.names import LOGS
from bigmodel_cli.errors import ResourceError, SpecError
from bigmodel_cli.failpoints import failpoint

MOST_TRIED = 10_000
LOCK, SPEC, STATUS, METRICS = "run.lock", "spec.yaml", "status.json", "metrics.jsonl"
ABOUT = ("total_steps", "metric", "parameters", "launch", "processes")
"""What status.json says about a run as a whole, for listings; see `RunDirectory.about`."""
_STEP = re.compile(r"step-[0-9]+\Z")
_DRAFT = re.compile(rf"\.({SPEC}|{STATUS}|{METRICS})\.[0-9]+\Z")


class InUse(ResourceError):
    """Another process holds the run's lock."""


class Occupied(SpecError):
    """The directory holds a run, or other files, already."""


def has_begun(path: Path) -> bool:
    """Whether a run has recorded anything in this directory: its spec or a checkpoint."""
    try:
        return os.path.exists(path / SPEC) or any(
            _STEP.match(name) for name in os.listdir(path / "checkpoints")
        )
    except OSError:
        return False


_locks: set[int] = set()
"""Descriptors by which this process holds locks.

A forked child closes them: it must not keep the lock of a dead parent.
"""


def _let_go() -> None:
    for descriptor in _locks:
        os.close(descriptor)
    _locks.clear()


os.register_at_fork(after_in_child=_let_go)


class RunDirectory:
    """`path` with its lock held, until the `with` block ends or the process dies.

    Where nothing was recorded by then, it is removed: a start that failed does not take the run's
    name.
    """

    def __init__(self, path: Path, descriptor: int, made: list[Path]) -> None:
        self.descriptor = descriptor
        _locks.add(descriptor)
        self.made = made  # folders that this process created, the innermost first
        self.recall(path)

    def recall(self, path: Path) -> None:
        """Know what is recorded there."""
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.begun = has_begun(path)
        self.recording = False  # this process has begun or resumed the run
        self.previous = read_status(path / STATUS) if self.begun else {}
        self.about = {name: self.previous[name] for name in ABOUT if name in self.previous}
        step, checkpoint = self.previous.get("last_step"), self.previous.get("last_checkpoint")
        self.last_step = step if isinstance(step, int) else 0
        self.last_checkpoint = checkpoint if isinstance(checkpoint, str) else None

    @classmethod
    def fresh(cls, root: Path, name: str) -> RunDirectory:
        """The first of root/name, root/name-2, root/name-3 ... that does not exist and that no
        process is about to create.
        """
        for number in range(1, MOST_TRIED):
            path = root / (name if number == 1 else f"{name}-{number}")
            if not os.path.lexists(path) or _vacant(path):
                with contextlib.suppress(InUse, Occupied):
                    return cls.open(path, resume=False)
        raise ResourceError(
            f"{root}: {name} and {MOST_TRIED:,} names like it are taken; choose another with --out"
        )

    @classmethod
    def open(cls, path: Path, *, resume: bool) -> RunDirectory:
        """Create the directory (or enter it, to resume) and take its lock.

        Raises `ResourceError` where it cannot be written or another process holds it, and
        `SpecError` where it holds a run already, or none to resume.
        """
        if resume and not os.path.isdir(path):
            raise SpecError(
                f"--resume: {path}: {refusal(path) or 'no such run; start it without --resume'}"
            )
        made = [p for p in (path, *path.parents) if not os.path.exists(p)]
        if os.path.isdir(path) and _vacant(path) and any(path.iterdir()):
            made = [path]  # left by a process that was killed before the run began
        try:
            path.mkdir(parents=True, exist_ok=True)
            descriptor = _locked(path)
        except OSError as error:
            if made and os.path.isdir(path):
                (path / LOCK).unlink(missing_ok=True)
            _remove_empty(made)
            raise ResourceError(
                f"{path}: cannot be written: {os.strerror(error.errno or 0)}; choose another place"
                " with --out"
            ) from None
        directory = cls(path, descriptor, made)
        if not resume and not _vacant(path):
            directory.made = []
            os.close(descriptor)
            raise Occupied(
                f"{path}: holds a run (or other files) already; go on with it by --resume, or"
                " choose another --out"
            )
        for draft in [p for p in path.iterdir() if _DRAFT.match(p.name)]:
            draft.unlink(missing_ok=True)
        return directory

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the lock, and remove the directory where nothing was recorded."""
        if not self.begun and _vacant(self.path):
            for left in list(self.path.iterdir()):  # its lock, status and logs
                with contextlib.suppress(OSError):
                    left.unlink(missing_ok=True)
            _remove_empty(self.made)
        _locks.discard(self.descriptor)
        os.close(self.descriptor)

    def begin(self, spec: str, step: int) -> None:
        """Record the resolved spec, and the step that training starts from.

        Raises `ResourceError`.
        """
        try:
            replace_text(self.path / SPEC, spec)
            sync(self.path.parent)
        except OSError as error:
            raise ResourceError(
                f"{self.path}: cannot be written: {os.strerror(error.errno or 0)}"
            ) from None
        self.begun = self.recording = True
        self.write_status("running", 0, "", step)

    def failed(self, state: str, code: int, message: str) -> None:
        """Record how a run failed; nothing where none began, or where a finished one was not
        resumed.
        """
        if self.recording or (self.begun and self.previous.get("state") != "done"):
            self.write_status(state, code, message)

    def stand_in(self) -> None:
        """Write from here on, for a process that no longer can."""

    def keep(self, name: str, text: str) -> None:
        """Write another file of the run; where that fails, warn."""
        try:
            replace_text(self.path / name, text)
        except OSError as error:
            say(f"warning: {self.path / name}: cannot be written: {os.strerror(error.errno or 0)}")

    def write_status(
        self,
        state: str,
        code: int,
        message: str,
        last_step: int | None = None,
        last_checkpoint: Path | None = None,
    ) -> None:
        """Write status.json: running, done, stopped or failed, with the exit status.

        A failed write is reported as a warning, not raised.
        """
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
            **self.about,
        }
        self.put_status(state, json.dumps(values, indent=1, allow_nan=False) + "\n")

    def put_status(self, state: str, text: str) -> None:
        """Write status.json, with a warning where that fails."""
        try:
            failpoint(f"status.{state}")
            replace_text(self.path / STATUS, text)
        except OSError as error:
            if _overwritten(self.path / STATUS, text):
                return
            say(
                f"warning: {self.path / STATUS}: cannot be written: {os.strerror(error.errno or 0)}"
            )


def is_taken(path: Path) -> bool:
    """Whether a run cannot begin in a folder, since other files are there."""
    return os.path.isdir(path) and not _vacant(path)


def _vacant(path: Path) -> bool:
    """Whether a folder is empty, up to what a run leaves that was killed before it began."""
    try:
        kept = (p.name for p in path.iterdir() if not _DRAFT.match(p.name))
        return {name for name in kept if not LOGS.match(name)} <= {LOCK, STATUS}
    except OSError:
        return False


def _locked(path: Path) -> int:
    """The descriptor of the lock in a run's directory.

    Raises `InUse`, and `OSError` where it cannot be opened.
    """
    descriptor = os.open(
        path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW, 0o644
    )
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        same = os.path.samestat(os.fstat(descriptor), os.stat(path / LOCK))
    except OSError as error:
        owner = os.read(descriptor, 200).decode("utf-8", "replace").strip() or "another process"
        os.close(descriptor)
        if error.errno not in (errno.EAGAIN, errno.EACCES, errno.ENOENT):
            raise
        raise InUse(
            f"{path}: in use by {owner}; wait for it, or choose another place with --out"
        ) from None
    if not same:  # its owner was removing it just now
        os.close(descriptor)
        raise InUse(f"{path}: another process is leaving it; start again")
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def read_status(path: Path) -> dict[str, Any]:
    """The content of a status.json; empty where it cannot be read."""
    try:
        values = (
            json.loads(path.read_bytes())
            if os.path.isfile(path) and path.stat().st_size < 1_000_000
            else {}
        )
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def _overwritten(path: Path, text: str) -> bool:
    """Whether a small file could be overwritten in place, where the disk has no room for a second
    one.
    """
    try:
        with open(path, "r+b") as file:
            file.write(text.encode())
            file.truncate()
    except OSError:
        return False
    return True
