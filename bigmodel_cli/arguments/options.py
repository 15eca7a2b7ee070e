"""Arguments of `bigmodel options`, and their completion."""

from __future__ import annotations

from typing import Annotated, Optional

import typer


def _paths(incomplete: str) -> list[str]:
    from bigmodel_cli.options import description

    return [path for path in description()["paths"] if path.startswith(incomplete)]


def _types(ctx: typer.Context, incomplete: str) -> list[str]:
    from bigmodel_cli.options import description

    words = description()["paths"].get(ctx.params.get("path") or "", [])
    return [word for word in words if word.startswith(incomplete)]


OptionPath = Annotated[
    Optional[str],  # noqa: UP045
    typer.Argument(
        metavar="PATH",
        help="Where in a spec, e.g. train.optimizer; left out: its sections.",
        show_default=False,
        autocompletion=_paths,
    ),
]
TypeName = Annotated[
    Optional[str],  # noqa: UP045
    typer.Argument(
        metavar="TYPE",
        help="One of the types that may stand there, e.g. adamw.",
        show_default=False,
        autocompletion=_types,
    ),
]
