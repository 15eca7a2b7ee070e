"""`bigmodel init`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bigmodel_cli.commands.shared import print_result, refuse


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
                " them has; decoder when left out."
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

    Example: bigmodel init mine --data photos/, or: bigmodel init mine --like seq2seq
    """
    from bigmodel_cli.catalog import write_sample, write_spec
    from bigmodel_cli.console import say

    if not data:
        refuse("init without --data", {"--text": text, "--label": label is not None})
        print_result(str(write_sample(name, like or "decoder")))
        return
    refuse("init with --data, which decides what the spec is like", {"--like": like})
    import shlex

    from bigmodel_cli.init import Wanted, draft, write_out

    made = draft(data, Wanted(tuple(text or ()), label))
    path = write_spec(name, lambda path: write_out(made, path))
    for note in made.notes:
        say(note)
    say(f"next: bigmodel pretrain {shlex.quote(str(path))}")
    say(f"then: bigmodel predict {shlex.quote(f'runs/{path.stem}')} {shlex.quote(made.input)}")
    print_result(str(path))
