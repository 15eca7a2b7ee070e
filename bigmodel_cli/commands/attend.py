"""`bigmodel attend`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from bigmodel_cli.commands.shared import Checkpoint, Device, Json, Plugin
from bigmodel_cli.commands.stdin import resolve_checkpoint


def attend(
    checkpoint: Checkpoint,
    source: Annotated[str, typer.Argument(metavar="INPUT", help="A text, or an image's path.")],
    layer: Annotated[
        int | None,
        typer.Option(
            help=(
                "The layer shown, e.g. --layer 0. [default: the last in the terminal, all in the"
                " picture]"
            ),
        ),
    ] = None,
    head: Annotated[
        int | None,
        typer.Option(
            help=(
                "Its head, e.g. --head 2. [default: the mean of all in the terminal, each in the"
                " picture]"
            ),
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="The picture, e.g. --out heads.png or heads.pdf. [default: attend.png]"),
    ] = None,
    device: Device = "auto",
    json: Json = False,
    plugin: Plugin = None,
) -> None:
    """Show a decoder's attention, or the image region that decides a class; prints the picture's
    path.

    Example: bigmodel attend runs/quickstart "def main(argv):"
    """
    from bigmodel_cli.attend import attend as look
    from bigmodel_cli.console import has_colour, result, result_json, say_coloured
    from bigmodel_cli.loaded import load_checkpoint

    loaded = load_checkpoint(resolve_checkpoint(checkpoint), device)
    seen = look(loaded, source, out, layer, head, has_colour(sys.stderr))
    say_coloured(seen.text)
    if json:
        result_json({"picture": str(seen.picture), **seen.values})
    else:
        result(str(seen.picture))
