"""How the processes of a run share the weights: each has all of them, or a part."""

from __future__ import annotations

from bigmodel_cli.assemble import Later, outline
from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.console import quantity, say
from bigmodel_cli.data import Split
from bigmodel_cli.device import is_cpu, total_memory
from bigmodel_cli.distributed import most, neighbours, share_samples, told, world
from bigmodel_cli.expert_parallel import ExpertParallel
from bigmodel_cli.lazy import torch
from bigmodel_cli.models import Model
from bigmodel_cli.recipe import TrainOptions
from bigmodel_cli.sharded_shares import ShardedShares
from bigmodel_cli.sharding import Mesh, Sharding
from bigmodel_cli.spec import Spec
from bigmodel_cli.tensor_parallel import TensorParallel
from bigmodel_cli.train.divisible import check_mesh, say_whole
from bigmodel_cli.train.plan import memory_of


def mesh_of(spec: Spec, info: DatasetInfo, split: Split, device: torch.device) -> Mesh:
    """How this run's processes share the weights; what that is, and why, is said.

    Raises `SpecError` where `train.parallel` is not for as many processes, or for what the spec
    asks for.
    """
    options, count = spec.train.parallel, world().size
    found, why = options.division(count), "train.parallel"
    parts = found is not None and found[1] > 1
    if found is None:
        memory = memory_of(spec, info, outline(spec, info), split.longest_rows())
        peak, rest = memory.state + memory.activations // options.context, count // options.context
        room = _room(device)
        fits = not most(int(peak > room))  # machines may differ
        found, parts = ((rest, 1) if fits else (1, rest)), not fits
        least = "" if fits or peak > room else ", or less on another machine"
        why = (
            f"about {quantity(peak, 'B')} of weights, gradients, optimizer state and"
            f" activations {'fit' if fits else 'do not fit'} the {quantity(room, 'B')} of a process"
            f"{least}"
        )
    offload = options.offload and not is_cpu(device)
    mesh = checked_mesh(spec, *found, parts=parts, offload=offload)
    share_samples(mesh.tensor, mesh.context)
    if count > 1:
        say(f"parallel: {_described(mesh, count)} ({why})")
    if options.offload and (mesh.shard == 1 or is_cpu(device)):
        why = "are not divided among processes" if mesh.shard == 1 else "are in its memory anyway"
        say(f"train.parallel.offload changes nothing: the weights {why}")
    return mesh


def checked_mesh(
    spec: Spec, replicate: int, shard: int, *, parts: bool | None = None, offload: bool = False
) -> Mesh:
    """The mesh of so many copies, each divided among so many, with `train.parallel`'s other axes.

    Where weights are in `parts`, as they are where `shard` is more than 1, those of a `context`
    have parts too. Raises `SpecError` for what is not done where processes keep or compute parts
    so.
    """
    options = spec.train.parallel
    mesh = Mesh(
        replicate,
        shard * options.context if (shard > 1 if parts is None else parts) else 1,
        options.reshard,
        options.tensor,
        reduce=options.reduce,
        offload=offload,
        experts=options.experts,
        context=options.context,
    )
    check_mesh(spec, mesh, replicate * shard * options.tensor * options.context)
    return mesh


def _described(mesh: Mesh, count: int) -> str:
    """What so many processes share, for people."""
    among = mesh.shard * mesh.tensor
    number = count // among
    copies = f"{number} {'copies' if number > 1 else 'copy'} of the weights"
    each = "each " if number > 1 else ""
    part = f", {each}divided among {among} processes" if among > 1 else ""
    if mesh.experts > 1:
        part = f", whose experts are over {mesh.experts} processes each"
    rows = f"; each sequence divided among {mesh.context}" if mesh.context > 1 else ""
    return f"{copies}{part}{rows}"


def _room(device: torch.device) -> int:
    """Bytes of a process: the CPU's memory is that of all on its machine."""
    return total_memory(device) // (neighbours() if is_cpu(device) else 1)


def room_of(mesh: Mesh, device: torch.device) -> int:
    """Bytes of the processes that divide one copy of the weights."""
    return _room(device) * mesh.shard * mesh.tensor


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
