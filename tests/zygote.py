"""Commands as processes of their own, started in milliseconds: a parent that has loaded torch, and
what runs import beside it, forks for each.

A process can be killed, stopped or starved without harm to the tests, as a user's would be; and
these imports are paid once.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import pty
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ROOT = Path(__file__).resolve().parent.parent
DRAWING = ("matplotlib.figure", "matplotlib.backends.backend_agg")
PRELOAD = (
    "bigmodel_cli.train.session",
    "sklearn.datasets",
    "torchvision.transforms.v2",
    *DRAWING,
)
"""What runs import beside torch: most of the time of a small one with digits and augmentation."""
PLAIN = tuple(f"bigmodel_cli.{room}" for room in ("data", "models", "optim", "tasks", "trackers"))
PLAIN += DRAWING
"""What plugins may be joined after."""


@dataclass
class Ended:
    """How a process ended: its exit status (negative: the signal that killed it), and what it
    wrote.
    """

    status: int
    out: str
    err: str


class Child:
    """A running command."""

    def __init__(self, zygote: Zygote, pid: int, out: Path, err: Path) -> None:
        self.zygote, self.pid, self.out, self.err = zygote, pid, out, err

    def wait(self, timeout: float = 60) -> Ended:
        """Wait for the end; a process that does not end is killed, and fails the test."""
        status = self.zygote.ask({"wait": self.pid, "timeout": timeout})["status"]
        # none: killed at once; or a terminal or pipe of the test's
        out, err = (path.read_text() if path.is_file() else "" for path in (self.out, self.err))
        assert status is not None, f"no end within {timeout} s:\n{err}"
        return Ended(status, out, err)

    def ended(self) -> bool:
        """Whether it has ended; nobody but `wait` takes note of its status."""
        return bool(self.zygote.ask({"ended": self.pid})["ended"])

    def end_within(self, seconds: float) -> bool:
        """Wait so long, or less where it ends before, and return whether it did."""
        end = time.monotonic() + seconds
        while not (ended := self.ended()) and time.monotonic() < end:
            time.sleep(min(0.01, max(0.0, end - time.monotonic())))
        return ended

    def send(self, number: int) -> None:
        """Send a signal."""
        os.kill(self.pid, number)


class Zygote:
    """The parent of the processes; `plain`, plugins may still join."""

    def __init__(self, folder: Path, plain: bool = False) -> None:
        self.folder, self.count = folder, 0
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, __file__, *(["plain"] if plain else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def ask(self, request: dict[str, Any]) -> Any:
        """Send a request and return the answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def start(
        self,
        *arguments: object,
        env: dict[str, str] | None = None,
        limit: int | None = None,
        curve: bool = False,
        stdin: str = os.devnull,
        stdout: str = "",
        stderr: str = "",
    ) -> Child:
        """Start `bigmodel` with these arguments in the current folder; `limit` is the largest file
        that it may write; without `curve`, curve.png is a few bytes and no picture. The streams may
        be pipes or terminals, by their paths; a terminal as stdin is the controlling one.
        """
        self.count += 1
        out = Path(stdout or self.folder / f"{self.count}.out")
        err = Path(stderr or self.folder / f"{self.count}.err")
        named = {k: v for k, v in os.environ.items() if k.startswith(("BIGMODEL", "XDG"))}
        request = {
            "argv": [str(a) for a in arguments],
            "cwd": os.getcwd(),
            "env": {**named, **(env or {})},
            "curve": curve,
            "stdin": stdin,
        }
        answer = self.ask({**request, "out": str(out), "err": str(err), "limit": limit})
        return Child(self, answer["pid"], out, err)

    def run(self, *arguments: object, **options: Any) -> Ended:
        """Start it and wait for its end."""
        return self.start(*arguments, **options).wait()

    def on_a_terminal(self, *arguments: object, **options: Any) -> tuple[Ended, str]:
        """Run it with stderr, and stdout where `options` say so, on a terminal; returns how it
        ended, and what was shown.
        """
        ours, theirs = pty.openpty()
        os.set_blocking(ours, False)
        name = os.ttyname(theirs)
        named = {key: name if value == "terminal" else value for key, value in options.items()}
        child, shown, ended = self.start(*arguments, stderr=name, **named), b"", False
        while not ended:
            ended = child.end_within(0.05)
            with contextlib.suppress(BlockingIOError):
                while piece := os.read(ours, 65536):
                    shown += piece
        os.close(theirs)
        os.close(ours)
        return child.wait(), shown.decode()

    def close(self) -> None:
        """End the parent."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(10)


def resume_command(err: str) -> list[str]:
    """The arguments of the command that a stopped run prints to go on."""
    return shlex.split(err.rpartition("to go on: ")[2].strip())[1:]


def until(what: Any, timeout: float = 30) -> None:
    """Wait until `what()` is true."""
    end = time.monotonic() + timeout
    while not what():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.005)


def mark_curve(metrics: Path, picture: Path, about: object) -> None:
    """Takes the place of drawing curve.png."""
    picture.write_bytes(b"not drawn in this test")


def serve() -> None:
    """Answer requests on stdin until it closes."""
    from bigmodel_cli import cli  # noqa: F401
    from bigmodel_cli.lazy import load_torch

    load_torch()
    for name in PLAIN if "plain" in sys.argv else PRELOAD:
        importlib.import_module(name)
    gc.freeze()  # else each child's first collection goes through all of it, and copies it
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, Any] = {}
        if "wait" in request:
            answer["status"] = wait_for(request["wait"], request["timeout"])
        elif "ended" in request:
            found = os.waitid(os.P_PID, request["ended"], os.WEXITED | os.WNOHANG | os.WNOWAIT)
            answer["ended"] = found is not None
        else:
            # what comes before the command begins waits for it
            signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
            pid = os.fork()
            if pid == 0:
                become(request)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
            answer["pid"] = pid
        print(json.dumps(answer), flush=True)


def wait_for(pid: int, timeout: float) -> int | None:
    """The exit status of a child, or None where it had to be killed."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.003)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def become(request: dict[str, Any]) -> None:
    """Be the command, in the forked process."""
    import resource

    from bigmodel_cli.__main__ import main

    curve = sys.modules.get("bigmodel_cli.train.observers.curve")  # not loaded where plugins join
    if curve is not None and not request["curve"]:
        curve.draw_curve = mark_curve  # type: ignore[attr-defined]
    try:
        os.setsid()
        os.chdir(request["cwd"])
        os.environ.update(request["env"])
        if request["limit"] is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (request["limit"], request["limit"]))
        for number, path in ((1, request["out"]), (2, request["err"])):
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOCTTY
            os.dup2(os.open(path, flags, 0o600), number)
        os.dup2(os.open(request["stdin"], os.O_RDONLY), 0)
        sys.argv = ["bigmodel", *request["argv"]]
        for number in STOPPING:  # tests run by nohup, or in the background, ignore some of them
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
        main()
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(1)


if __name__ == "__main__":
    serve()
    os._exit(0)  # without the slow tear-down of torch
