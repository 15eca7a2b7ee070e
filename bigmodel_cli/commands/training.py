"""`bigmodel pretrain` and `bigmodel finetune`."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bigmodel_cli.commands.bought import gains_of, say_taken
from bigmodel_cli.commands.fields import fields_as_options
from bigmodel_cli.commands.processes import check_processes, start_processes
from bigmodel_cli.commands.seeds import print_seeds, seeds_of
from bigmodel_cli.commands.shared import print_result, refuse, resolve_checkpoint
from bigmodel_cli.commands.training_options import TrainingOptions
from bigmodel_cli.errors import SpecError

if TYPE_CHECKING:
    from bigmodel_cli.overrides import Change
    from bigmodel_cli.spec import Spec


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
        _resume_recorded(options, "pretrain", "a spec", None)
    else:
        _train_spec(
            lambda more: load(spec, [*options.overrides, *more]), options, "pretrain", spec.stem
        )


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

    Ends with what it bought: the new data and the old, before and after.

    Example: bigmodel finetune --from runs/mnist_cnn digits.yaml --set init.train=head
    """
    from bigmodel_cli.convert import hub, opening
    from bigmodel_cli.overrides import Override
    from bigmodel_cli.spec import from_dict, load, of_checkpoint
    from bigmodel_cli.taken_layers import with_depth

    if source is None:
        _resume_recorded(options, "finetune", "--from CKPT", spec)
        return
    if source == "-":
        check_processes(None, 0, {"--from -": True} if options.processes is None else {})
    given = resolve_checkpoint(source)
    path = opening.find(given)
    base = opening.read_spec(path)
    stored = of_checkpoint(base, path)
    # Each run begins anew: its own start, and its own measurement of how to compute.
    measured = dict.fromkeys(("precision", "memory_format", "compile"), "auto")
    base = {**base, "init": {}, "train": {**base["train"], **measured}}

    def loaded(more: Sequence[Change]) -> Spec:
        started = Override("init.checkpoint", hub.recorded(given, path), "--from")
        changes = [*options.overrides, started, *more]
        if spec is None:
            found = from_dict(base, changes, f"{path}/spec.yaml")
        else:
            found = load(spec, changes, base)
        return with_depth(found, stored, path)

    name = spec.stem if spec is not None else f"{opening.title(path)}-finetuned"
    _train_spec(loaded, options, "finetune", name, str(given) if source == "-" else None)


def _train_spec(
    load: Callable[[Sequence[Change]], Spec],
    options: TrainingOptions,
    command: str,
    name: str,
    source: str | None = None,
) -> None:
    """Train the spec that `load` gives with further changes, once or with each of --seeds; from
    `source`, where that came on stdin.
    """
    if options.seeds is None:
        _train(load(()), options, command, name, source)
        return
    check_processes(options.processes, options.restarts, {"--seeds": True})
    from bigmodel_cli.overrides import Override

    refuse("runs of several --seeds", {"--seed": options.seed is not None})
    numbers = seeds_of(options.seeds, options.overrides)
    specs = {number: load([Override("train.seed", number, "--seeds")]) for number in numbers}
    if options.dry_run:  # of one: they are alike
        _train(specs[numbers[0]], options, command, name)
        return
    _check_accept_data(options)
    from bigmodel_cli.train.signals import Signals

    with Signals() as signals:
        from bigmodel_cli.train.seeds import train_seeds

        outcomes = list(train_seeds(specs, options.request(command, name), signals))
    print_seeds(outcomes, options.json)


def _resume_recorded(
    options: TrainingOptions, command: str, missing: str, spec: Path | None
) -> None:
    """Resume a run from what it recorded, where the spec or checkpoint it began with is `missing`.

    Raises `SpecError` unless a run to resume is given.
    """
    if not (options.resume and options.out is not None) or options.dry_run:
        if spec is not None and os.path.isdir(spec):
            missing += f": write --from {shlex.quote(str(spec))}"
        raise SpecError(f"{command} needs {missing}, or a run to resume: --resume --out RUN")
    what = missing.removesuffix(" CKPT")
    refuse(f"a run that is resumed without {what}", {"SPEC": spec, "--seeds": options.seeds})
    _train(None, options, command, "")


def _train(
    spec: Spec | None,
    options: TrainingOptions,
    command: str,
    name: str,
    source: str | None = None,
) -> None:
    """Train, or with `dry_run` show what training would do, and print the result.

    `spec` is None when a run is resumed from what it recorded. After training, a signal no longer
    changes the exit status.
    """
    from bigmodel_cli.distributed import announced
    from bigmodel_cli.train.signals import Signals

    options.check_mesh()
    check_processes(options.processes, options.restarts, {"--dry-run": options.dry_run})
    if options.dry_run:
        refuse("a dry run", {"--resume": options.resume, "--accept-data": options.accept_data})
    else:
        _check_accept_data(options)
    if options.processes is not None and options.processes > 1:
        start_processes(options.processes, options.restarts, source)
    with Signals() as signals:
        from bigmodel_cli.train.rehearsal import dry_run
        from bigmodel_cli.train.session import train

        if options.dry_run and spec is not None:
            say_taken(options.out)
            if options.mesh is not None:
                options.dry_run_on_mesh(spec, name)
                return
            dry_run(
                spec,
                options.device,
                lambda plan: print_result(plan.to_json() if options.json else plan.to_text()),
            )
            return
        path = train(spec, options.request(command, name), signals)
        if not announced().first:
            return
        bought = gains_of(path, options.device, signals) if command == "finetune" else None
        measured = {"gains": bought.to_json()} if bought is not None else {}
        print_result({"checkpoint": str(path), **measured} if options.json else str(path))


def _check_accept_data(options: TrainingOptions) -> None:
    if not options.resume:
        refuse("a run that begins (without --resume)", {"--accept-data": options.accept_data})
