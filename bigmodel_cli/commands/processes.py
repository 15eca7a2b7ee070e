"""`--processes N`: a command in several processes, which this one starts and waits for."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Mapping
from typing import Annotated

import typer

from bigmodel_cli.console import say
from bigmodel_cli.errors import BigmodelError, SpecError

ALONE = 15.0
"""Seconds in which the first of several processes says what they all find wrong with a command."""
Processes = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help=(
            "Train in N processes of this machine, each on a GPU or on its share of the CPU's"
            " cores; the same batches and result. Several machines: torchrun."
        ),
    ),
]
SharedItems = Annotated[
    int | None,
    typer.Option(
        "--processes",
        metavar="N",
        min=1,
        help="Share the items among N processes of this machine; the same figures.",
    ),
]
SharedInputs = Annotated[
    int | None,
    typer.Option(
        "--processes",
        metavar="N",
        min=1,
        help="Share the inputs among N processes of this machine; the same records.",
    ),
]
Restarts = Annotated[
    int,
    typer.Option(
        metavar="N",
        min=0,
        help="With --processes: go on from the last checkpoint, up to N times, where one is lost.",
    ),
]


def check_processes(processes: int | None, restarts: int, refused: Mapping[str, object]) -> None:
    """Raise `SpecError` where the options do not go together."""
    from bigmodel_cli.distributed import announced

    several = not announced().alone
    if processes in (None, 1) and restarts:
        raise SpecError("--restarts has no effect without --processes, 2 or more")
    if several and processes is not None:
        raise SpecError("--processes: torchrun has started the processes already; leave it out")
    if (several or processes is not None) and (given := [n for n, v in refused.items() if v]):
        raise SpecError(f"{given[0]} is not for several processes; leave it or them out")


def start_processes(
    processes: int, restarts: int, source: str | None = None, *, reads: bool = False
) -> None:
    """Run this command line in so many processes and leave with their status; `source` is what '-'
    stands for, where that was read from stdin, and `reads` whether the first one reads stdin.
    """
    from bigmodel_cli.distributed.launch import launch, without

    words = without(sys.argv[1:], ("--processes", "--restarts"))
    if source is not None:
        named = {"-": source, "--from=-": f"--from={source}"}
        words = [named.get(word, word) for word in words]
    raise SystemExit(launch(words, processes, restarts, say, reads=reads))


def refuse_several(arguments: list[str]) -> None:
    """Leave with status 2 where several processes were started for a command of one."""
    from bigmodel_cli.distributed import announced

    command = next((word for word in arguments if not word.startswith("-")), "")
    try:
        several = not announced().alone
    except BigmodelError as error:
        say(f"bigmodel: {error}")
        raise SystemExit(error.status) from None
    if several and command not in ("pretrain", "finetune", "eval", "predict"):
        say(f"bigmodel: {command or 'this'} is for one process; start it without torchrun")
        raise SystemExit(SpecError.status)


def one_voice() -> None:
    """Mute this process where another one, of those that torchrun started, speaks."""
    from bigmodel_cli.distributed import announced, voice

    with contextlib.suppress(SpecError):  # said by the command
        if not announced().first:
            voice.mute()


def say_alone(status: int) -> None:
    """Let the first process say a fault that all have; else this one says its own.

    Where a process ends, torchrun ends the others too, which may not have said anything yet.
    """
    from bigmodel_cli.distributed import voice

    said = voice.waiting()
    if voice.is_muted() and status not in (0, 130, 143) and said:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        time.sleep(ALONE)
        os.write(voice.real(), said)
