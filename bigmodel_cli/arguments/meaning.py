"""What the arguments stand for, and how a command ends: a path on stdin, shorthands of --set, a table or a JSON object."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any


def run_training(spec: Any, name: str, out: Path | None, resume: bool, device: str, dry_run: bool, json: bool) -> None:
    """Train, or with `dry_run` show what training would do, and print the result."""
    from bigmodel_cli.train.session import Request, train
    from bigmodel_cli.train.session import dry_run as plan

    if dry_run:
        findings = plan(spec, device)
        show(findings.to_json() if json else findings.to_text())
        return
    path = train(spec, Request(name, out, resume, device, ("bigmodel", *sys.argv[1:])))
    show({"checkpoint": str(path)} if json else str(path))


def all_overrides(values: list[str] | None, precision: str | None, seed: int | None) -> list[str]:
    """The --set overrides, with --precision and --seed as the overrides that they stand for."""
    named = (("train.precision", precision), ("train.seed", seed))
    return [*(values or []), *(f"{key}={value}" for key, value in named if value is not None)]


def refuse(where: str, options: Mapping[str, object]) -> None:
    """Raise `SpecError` for an option that is given where it would do nothing."""
    from bigmodel_cli.errors import SpecError

    given = [name for name, value in options.items() if value]
    if given:
        raise SpecError(f"{given[0]} has no effect on {where}; leave it out")


def named_checkpoint(text: str) -> Path:
    """The checkpoint's path; '-' is the first line of stdin, as a training command prints it. Raises `SpecError`."""
    if text != "-":
        return Path(text)
    from bigmodel_cli.errors import SpecError

    line = os.fsdecode(sys.stdin.buffer.readline().strip())  # what follows it stays for `predict`
    if not line:
        raise SpecError("'-': no checkpoint's path came on stdin; did the command before the pipe fail?")
    return Path(line)


def with_a_first(lines: Iterator[str]) -> Iterator[str]:
    """The lines of stdin, of which there is one at least. Raises `SpecError` where there is none."""
    from bigmodel_cli.errors import SpecError

    first = next(lines, None)
    if first is None:
        raise SpecError("no input is named, and stdin is empty; give inputs as arguments, or one on each line of stdin")
    return chain([first], lines)


def show(values: dict[str, Any] | str) -> None:
    """Print a command's result: text, or one JSON object."""
    from bigmodel_cli.console import result, result_json

    if isinstance(values, str):
        result(values)
    else:
        result_json(values)
