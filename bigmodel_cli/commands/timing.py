"""What `bigmodel bench` measures: kinds of work, batches, values of options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from bigmodel_cli.commands.shared import collect_overrides
from bigmodel_cli.errors import SpecError

if TYPE_CHECKING:
    from bigmodel_cli.bench import Request
    from bigmodel_cli.overrides import Change

COMPILE = {"on": "on", "off": "off", "both": "off,on"}


@dataclass(frozen=True)
class TimingOptions:
    """What is measured."""

    doing: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND",
            help=(
                "What is timed: training, inference, generation, evaluation or data (loading"
                " alone); several as --doing training,inference. [default: training]"
            ),
        ),
    ] = None
    batch: Annotated[
        str | None,
        typer.Option(
            metavar="N|auto",
            help=(
                "Samples at once, e.g. --batch 64; auto finds the largest that fits. Left out: as"
                " the spec says; of generation 1 and 16."
            ),
        ),
    ] = None
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=V1,V2",
            help=(
                "Time each value of an option (of several, each combination), e.g. --sweep"
                " train.batch_size=16,64."
            ),
        ),
    ] = None
    seconds: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            help=(
                "How long each network is timed, e.g. --seconds 10; 5 alone, and of several at most"
                " 20 each, until it is sure which is faster."
            ),
        ),
    ] = None
    precision: Annotated[
        str | None,
        typer.Option(
            help=(
                "auto, fp32, bf16 or fp16, e.g. --precision bf16, the same as --set"
                " train.precision=bf16; all: each of the last three."
            ),
        ),
    ] = None
    compile: Annotated[
        str | None,
        typer.Option(
            metavar="on|off|both",
            help="The same as --set train.compile=on, e.g. --compile both.",
        ),
    ] = None
    roof: Annotated[
        bool,
        typer.Option("--roof", help="Measure the machine's peaks anew; else they are kept a day."),
    ] = False

    @property
    def several(self) -> bool:
        """Whether each target is timed in several ways, which are compared."""
        return bool(self.sweep) or self.precision == "all" or self.compile == "both"

    def changes(self, set_: list[str] | None) -> list[Change]:
        """Those of a spec for one way to compute. Raises `SpecError`."""
        from bigmodel_cli.bench.kinds import KINDS
        from bigmodel_cli.overrides import Override

        if self.several or self.batch == "auto":
            raise SpecError("--plan: name one precision, one --compile and one --batch")
        found = collect_overrides(set_, self.precision)
        if self.compile is not None:
            found.append(Override("train.compile", self.compile, "--compile"))
        if self.batch is not None:
            found += KINDS["training"].of_batch(int(self.batch))
        return found

    def request(
        self, targets: Sequence[str], set_: list[str] | None, device: str, command: Sequence[str]
    ) -> Request:
        """What is asked for. Raises `SpecError`."""
        from bigmodel_cli.bench import Request
        from bigmodel_cli.device import PRECISIONS
        from bigmodel_cli.overrides import Override

        sweeps = list(self.sweep or [])
        if self.precision == "all":
            sweeps.append(f"train.precision={','.join(PRECISIONS)}")
        changes = collect_overrides(set_, None if self.precision == "all" else self.precision)
        if self.compile is not None and self.compile not in COMPILE:
            raise SpecError(f"--compile {self.compile}: not one of {', '.join(COMPILE)}")
        if self.compile == "both":
            sweeps.append(f"train.compile={COMPILE[self.compile]}")
        elif self.compile is not None:
            changes.append(Override("train.compile", self.compile, "--compile"))
        return Request(
            targets,
            changes,
            device,
            self.seconds,
            [name.strip() for text in self.doing or ["training"] for name in text.split(",")],
            command,
            batch=self.batch,
            sweeps=sweeps,
            roof=self.roof,
        )
