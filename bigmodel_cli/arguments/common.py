"""Resolves arguments (a path on stdin, shorthands of --set) and prints results (a table or a JSON
object).
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bigmodel_cli.overrides import Change
    from bigmodel_cli.train.session import Request


@dataclass(frozen=True)
class Start:
    """How a training command was called, apart from its spec."""

    command: str
    name: str
    out: Path | None
    resume: bool
    device: str
    overrides: list[Change]
    accept_data: bool
    plugins: list[Path] | None
    dry_run: bool
    json: bool

    def request(self) -> Request:
        """The same as the training session's `Request`."""
        from bigmodel_cli.train.session import Request

        return Request(
            *(
                self.name,
                self.out,
                self.resume,
                self.device,
                tuple(self.overrides),
                self.accept_data,
            ),
            *(self.command, ("bigmodel", *sys.argv[1:]), tuple(self.plugins or ())),
        )


def run_training(spec: Any, start: Start) -> None:
    """Train, or with `dry_run` show what training would do, and print the result.

    `spec` is None when a run is resumed from what it recorded. After training, a signal no longer
    changes the exit status.
    """
    from bigmodel_cli.train.signals import Signals

    if start.dry_run:
        refuse("a dry run", {"--resume": start.resume, "--accept-data": start.accept_data})
    elif not start.resume:
        refuse("a run that begins (without --resume)", {"--accept-data": start.accept_data})
    with Signals() as signals:
        from bigmodel_cli.train.session import dry_run as plan
        from bigmodel_cli.train.session import train

        if start.dry_run:
            plan(
                spec,
                start.device,
                lambda found: print_result(found.to_json() if start.json else found.to_text()),
            )
            return
        path = train(spec, start.request(), signals)
        print_result({"checkpoint": str(path)} if start.json else str(path))


def need_run(
    command: str, spec: Path | None, out: Path | None, resume: bool, dry_run: bool
) -> None:
    """Raise `SpecError` unless a run to resume is given, where the spec or checkpoint is left
    out.
    """
    from bigmodel_cli.errors import SpecError

    if not (resume and out is not None) or dry_run:
        missing = "a spec" if command == "pretrain" else "--from CKPT"
        if spec is not None and os.path.isdir(spec):
            missing += f": write --from {shlex.quote(str(spec))}"
        raise SpecError(
            f"{command} needs {missing}; only a run that is gone on with, by --resume --out RUN,"
            " knows what it began with"
        )


def collect_overrides(
    values: list[str] | None, precision: str | None, seed: int | None
) -> list[Change]:
    """The --set overrides, with --precision and --seed as the overrides that they abbreviate."""
    from bigmodel_cli.overrides import Override

    named = (("precision", precision), ("seed", seed))
    return [
        *(values or []),
        *(Override(f"train.{n}", v, f"--{n}") for n, v in named if v is not None),
    ]


def refuse(where: str, options: Mapping[str, object]) -> None:
    """Raise `SpecError` for an option that is given where it has no effect."""
    from bigmodel_cli.errors import SpecError

    given = [name for name, value in options.items() if value]
    if given:
        raise SpecError(f"{given[0]} has no effect on {where}; leave it out")


def resolve_checkpoint(text: str, with_inputs: bool = False) -> Path:
    """The checkpoint's path; '-' reads it from the first line of stdin.

    Raises `SpecError`.

    The lines after it are the command's inputs, or else other checkpoints (of --seeds), which are
    reported as left out.
    """
    if text != "-":
        return Path(text)
    from bigmodel_cli.console import say
    from bigmodel_cli.errors import SpecError

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
    from bigmodel_cli.errors import SpecError

    first = next(lines, None)
    if first is None:
        raise SpecError(
            "no input is named, and stdin is empty; give inputs as arguments, or one on each line"
            " of stdin"
        )
    return chain([first], lines)


def print_result(values: dict[str, Any] | str) -> None:
    """Print a command's result: text, or one JSON object."""
    from bigmodel_cli.console import result, result_json

    if isinstance(values, str):
        result(values)
    else:
        result_json(values)
