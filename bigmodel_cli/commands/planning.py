"""`bigmodel bench --plan`: the step of a spec on devices that need not be there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from bigmodel_cli.commands.shared import print_result, refuse
from bigmodel_cli.errors import SpecError

if TYPE_CHECKING:
    from bigmodel_cli.overrides import Change


@dataclass(frozen=True)
class PlanningOptions:
    """On what a step is planned."""

    plan: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NxNAME",
            help=(
                "Measure nothing: the time, memory and communication of a training step on so many"
                " devices, on paper, e.g. --plan 8xh100,64xh100 or 1xthis (this machine); also"
                " h200, b200, a100, a100-40, mi300x, l40s, rtx4090, rtx3090, v100, t4."
            ),
        ),
    ] = None

    def run(
        self,
        targets: Sequence[str],
        changes: Sequence[Change],
        device: str,
        json: bool,
        roof: bool,
        others: Mapping[str, object],
    ) -> None:
        """Print the plans; `others` are options of `bench` that have no effect here."""
        from bigmodel_cli.bench.clusters import cluster
        from bigmodel_cli.bench.plan import plans
        from bigmodel_cli.bench.plan_report import to_text

        refuse("--plan", others)
        clusters = [cluster(one) for text in self.plan or () for one in text.split(",")]
        if len(set(clusters)) < len(clusters):
            raise SpecError("--plan: the same devices are named twice")
        found = plans(targets, changes, clusters, device, roof)
        values = {"schema_version": 1, "plans": [plan.to_json() for plan in found]}
        print_result(values if json else to_text(found))
