"""The options of `bigmodel pretrain` and `bigmodel finetune`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bigmodel_cli.commands.processes import Processes, Restarts
from bigmodel_cli.commands.shared import (
    Device,
    Json,
    Plugin,
    Precision,
    Set,
    collect_overrides,
    print_result,
    refuse,
)

if TYPE_CHECKING:
    from bigmodel_cli.bench.plan import Plan
    from bigmodel_cli.overrides import Change
    from bigmodel_cli.spec import Spec
    from bigmodel_cli.train.request import Request


@dataclass(frozen=True)
class TrainingOptions:
    """The options of both commands."""

    set_: Set = None
    plugin: Plugin = None
    out: Annotated[
        Path | None,
        typer.Option(
            help=(
                "The run's directory, e.g. --out runs/try1. [default: runs/NAME, the first that is"
                " free]"
            ),
        ),
    ] = None
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Resume the run from its last checkpoint, exactly."),
    ] = False
    accept_data: Annotated[
        bool,
        typer.Option(
            "--accept-data",
            help="With --resume: accept that the data has changed; the run records it.",
        ),
    ] = False
    device: Device = "auto"
    precision: Precision = None
    seed: Annotated[
        int | None,
        typer.Option(help="The run's seed, e.g. --seed 1; the same as --set train.seed=1."),
    ] = None
    seeds: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,...",
            help=(
                "Train a run for each seed, NAME-seed0 and so on, e.g. --seeds 0,1,2; with --resume"
                " continue those that are not finished. Prints a table with mean and standard"
                " deviation; in a pipe it is on stderr, and stdout has the checkpoints' paths, one"
                " a line (| xargs -n 1 bigmodel eval)."
            ),
        ),
    ] = None
    processes: Processes = None
    restarts: Restarts = 0
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help=(
                "Show shapes, parameters, FLOPs, memory and steps, and refuse what the start would;"
                " train nothing."
            ),
        ),
    ] = False
    mesh: Annotated[
        str | None,
        typer.Option(
            metavar="AXIS=N,...",
            help=(
                "With --dry-run: the memory, communication and step time of one of many processes,"
                " e.g. --mesh shard=64,tensor=8; also replicate and context. An axis that is not"
                " named has one process, whatever train.parallel says."
            ),
        ),
    ] = None
    on: Annotated[
        str | None,
        typer.Option(
            metavar="DEVICE",
            help=(
                "With --mesh: a device for each process, by its published rates, e.g. --on h100, or"
                " another one of bench --plan. [default: this machine's, at its measured peaks]"
            ),
        ),
    ] = None
    csv: Annotated[
        Path | None, typer.Option(help="With --mesh: save its figures, e.g. --csv mesh.csv.")
    ] = None
    json: Json = False

    @property
    def overrides(self) -> list[Change]:
        """The options of the spec that are overridden."""
        return collect_overrides(self.set_, self.precision, self.seed)

    def check_mesh(self) -> None:
        """Raise `SpecError` for options of --mesh where they have no effect."""
        own = {"--on": self.on, "--csv": self.csv}
        if not self.dry_run:
            refuse("a training; it is for --dry-run", {"--mesh": self.mesh, **own})
        elif self.mesh is None:
            refuse("a dry run without --mesh", own)

    def dry_run_on_mesh(self, spec: Spec, name: str) -> None:
        """Show what the spec takes on the mesh."""
        from bigmodel_cli.bench.clusters import THIS, checked_name
        from bigmodel_cli.bench.mesh.axes import axes_of
        from bigmodel_cli.bench.mesh.rehearsal import mesh_dry_run
        from bigmodel_cli.bench.mesh.report import write_csv
        from bigmodel_cli.bench.plan_report import to_text_of_mesh

        def show(plan: Plan) -> None:
            values = {"schema_version": 1, **plan.to_json()}
            print_result(values if self.json else to_text_of_mesh(plan))
            if self.csv is not None:
                write_csv(plan, self.csv)

        axes, on = axes_of(self.mesh or ""), checked_name(self.on or THIS, "--on")
        mesh_dry_run(spec, name, axes, on, self.device, show)

    def request(self, command: str, name: str) -> Request:
        """What the training session needs to know of them, for a run called `name`."""
        from bigmodel_cli.train.request import Request

        return Request(
            name=name,
            out=self.out,
            resume=self.resume,
            device=self.device,
            overrides=tuple(self.overrides),
            accept_data=self.accept_data,
            command=command,
            words=("bigmodel", *sys.argv[1:]),
            plugins=tuple(self.plugin or ()),
        )
