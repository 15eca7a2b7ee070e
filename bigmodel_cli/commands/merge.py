"""`bigmodel merge`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bigmodel_cli.commands.shared import (
    Device,
    Json,
    Plugin,
    all_of_stdin,
    print_result,
    refuse,
)
from bigmodel_cli.errors import SpecError

DTYPES = ("fp32", "bf16", "fp16")


Checkpoints = Annotated[
    list[str],
    typer.Argument(
        metavar="CKPT",
        help=(
            "A checkpoint or run directory with an adapter; or several without, to average; '-'"
            " reads their paths from stdin."
        ),
    ),
]
Out = Annotated[Path, typer.Option(help="The new checkpoint, a folder, e.g. --out merged/step-1.")]
Inputs = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        metavar="INPUT",
        help=(
            "A text or path to compare both models on, as for predict, e.g. --input 'To be'; may be"
            " repeated. [default: 16 random ones]"
        ),
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        help=(
            "fp32, bf16 or fp16: what the weights are rounded to, once, e.g. --dtype bf16; they are"
            " stored as fp32, and exported in it without further loss. [default: fp32]"
        )
    ),
]
Bound = Annotated[
    float | None,
    typer.Option(
        min=0,
        help=(
            "Largest difference of logits, as a part of the largest logit, above which nothing is"
            " written, e.g. --bound 0.01. [default: 1e-4; bf16 0.03, fp16 0.005]"
        ),
    ),
]


def merge(
    checkpoints: Checkpoints,
    out: Out,
    inputs: Inputs = None,
    dtype: Dtype = None,
    bound: Bound = None,
    device: Device = "auto",
    plugin: Plugin = None,
    json: Json = False,
) -> None:
    """Add an adapter to its weights, or average several checkpoints; prints the new one's path.

    With one: logits before and after are compared, and the result is kept in its state.json. With
    several, finetuned from the same weights: their mean, measured beside each of them on the
    validation data.

    Example: bigmodel merge runs/sst2_lora --out runs/sst2_merged, or: bigmodel finetune --from
    CKPT spec.yaml --seeds 0,1,2,3 | bigmodel merge - --out runs/average
    """
    from bigmodel_cli.console import say
    from bigmodel_cli.loaded import load_checkpoint
    from bigmodel_cli.merging import merge as merged

    if dtype is not None and dtype not in DTYPES:
        raise SpecError(f"--dtype: {dtype!r} is not one of {', '.join(DTYPES)}")
    paths = [Path(name) for name in all_of_stdin(checkpoints)]
    if len(paths) > 1:
        from bigmodel_cli.averaging import average

        refuse("an average", {"--input": inputs, "--dtype": dtype, "--bound": bound is not None})
        path, found = average(paths, out, device)
        say(found.to_text())
        print_result({"checkpoint": str(path), **found.to_json()} if json else str(path))
        return
    refuse("one checkpoint", {"--device": device != "auto"})
    loaded = load_checkpoint(paths[0], "cpu", tell=lambda _: None)
    path, certificate = merged(loaded, out, inputs or [], dtype or DTYPES[0], bound)
    say(certificate.to_text())
    print_result({"checkpoint": str(path), **vars(certificate)} if json else str(path))
