"""What is not done where processes share weights, parts of a network or the positions of a row."""

from __future__ import annotations

from bigmodel_cli.console import listed, say
from bigmodel_cli.context_parallel import row_faults
from bigmodel_cli.errors import SpecError
from bigmodel_cli.models import Model
from bigmodel_cli.parts.contract import fault_in_rows
from bigmodel_cli.sharding import Mesh
from bigmodel_cli.shares import says_so
from bigmodel_cli.spec import Spec
from bigmodel_cli.tasks import Task


def check_mesh(spec: Spec, mesh: Mesh, processes: int) -> None:
    """Raise `SpecError` for what is not done where so many processes share a training so."""
    if mesh.sharded:
        _check_weights(spec, processes)
    if mesh.tensor > 1:
        _check_divided_parts(spec, "tensor", "divides heads and hidden units")
    if mesh.experts > 1:
        _check_divided_parts(spec, "experts", "divides the experts")
        _check_experts(mesh)
    if mesh.context > 1:
        _check_context(spec, mesh)


def _check_weights(spec: Spec, processes: int) -> None:
    """Raise `SpecError` for what is not done with weights in parts."""
    train = spec.train
    what = {
        "train.deterministic: true": train.deterministic,
        "train.compile: on": train.compile == "on",
        "adapter.base: weights in 4 bits": spec.adapter is not None
        and spec.adapter.base is not None,
    }
    for name, asked in what.items():
        if asked:
            raise SpecError(
                f"{name} is not for weights that are divided among processes; leave it out, or set"
                f" train.parallel.replicate={processes}"
            )


def _check_divided_parts(spec: Spec, option: str, does: str) -> None:
    """Raise `SpecError` for what is not done where parts are divided."""
    for name, asked in {"adapter": spec.adapter, "distill": spec.distill}.items():
        if asked is not None:
            raise SpecError(
                f"{name} does not go with train.parallel.{option}, which {does}; leave it out, or"
                f" set train.parallel.{option}=1"
            )


def _check_experts(mesh: Mesh) -> None:
    """Raise `SpecError` where experts cannot be over that many of the processes."""
    if mesh.shard > 1 or mesh.tensor > 1:
        raise SpecError(
            "train.parallel.experts goes with copies of the other weights (replicate) alone; set"
            " shard and tensor to 1, or experts to 1"
        )
    if mesh.replicate % mesh.experts:
        raise SpecError(
            f"train.parallel.experts: {mesh.experts:,} does not divide {mesh.replicate:,}, the"
            " number of processes; start a multiple of it (--processes), or set it to 1"
        )


def _check_context(spec: Spec, mesh: Mesh) -> None:
    """Raise `SpecError` for what is not done where positions of a row are divided."""
    train = spec.train
    what = {
        "train.deterministic: true": train.deterministic,
        "train.compile: on": train.compile == "on",
        "distill": spec.distill is not None,
        "train.parallel.experts": mesh.experts > 1,
        "train.parallel.shard with tensor": mesh.shard > 1 and mesh.tensor > 1,
    }
    for name, asked in what.items():
        if asked:
            raise SpecError(
                f"{name} does not go with train.parallel.context, which divides sequences among"
                " processes; leave it out, or set train.parallel.context=1"
            )


def check_rows(model: Model, task: Task) -> None:
    """Raise `SpecError` where positions of a row cannot be divided among processes."""
    faults = row_faults(model)
    if fault_in_rows(task) is None:
        faults.insert(0, f"task.type: {task.name} has no loss that is a sum over positions")
    if faults:
        rest = "set train.parallel.context=1, or take attention, and causal_lm or masked_lm"
        raise SpecError("\n".join(f"train.parallel.context: {fault}; {rest}" for fault in faults))


def say_whole(model: Model) -> None:
    """Say which parts do not say how they are divided. Raises `SpecError` where none does."""
    parts = model.parts()
    kept = [name for name, part in parts.items() if not any(map(says_so, part.modules()))]
    if len(kept) == len(parts):
        raise SpecError(
            "train.parallel.tensor: no part of this network says how its weights are divided;"
            " set it to 1, or take train.parallel.shard"
        )
    if kept:
        say(f"parallel: {listed(kept, 3)} not divided: each process computes all of it")
