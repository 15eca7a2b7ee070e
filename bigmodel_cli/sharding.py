"""Weights of which each process keeps a part: FSDP2, and HSDP where there are several copies.

Beside distributed.py the one importer of torch.distributed: what is above works with plain tensors,
the parts that this process keeps, and asks here for the whole of one. A group of weights (a block)
is gathered for its pass alone, and its gradient is summed into the parts. Of n processes that share
a weight, each keeps the rows of ceil(rows / n) in order; the last ones fewer, or none. A weight of
fewer rows than n, such as that of a few experts, is divided along a later axis that n divides.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bigmodel_cli.distributed import gathered, sum_, told, world
from bigmodel_cli.distributed.policies import policies
from bigmodel_cli.lazy import Module, Tensor, nn, torch
from bigmodel_cli.roles import Weight, in_several
from bigmodel_cli.tensor_parallel import is_placed, put_share, whole_of


@dataclass(frozen=True)
class Mesh:
    """How many copies of the weights there are, and among how many processes each is divided.

    The processes of a copy have neighbouring ranks.
    """

    replicate: int = 1
    shard: int = 1
    reshard: bool = True  # a block's weights are freed after its forward pass
    tensor: int = 1  # neighbours that divide each part among them and take the same samples
    reduce: str = "fp32"  # or "bf16", what gradients are summed in
    offload: bool = False  # parts are in the CPU's memory, and the model is on a GPU

    @property
    def sharded(self) -> bool:
        """Whether a process keeps but a part of the weights."""
        return self.shard > 1 or self.tensor > 1


WHOLE = Mesh()
"""Each process has all of the weights."""


class Piece:
    """The part of one weight that this process keeps: `local` is its memory, as a plain tensor."""

    def __init__(self, parameter: Any) -> None:
        self.parameter = parameter  # FSDP2's, of which `local` is the inside
        self.local = nn.Parameter(
            parameter.detach().to_local(), requires_grad=parameter.requires_grad
        )

    def placed(self, local: Tensor) -> Tensor:
        """A tensor of the weight's shape, of which this process has the part `local`."""
        from torch.distributed.tensor import DTensor

        own = self.parameter
        return DTensor.from_local(
            local.detach(),
            own.device_mesh,
            own.placements,
            run_check=False,
            shape=own.shape,
            stride=own.stride(),
        )

    def whole(self, local: Tensor) -> Tensor:
        """All of a tensor of which each process has a part as of the weight; all call it."""
        return whole(self.placed(local))

    def own(self, tensor: Tensor) -> Tensor:
        """This process's part of a whole tensor of the weight's shape."""
        return _part(self.parameter, tensor)


Fill = Callable[[Iterable[Tensor]], None]
"""Is given weights before they are divided, to make their numbers."""


class Sharding:
    """A model's weights in parts, and how they come together.

    From then on each pass of the model is one of all processes, which wait for one another in it,
    except within `gathered`.
    """

    sums_itself = True
    """Whether passes sum gradients over the processes that take other samples."""
    passes_alone = True
    """Whether one process can let the model pass within `gathered`, without the others."""

    def __init__(
        self, model: Module, groups: Sequence[Module], mesh: Mesh, device: torch.device, fill: Fill
    ) -> None:
        from torch.distributed.fsdp import fully_shard

        self.model, self.mesh = model, mesh
        self.spare: dict[str, Tensor] = {}  # a batch for passes in which there is nothing to do
        # single numbers, which FSDP2 does not take
        self.alone = {name: p for name, p in model.named_parameters() if p.dim() == 0}
        for p in self.alone.values():
            p.data = p.data.to(device)
        made = {
            "mesh": _device_mesh(mesh, device),
            "ignored_params": set(self.alone.values()),
            "shard_placement_fn": lambda p: _axis(p, mesh.shard),
            **policies(mesh.reduce, mesh.offload),
        }
        shared = in_several(model, groups)
        self.modules: list[Any] = []  # inner ones first
        for module in groups:
            own = list(module.parameters())
            if own and not shared & {id(p) for p in own}:
                fill(own)
                fully_shard(module, reshard_after_forward=mesh.reshard, **made)
                self.modules.append(module)
        # the outer weights (embeddings, a tied head, norms) stay whole until the backward pass is
        # over: losses read them after the forward pass
        fill(p for p in model.parameters() if not is_part(p))
        fully_shard(model, reshard_after_forward=False, **made)
        self.modules.append(model)
        for module in self.modules:
            module.set_gradient_divide_factor(1.0)  # sums, which the step divides once
            module.set_force_sum_reduction_for_comms(True)
            module.set_reduce_scatter_unused_params(True, recurse=False)
        outermost: Any = model
        outermost._get_fsdp_state()._lazy_init()  # whichever of them is called first
        self.pieces = {
            name: Piece(p) for name, p in model.named_parameters() if name not in self.alone
        }

    def weights(self, weights: Sequence[Weight]) -> list[Weight]:
        """The same weights as the parts that this process keeps."""
        return [
            replace(w, tensor=self.pieces[w.name].local, parts=self.pieces[w.name])
            if w.name in self.pieces
            else w
            for w in weights
        ]

    def kept(self) -> dict[str, Tensor]:
        """What this process keeps of each weight, by name."""
        return {
            name: self.pieces[name].local if name in self.pieces else p
            for name, p in self.model.named_parameters()
        }

    def placed(self, name: str, local: Tensor) -> Tensor:
        """What is kept beside a weight, as a tensor of its shape; others as they are."""
        piece = self.pieces.get(name)
        return local if piece is None else piece.placed(local)

    def begin(self) -> None:
        """Before passes: gradients are of the weights that the optimizer moves."""
        for piece in self.pieces.values():
            piece.parameter.requires_grad_(piece.local.requires_grad)

    def end(self) -> None:
        """After them: the parts have the gradients, which are sums over all processes."""
        for piece in self.pieces.values():
            given = piece.parameter.grad
            piece.local.grad = None if given is None else given.to_local()
            piece.parameter.grad = None
        sum_([p.grad for p in self.alone.values() if p.grad is not None])

    def norm(self) -> Tensor:
        """()   the norm of all gradients, in all processes to the bit; in float64."""
        parts = [p.local.grad for p in self.pieces.values() if p.local.grad is not None]
        alone = [p.grad for p in self.alone.values() if p.grad is not None]
        first = next(iter(self.pieces.values())).local
        every = gathered(_squares(parts, first.device)[None])[: self.mesh.shard]
        return (torch.cat(every).sum() + _squares(alone, first.device)).sqrt()

    @contextlib.contextmanager
    def gathered(self) -> Iterator[None]:
        """Inside, this process has all weights: it can let the model pass without the others."""
        for module in self.modules:
            module.set_reshard_after_forward(False, recurse=False)
            module.unshard()
        try:
            yield
        finally:
            for module in self.modules:
                module.reshard()
                again = self.mesh.reshard and module is not self.model
                module.set_reshard_after_forward(again, recurse=False)


def _device_mesh(mesh: Mesh, device: torch.device) -> Any:
    """Its axes have torchtitan's names."""
    from torch.distributed.device_mesh import init_device_mesh

    if mesh.replicate == 1:
        return init_device_mesh(device.type, (mesh.shard,), mesh_dim_names=("dp_shard",))
    sizes = mesh.replicate, mesh.shard
    return init_device_mesh(device.type, sizes, mesh_dim_names=("dp_replicate", "dp_shard"))


def _squares(tensors: Sequence[Tensor], device: torch.device) -> Tensor:
    """()   the sum of all squares, in float64."""
    if not tensors:
        return torch.zeros((), dtype=torch.float64, device=device)
    norms = torch.stack(torch._foreach_norm(list(tensors)))
    return norms.to(torch.float64).square().sum()


def is_part(tensor: Any) -> bool:
    """Whether other processes have the rest of a tensor."""
    if world().alone:  # nothing of torch.distributed is imported
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor) or is_placed(tensor)


def _axis(tensor: Tensor, count: int) -> Any:
    """How FSDP2 is to divide a weight."""
    from torch.distributed.tensor import Shard

    even = (axis for axis, size in enumerate(tensor.shape) if axis and size % count == 0)
    return Shard(next(even, 0) if tensor.shape[0] < count else 0)


def _part(like: Any, tensor: Tensor) -> Tensor:
    """What this process keeps of a whole tensor like one that is divided."""
    last = like.device_mesh.ndim - 1
    count, rank = like.device_mesh.size(last), like.device_mesh.get_local_rank(last)
    axis = like.placements[last].dim
    size = tensor.shape[axis]
    each = math.ceil(size / count)
    first = min(rank * each, size)
    return tensor.narrow(axis, first, min(each, size - first))


def put(target: Tensor, tensor: Tensor) -> None:
    """Copy a tensor into a target of which this process may keep but a part."""
    if not is_part(target):
        target.copy_(tensor)
        return
    if is_placed(target):
        put_share(target, tensor)
        return
    own: Any = target
    part: Any = tensor
    given = part.to_local() if is_part(tensor) else _part(own, tensor)
    own.to_local().copy_(given)


def key(tensor: Tensor) -> tuple[Any, ...]:
    """Equal for tensors that are the same numbers in memory; a part, which may be empty, is the
    same where it is the same object.
    """
    if is_part(tensor):
        return (id(tensor),)
    return (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())


_shown: list[dict[int, int]] = []  # the number of each tensor that the others wait to give


@contextlib.contextmanager
def shown(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Inside, the first process may ask for the `whole` of any of these tensors, in any order.

    The others give it their parts, and come out when it is done.
    """
    parts = [tensor for tensor in tensors if is_part(tensor)]
    if not parts:
        yield
        return
    if not world().first:
        while (number := told(None)) is not None:
            whole(parts[number])
        yield
        return
    _shown.append({id(tensor): number for number, tensor in enumerate(parts)})
    try:
        yield
    finally:
        _shown.pop()
        told(None)


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, of which this process may have but a part; then all call it."""
    if not is_part(tensor):
        return tensor
    if _shown:
        told(_shown[-1][id(tensor)])
    if is_placed(tensor):
        return whole_of(tensor)
    part: Any = tensor
    found: Tensor = part.full_tensor()
    return found
