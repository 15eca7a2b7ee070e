"""`bigmodel check`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bigmodel_cli.commands.shared import Json, print_result


def check(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A Python file with parts. It is run.")
    ],
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="OPTION=VALUE",
            help="An option of the parts to try them with, e.g. --set heads=4.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Test each part in a Python file: shapes, causality, caches, padding, gradients, saving.

    Optimizers and schedules are tested too; for models, tasks, data and trackers only what their
    table requires.

    Example: bigmodel check my_part.py --set heads=4
    """
    from bigmodel_cli.plugins import name_plugins

    name_plugins([file], option="")  # before the tables are joined
    from bigmodel_cli.errors import SpecError
    from bigmodel_cli.promises.command import check_plugin, checked_text

    parts = check_plugin(file, set_ or [])
    print_result({"parts": [part.to_json() for part in parts]} if json else checked_text(parts))
    broken = [f"{part.type}: {promise}" for part in parts for promise in part.broken]
    if broken:
        raise SpecError(f"{file}: not kept: {', '.join(broken)}")
