"""`bigmodel finetune`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bigmodel_cli.commands.fields import fields_as_options
from bigmodel_cli.commands.stdin import resolve_checkpoint
from bigmodel_cli.commands.training import TrainingOptions, resume_recorded, train_spec

if TYPE_CHECKING:
    from bigmodel_cli.overrides import Change
    from bigmodel_cli.spec import Spec


@fields_as_options
def finetune(
    source: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="CKPT",
            help=(
                "The checkpoint to start from; '-' reads the path from stdin. Left out with"
                " --resume --out RUN."
            ),
        ),
    ] = None,
    spec: Annotated[
        Path | None,
        typer.Argument(metavar="SPEC", help="A spec; sections left out come from the checkpoint."),
    ] = None,
    *,
    options: TrainingOptions,
) -> None:
    """Train from a checkpoint: a new head where the classes differ, all weights or only the head.

    Example: bigmodel finetune --from runs/mnist_cnn digits.yaml --set init.train=head
    """
    from bigmodel_cli import checkpoints
    from bigmodel_cli.overrides import Override
    from bigmodel_cli.spec import from_dict, load, of_checkpoint

    if source is None:
        resume_recorded(options, "finetune", "--from CKPT", spec)
        return
    path = checkpoints.find(resolve_checkpoint(source))
    base = checkpoints.read_spec(path)
    of_checkpoint(base, path)
    # Each run begins anew: its own start, and its own measurement of how to compute.
    measured = dict.fromkeys(("precision", "memory_format", "compile"), "auto")
    base = {**base, "init": {}, "train": {**base["train"], **measured}}

    def loaded(more: Sequence[Change]) -> Spec:
        changes = [*options.overrides, Override("init.checkpoint", str(path), "--from"), *more]
        if spec is None:
            return from_dict(base, changes, f"{path}/spec.yaml")
        return load(spec, changes, base)

    name = spec.stem if spec is not None else f"{path.parent.parent.name}-finetuned"
    train_spec(loaded, options, "finetune", name)
