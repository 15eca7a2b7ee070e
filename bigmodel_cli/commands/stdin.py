"""Arguments that are read from stdin: a checkpoint's path, names, inputs."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from bigmodel_cli.console import say
from bigmodel_cli.errors import SpecError


def resolve_checkpoint(text: str, with_inputs: bool = False) -> Path:
    """The checkpoint's path; '-' reads it from the first line of stdin.

    The lines after it are the command's inputs, or else other checkpoints (of --seeds), which are
    reported as left out. Raises `SpecError`.
    """
    if text != "-":
        return Path(text)
    line = os.fsdecode(sys.stdin.buffer.readline().strip())  # what follows it stays for `predict`
    if not line:
        raise SpecError(
            "'-': no checkpoint's path came on stdin; did the command before the pipe fail?"
        )
    if (
        not with_inputs
        and not sys.stdin.isatty()
        and (rest := sys.stdin.buffer.read().strip().splitlines())
    ):
        say(
            f"note: '-' is the first line of stdin; {len(rest)} more are left out (| xargs -n 1"
            " takes each by itself)"
        )
    return Path(line)


def all_of_stdin(names: list[str]) -> list[str]:
    """The names, where '-' stands for the lines of stdin, at least one.

    Raises `SpecError`.
    """
    if "-" not in names:
        return names
    lines = [os.fsdecode(line) for line in sys.stdin.buffer.read().splitlines() if line.strip()]
    return [
        name for given in names for name in (with_a_first(iter(lines)) if given == "-" else [given])
    ]


def with_a_first(lines: Iterator[str]) -> Iterator[str]:
    """The lines of stdin.

    Raises `SpecError` where there is none.
    """
    first = next(lines, None)
    if first is None:
        raise SpecError(
            "no input is named, and stdin is empty; give inputs as arguments, or one on each line"
            " of stdin"
        )
    return chain([first], lines)
