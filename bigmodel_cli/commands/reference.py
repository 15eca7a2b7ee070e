"""`bigmodel options`, `models` and `schema`: what a spec may say."""

from __future__ import annotations

from typing import Annotated

import typer

from bigmodel_cli.commands.shared import Json, Plugin, print_result


def _paths(incomplete: str) -> list[str]:
    from bigmodel_cli.options import description

    return [path for path in description()["paths"] if path.startswith(incomplete)]


def _types(ctx: typer.Context, incomplete: str) -> list[str]:
    from bigmodel_cli.options import description

    words = description()["paths"].get(ctx.params.get("path") or "", [])
    return [word for word in words if word.startswith(incomplete)]


def options(
    path: Annotated[
        str | None,
        typer.Argument(
            metavar="PATH",
            help="Where in a spec, e.g. train.optimizer; left out: its sections.",
            autocompletion=_paths,
        ),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Argument(
            metavar="TYPE",
            help="One of the types that may stand there, e.g. adamw.",
            autocompletion=_types,
        ),
    ] = None,
    plugin: Plugin = None,
    json: Json = False,
) -> None:
    """Show the options of a part of a spec: type, default, bounds, description, and an example.

    Example: bigmodel options model.blocks.mixer attention
    """
    from bigmodel_cli.options import print_options

    print_options(path or "", kind, json=json, plugins=bool(plugin))


def models(plugin: Plugin = None, json: Json = False) -> None:
    """List models, parts, tasks, data sources, optimizers, schedules and trackers, one line each.

    Example: bigmodel models
    """
    from bigmodel_cli.catalog import catalog, catalog_text

    print_result(catalog() if json else catalog_text())


def schema(plugin: Plugin = None) -> None:
    """Print the JSON Schema of a spec, for editors.

    Example: bigmodel schema > bigmodel.schema.json
    """
    import json

    from bigmodel_cli.catalog import schema as json_schema

    print_result(json.dumps(json_schema(), indent=2))
