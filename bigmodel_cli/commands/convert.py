"""`bigmodel import` and `bigmodel export`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from bigmodel_cli.commands.shared import (
    Checkpoint,
    Json,
    Plugin,
    print_result,
    resolve_checkpoint,
)


def export(
    checkpoint: Checkpoint,
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="The folder to write, which is not there yet.")
    ],
    to: Annotated[
        str,
        typer.Option(
            help=(
                "The form: hf (transformers), adapter (PEFT), gguf, onnx, timm or torchvision, e.g."
                " --to onnx."
            )
        ),
    ] = "hf",
    results: Annotated[
        Path | None,
        typer.Option(
            help=(
                "What bigmodel eval --json printed of the checkpoint, for the card of hf and onnx,"
                " e.g. --results eval.json."
            )
        ),
    ] = None,
    plugin: Plugin = None,
    json: Json = False,
) -> None:
    """Write a checkpoint as files that others open, with a model card; prints the folder's path.

    Example: bigmodel export runs/sst2 --to hf sst2-hf
    """
    from bigmodel_cli.export import export as write

    command = shlex.join(("bigmodel", *sys.argv[1:]))
    path = write(resolve_checkpoint(checkpoint), to, out, command, results)
    print_result({"folder": str(path)} if json else str(path))


def import_(
    checkpoint: Checkpoint,
    out: Annotated[
        Path | None, typer.Option(help="A file for the spec, e.g. --out llama.yaml.")
    ] = None,
) -> None:
    """Print the spec of a published model, a folder or hf://org/name, as YAML to train from.

    Example: bigmodel import hf://org/name --out mine.yaml, then: bigmodel finetune --from
    hf://org/name mine.yaml
    """
    from bigmodel_cli.imported import imported_spec
    from bigmodel_cli.outputs import check_output, write_output

    path = resolve_checkpoint(checkpoint)
    if out is not None:
        check_output(out, "--out")
    text = imported_spec(path)
    if out is None:
        print_result(text.rstrip("\n"))
    else:
        write_output(out, [text.encode()])
        print_result(str(out))
