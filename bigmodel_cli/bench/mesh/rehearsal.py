"""`--dry-run --mesh shard=64,tensor=8`: a training by many processes, on paper."""

from __future__ import annotations

from collections.abc import Callable

from bigmodel_cli.bench.clusters import Cluster
from bigmodel_cli.bench.doing import Opened
from bigmodel_cli.bench.mesh.advice import smaller
from bigmodel_cli.bench.mesh.axes import Axes
from bigmodel_cli.bench.plan import Plan, planned
from bigmodel_cli.console import quantity
from bigmodel_cli.errors import Unfit
from bigmodel_cli.spec import Spec
from bigmodel_cli.train.plan import without_collection
from bigmodel_cli.train.rehearsal import rehearsed
from bigmodel_cli.train.step import batch_norm_explained


def mesh_dry_run(
    spec: Spec, name: str, axes: Axes, on: str, device: str, show: Callable[[Plan], None]
) -> None:
    """Show what one process of the mesh would keep, send and wait for, each on a device that is
    called `on`, even where it does not fit; raises `Unfit` then, and before what training would.
    """
    run = rehearsed(spec)
    cluster = Cluster(axes.count, on)
    with without_collection(), batch_norm_explained():
        found = planned(name, Opened((name,), run.spec, run.data.info, None), cluster, device, axes)
    show(found)
    memory = found.memory
    if not memory.fits:
        raise Unfit(
            f"--mesh {axes}: a process needs about {quantity(max(memory.peak, memory.kept), 'B')},"
            f" and {on} has {quantity(memory.room, 'B')}; {smaller(found)}"
        )
    if memory.validation > memory.usable and "val" in run.data.splits:
        raise Unfit(
            f"--mesh {axes}: a validation, in which each process gathers all weights, needs"
            f" {quantity(memory.validation, 'B')}, and {on} has {quantity(memory.room, 'B')};"
            " leave the validation data out"
        )
