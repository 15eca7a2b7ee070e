"""`bigmodel pretrain`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bigmodel_cli.commands.fields import fields_as_options
from bigmodel_cli.commands.training import TrainingOptions, resume_recorded, train_spec


@fields_as_options
def pretrain(
    spec: Annotated[
        Path | None,
        typer.Argument(
            metavar="SPEC", help="The spec, a YAML file; left out with --resume --out RUN."
        ),
    ] = None,
    *,
    options: TrainingOptions,
) -> None:
    """Train a network from initial weights; prints the checkpoint's path.

    Example: bigmodel pretrain sample_configs/quickstart.yaml --set train.steps=500
    """
    from bigmodel_cli.spec import load

    if spec is None:
        resume_recorded(options, "pretrain", "a spec", None)
    else:
        train_spec(
            lambda more: load(spec, [*options.overrides, *more]), options, "pretrain", spec.stem
        )
