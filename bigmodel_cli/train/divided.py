"""How the processes of a run share the weights: each has all of them, or a part."""

from __future__ import annotations

from bigmodel_cli.assemble import outline
from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.console import listed, quantity, say
from bigmodel_cli.data import Split
from bigmodel_cli.device import is_cpu, total_memory
from bigmodel_cli.distributed import neighbours, share_samples, world
from bigmodel_cli.errors import SpecError
from bigmodel_cli.lazy import torch
from bigmodel_cli.models import Model
from bigmodel_cli.recipe import TrainOptions
from bigmodel_cli.sharding import Mesh
from bigmodel_cli.shares import says_so
from bigmodel_cli.spec import Spec
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
        fits = memory.peak <= room
        found = (count, 1) if fits else (1, count)
        why = (
            f"about {quantity(memory.peak, 'B')} of weights, gradients, optimizer state and"
            f" activations {'fit' if fits else 'do not fit'} the {quantity(room, 'B')} of a process"
        )
    mesh = Mesh(
        *found,
        options.reshard,
        options.tensor,
        options.reduce,
        options.offload and not is_cpu(device),
    )
    if mesh.sharded:
        _check(spec)
    if mesh.tensor > 1:
        _check_tensor(spec, mesh)
    share_samples(mesh.tensor)
    if count > 1:
        copies = f"{mesh.replicate} {'copies' if mesh.replicate > 1 else 'copy'} of the weights"
        each = "each " if mesh.replicate > 1 else ""
        among = mesh.shard * mesh.tensor
        part = f", {each}divided among {among} processes" if mesh.sharded else ""
        say(f"parallel: {copies}{part} ({why})")
    if options.offload and (mesh.shard == 1 or is_cpu(device)):
        why = "are not divided among processes" if mesh.shard == 1 else "are in its memory anyway"
        say(f"train.parallel.offload changes nothing: the weights {why}")
    return mesh


def _room(device: torch.device) -> int:
    """Bytes of a process: the CPU's memory is that of all on its machine."""
    return total_memory(device) // (neighbours() if is_cpu(device) else 1)


def room_of(mesh: Mesh, device: torch.device) -> int:
    """Bytes of the processes that divide one copy of the weights."""
    return _room(device) * mesh.shard * mesh.tensor


def _check(spec: Spec) -> None:
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
                f" train.parallel.replicate={world().size}"
            )


def _check_tensor(spec: Spec, mesh: Mesh) -> None:
    """Raise `SpecError` for what is not done where parts are divided."""
    what = {
        "train.parallel.shard": mesh.shard > 1,
        "adapter": spec.adapter is not None,
        "distill": spec.distill is not None,
    }
    for name, asked in what.items():
        if asked:
            raise SpecError(
                f"{name} does not go with train.parallel.tensor, which divides heads and hidden"
                " units; leave it out, or set train.parallel.tensor=1"
            )


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
    """The options without any auto, for a model that no process has in whole to measure with."""
    half = device.type == "cuda" and torch.cuda.is_bf16_supported()
    chosen = {
        "precision": "bf16" if half else "fp32",
        "memory_format": "contiguous",
        "compile": "off",
    }
    values = dict(options)
    return options.model_copy(update={n: v for n, v in chosen.items() if values[n] == "auto"})
