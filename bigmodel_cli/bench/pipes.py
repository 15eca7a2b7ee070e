"""Another process of this package, asked by lines of JSON on its stdin, which answers by lines.

Only answers go through the pipe: what else it prints goes to its stderr.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, TextIO

from bigmodel_cli import errors
from bigmodel_cli.errors import BigmodelError, ResourceError

HOME = Path(__file__).resolve().parents[2]
"""Where this package lies: the other process runs the same one."""
FAULTS = (
    errors.Unfit,
    errors.SpecError,
    errors.MissingData,
    errors.DataError,
    errors.CheckpointError,
    errors.OutOfMemory,
    errors.ResourceError,
    errors.NumericsError,
)
"""Faults that are the same here as there; others are plain ones."""


class Fault(Exception):
    """What the other process answered in the place of an answer."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind, self.message = kind, message

    def again(self, place: str = "") -> BigmodelError:
        """The fault as it was there, `place` before its message."""
        kinds = {found.__name__: found for found in FAULTS}
        return kinds.get(self.kind, BigmodelError)(place + self.message)


class Piped:
    """A process that runs `serve` of a module. It ends with this one, whose end closes its stdin.

    `patience` are the seconds that it has then to end by itself; `stderr` is as `Popen` takes it;
    `more` are variables of its environment beside this one's.
    """

    def __init__(
        self,
        module: str,
        patience: float,
        stderr: IO[bytes] | int | None = None,
        more: Mapping[str, str] | None = None,
    ) -> None:
        code = f"import sys; sys.path.insert(0, {str(HOME)!r}); from {module} import serve; serve()"
        # its own group: Ctrl-C comes to this process alone
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            process_group=0,
            env=None if more is None else {**os.environ, **more},
            text=True,
        )
        self.patience = patience

    def ask(self, request: Any) -> dict[str, Any]:
        """Its answer.

        Raises `Fault`, and `ResourceError` where it has ended, saying how.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(request), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            raise ResourceError(f"its process ended {self._how()}")
        answer: dict[str, Any] = json.loads(line)
        if (fault := answer.get("fault")) is not None:
            raise Fault(**fault)
        return answer

    def terminate(self) -> None:
        """Let it stop in good order, where it is still there."""
        if self.process.poll() is None:
            self.process.terminate()

    def close(self) -> None:
        """Close its stdin and wait until it has ended; it is killed where it does not."""
        with contextlib.suppress(OSError):
            assert self.process.stdin is not None
            self.process.stdin.close()
        try:
            self.process.wait(self.patience)
        except subprocess.TimeoutExpired:
            self.process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):  # a driver may hold it
                self.process.wait(self.patience)

    def _how(self) -> str:
        status = self.process.wait()
        if status == -signal.SIGKILL:
            return "since it was killed, by the system where memory was short"
        return f"by signal {-status}" if status < 0 else f"with status {status}"


def answering() -> TextIO:
    """In the other process: where answers go; from here on stdout is stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def faulty(error: BigmodelError) -> dict[str, Any]:
    """In the other process: the answer in the place of one."""
    return {"fault": {"kind": type(error).__name__, "message": str(error)}}
