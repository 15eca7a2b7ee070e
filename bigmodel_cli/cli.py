"""The command line: its commands, in the order of its help."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from bigmodel_cli import __version__
from bigmodel_cli.commands.attend import attend
from bigmodel_cli.commands.convert import export, import_
from bigmodel_cli.commands.evaluate import evaluate
from bigmodel_cli.commands.inspect import bench
from bigmodel_cli.commands.merge import merge
from bigmodel_cli.commands.pack import pack
from bigmodel_cli.commands.predict import predict
from bigmodel_cli.commands.runs import runs
from bigmodel_cli.commands.shared import print_result
from bigmodel_cli.commands.spec import check, init, models, options, schema
from bigmodel_cli.commands.training import finetune, pretrain

app = typer.Typer(
    name="bigmodel",
    help=(
        "The workbench for the structure of AI models: write a network as YAML, then pretrain,"
        " finetune, evaluate, look inside and measure it."
    ),
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
USAGE_FAULT: Any = typer.BadParameter.__mro__[2]
"""What Typer raises for a wrong command line: the base class, which newer versions keep under
another name.
"""


def _print_version(wanted: bool) -> None:
    if wanted:
        print_result(__version__)
        raise typer.Exit


@app.callback()
def main(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show a traceback for expected errors too.")
    ] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version and leave.", is_eager=True, callback=_print_version
        ),
    ] = False,
) -> None:
    """Options that every command shares.

    `--debug` and `--version` have taken effect before this runs.
    """


COMMANDS: dict[str, tuple[Callable[..., None], str]] = {
    "pretrain": (pretrain, "Train a network from initial weights."),
    "finetune": (finetune, "Train from a checkpoint, and say what that bought."),
    "eval": (evaluate, "Measure a checkpoint on a whole split, with intervals."),
    "predict": (predict, "Classify, tag, transcribe, translate, or continue texts."),
    "attend": (attend, "Show what each head looks at, and which region decides."),
    "bench": (bench, "Time training or other work, beside the machine's limit."),
    "import": (import_, "Print the spec of a published model."),
    "export": (export, "Write a checkpoint as files that others open."),
    "merge": (merge, "Add an adapter to its weights, or average checkpoints."),
    "pack": (pack, "Write texts as shards of tokens, for data of any size."),
    "runs": (runs, "List runs, or compare some."),
    "schema": (schema, "Print the JSON Schema of a spec, for editors."),
    "options": (options, "Show the options of a part of a spec."),
    "models": (models, "List all types that a spec may name."),
    "check": (check, "Test the parts in a Python file of yours."),
    "init": (init, "Write a commented spec for your data, or like a sample."),
}
"""Each command, and what it does in a line of at most 68 columns, for the list of them all."""
for name, (command, line) in COMMANDS.items():
    app.command(name, short_help=line)(command)
