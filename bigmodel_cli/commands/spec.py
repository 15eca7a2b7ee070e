"""The commands about what a spec, or a part of your own, may say: `bigmodel schema`, `options`,
`models`, `check` and `init`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bigmodel_cli.commands.shared import Json, Plugin, print_result, refuse


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


def check(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Your Python file with parts; it is run.")
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


def init(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="The new spec's name; NAME.yaml is written.")
    ],
    like: Annotated[
        str | None,
        typer.Option(
            metavar="SAMPLE",
            help=(
                "What to start from: decoder, cnn, a file of sample_configs, or a task that one of"
                " them has. [default: decoder] With --data, its structure for your data."
            ),
        ),
    ] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PATH",
            help=(
                "Your data: a folder of images by class, a table, texts, sentences with tags"
                " (CoNLL), recordings; twice for two files of pairs."
            ),
        ),
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN", help="The table's column of text; twice for two."),
    ] = None,
    label: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="The table's column of labels, sets of labels or numbers; '' for none.",
        ),
    ] = None,
) -> None:
    """Write a commented spec for your own data, or like a sample; prints its path.

    Example: bigmodel init mine --data photos/ --like vit, or one of the two alone
    """
    from bigmodel_cli.catalog import write_sample, write_spec
    from bigmodel_cli.console import say

    if not data:
        refuse("init without --data", {"--text": text, "--label": label is not None})
        print_result(str(write_sample(name, like or "decoder")))
        return
    import shlex

    from bigmodel_cli.init import Wanted, draft, task_of, write_out

    made = draft(data, Wanted(tuple(text or ()), label, task_of(like) if like else ""))
    path = write_spec(name, lambda path: write_out(made, path, like))
    for note in made.notes:
        say(note)
    say(f"next: bigmodel pretrain {shlex.quote(str(path))}")
    say(f"then: bigmodel predict {shlex.quote(f'runs/{path.stem}')} {shlex.quote(made.input)}")
    print_result(str(path))
