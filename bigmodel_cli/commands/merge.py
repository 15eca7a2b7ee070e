"""`bigmodel merge`."""

from __future__ import annotations

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
from bigmodel_cli.errors import SpecError

DTYPES = ("fp32", "bf16", "fp16")


def merge(
    checkpoint: Checkpoint,
    out: Annotated[
        Path, typer.Option(help="The new checkpoint, a folder, e.g. --out merged/step-1.")
    ],
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            help=(
                "A text or path to compare both models on, as for predict, e.g. --input 'To be';"
                " may be repeated. [default: 16 random ones]"
            ),
        ),
    ] = None,
    dtype: Annotated[
        str,
        typer.Option(
            help=(
                "fp32, bf16 or fp16: what the weights are rounded to, once, e.g. --dtype bf16; they"
                " are stored as fp32, and exported in it without further loss."
            )
        ),
    ] = "fp32",
    bound: Annotated[
        float | None,
        typer.Option(
            min=0,
            help=(
                "Largest difference of logits, as a part of the largest logit, above which nothing"
                " is written, e.g. --bound 0.01. [default: 1e-4; bf16 0.03, fp16 0.005]"
            ),
        ),
    ] = None,
    plugin: Plugin = None,
    json: Json = False,
) -> None:
    """Add a checkpoint's adapter to its weights; prints the new checkpoint's path.

    Logits before and after are compared, and the result is kept in its state.json.

    Example: bigmodel merge runs/sst2_lora --out runs/sst2_merged
    """
    from bigmodel_cli.console import say
    from bigmodel_cli.loaded import load_checkpoint
    from bigmodel_cli.merging import merge as merged

    if dtype not in DTYPES:
        raise SpecError(f"--dtype: {dtype!r} is not one of {', '.join(DTYPES)}")
    loaded = load_checkpoint(resolve_checkpoint(checkpoint), "cpu", tell=lambda _: None)
    path, certificate = merged(loaded, out, inputs or [], dtype, bound)
    say(certificate.to_text())
    print_result({"checkpoint": str(path), **vars(certificate)} if json else str(path))
