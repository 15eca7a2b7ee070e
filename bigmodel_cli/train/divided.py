"""How the processes of a run share the weights: each has all of them, or a part."""

from __future__ import annotations

from bigmodel_cli.assemble import Later, outline
from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.console import listed, quantity, say
from bigmodel_cli.data import Split
from bigmodel_cli.device import is_cpu, total_memory
from bigmodel_cli.distributed import most, neighbours, share_samples, told, world
from bigmodel_cli.errors import SpecError
from bigmodel_cli.expert_parallel import ExpertParallel
from bigmodel_cli.lazy import torch
from bigmodel_cli.models import Model
from bigmodel_cli.recipe import TrainOptions
from bigmodel_cli.sharded_shares import ShardedShares
from bigmodel_cli.sharding import Mesh, Sharding
from bigmodel_cli.shares import says_so
from bigmodel_cli.spec import Spec
from bigmodel_cli.tensor_parallel import TensorParallel
from bigmodel_cli.train.plan import memory_of


def mesh_of(spec: Spec, info: DatasetInfo, split: Split, device: torch.device) -> Mesh:
    """How this run's processes share the weights; what that is, and why, is said.

    Raises `SpecError` where `train.parallel` is not for as many processes, or for what the spec
    asks for.
    """
    options, count = spec.train.parallel, world().size
    found, why = options.division(count), "train.parallel"
    if found is None:
        memory = memory_of(spec, info, outline(spec, info), split.longest_rows())
        room = _room(device)
        fits = not most(int(memory.peak > room))  # machines may differ
        found = (count, 1) if fits else (1, count)
        least = "" if fits or memory.peak > room else ", or less on another machine"
        why = (
            f"about {quantity(memory.peak, 'B')} of weights, gradients, optimizer state and"
            f" activations {'fit' if fits else 'do not fit'} the {quantity(room, 'B')} of a process"
            f"{least}"
        )
    mesh = checked_mesh(spec, *found, offload=options.offload and not is_cpu(device))
    share_samples(mesh.tensor)
    if count > 1:
        copies = f"{mesh.replicate} {'copies' if mesh.replicate > 1 else 'copy'} of the weights"
        each = "each " if mesh.replicate > 1 else ""
        among = mesh.shard * mesh.tensor
        part = f", {each}divided among {among} processes" if among > 1 else ""
        if mesh.experts > 1:
            part = f", whose experts are over {mesh.experts} processes each"
        say(f"parallel: {copies}{part} ({why})")
    if options.offload and (mesh.shard == 1 or is_cpu(device)):
        why = "are not divided among processes" if mesh.shard == 1 else "are in its memory anyway"
        say(f"train.parallel.offload changes nothing: the weights {why}")
    return mesh


def checked_mesh(spec: Spec, replicate: int, shard: int, *, offload: bool = False) -> Mesh:
    """The mesh of so many copies, each divided among so many, with `train.parallel`'s other axes.

    Raises `SpecError` for what is not done where processes keep or compute parts so.
    """
    options = spec.train.parallel
    mesh = Mesh(
        replicate,
        shard,
        options.reshard,
        options.tensor,
        reduce=options.reduce,
        offload=offload,
        experts=options.experts,
    )
    if mesh.sharded:
        _check(spec, replicate * shard * options.tensor)
    if mesh.tensor > 1:
        _check_divided_parts(spec, "tensor", "divides heads and hidden units")
    if mesh.experts > 1:
        _check_divided_parts(spec, "experts", "divides the experts")
        _check_experts(mesh)
    return mesh


def _room(device: torch.device) -> int:
    """Bytes of a process: the CPU's memory is that of all on its machine."""
    return total_memory(device) // (neighbours() if is_cpu(device) else 1)


def room_of(mesh: Mesh, device: torch.device) -> int:
    """Bytes of the processes that divide one copy of the weights."""
    return _room(device) * mesh.shard * mesh.tensor


def _check(spec: Spec, processes: int) -> None:
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


def in_parts(
    model: Model, mesh: Mesh, device: torch.device, later: Later | None
) -> Sharding | TensorParallel:
    """Leave this process its part of the weights, on its device; what `later` has to do to them is
    done when they are divided.

    Raises `SpecError` where they cannot be divided so.
    """
    if mesh.experts > 1:
        return ExpertParallel(model, mesh.experts, device)
    if mesh.tensor > 1:
        say_whole(model)
        if mesh.shard > 1:
            return ShardedShares(model, type(model).groups(model), mesh, device)
        return TensorParallel(model, mesh.tensor, device)
    # torchvision's ResNets have a number of that name
    groups = type(model).groups(model)
    if later is None:
        return Sharding(model, groups, mesh, device)
    sharding = Sharding(model, groups, mesh, device, later.fill)
    if later.load is not None:
        later.load(model, {**sharding.kept(), **dict(model.named_buffers())})
    return sharding


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


def unmeasured(options: TrainOptions, device: torch.device) -> TrainOptions:
    """The options without any auto, for a model that no process has in whole to measure with: by
    the first one's device.
    """
    half = device.type == "cuda" and torch.cuda.is_bf16_supported()
    chosen = {
        "precision": "bf16" if half else "fp32",
        "memory_format": "contiguous",
        "compile": "off",
    }
    values = dict(options)
    chosen = told({n: v for n, v in chosen.items() if values[n] == "auto"})
    return options.model_copy(update=chosen)
