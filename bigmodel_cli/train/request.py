"""What the command line asks of a training."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from bigmodel_cli import distributed
from bigmodel_cli.overrides import Change
from bigmodel_cli.rundir import RunDirectory
from bigmodel_cli.train.observers.base import Observer


@dataclass(frozen=True)
class Request:
    """What the command line asks for, beside the spec."""

    name: str
    out: Path | None = None
    resume: bool = False
    device: str = "auto"
    overrides: tuple[Change, ...] = ()  # of the recorded spec, where a run goes on without one
    accept_data: bool = False
    command: str = "pretrain"
    words: tuple[str, ...] = ("bigmodel",)  # the whole command line, to start again
    plugins: tuple[Path, ...] = ()
    watching: tuple[Observer, ...] = ()  # beside the observers that each run has


def how_to_go_on(request: Request, directory: RunDirectory) -> str:
    """The end of a message about a stop."""
    return f"; to go on: {resume_command(request, directory)}"


def resume_command(request: Request, directory: RunDirectory) -> str:
    """The command to resume; the run knows its spec.

    Before the run has begun, the command to start it again.
    """
    if not directory.begun:
        return shlex.join(word for word in request.words if word != "--resume")
    words = ["bigmodel", request.command, "--resume", "--out", str(directory.path)]
    words += distributed.words_again()
    words += ["--device", request.device] if request.device != "auto" else []
    words += [word for plugin in request.plugins for word in ("--plugin", str(plugin))]
    return shlex.join(words)
