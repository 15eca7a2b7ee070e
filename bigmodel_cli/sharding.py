"""Weights of which each process keeps a part: FSDP2, and HSDP where there are several copies.

With parted.py, beside distributed/, the one importer of torch.distributed: what is above works with
plain tensors, the parts that this process keeps, and asks there for the whole of one. A group of
weights (a block) is gathered for its pass alone, and its gradient is summed into the parts. Of n
processes that share a weight, each keeps ceil(rows / n) rows, the last ones fewer, or none; of a
weight of fewer rows (a few experts), a part of a later axis that n divides.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bigmodel_cli.distributed import gathered, sum_
from bigmodel_cli.distributed.fsdp_record import forget_passes
from bigmodel_cli.distributed.policies import policies
from bigmodel_cli.lazy import Module, Tensor, nn, torch
from bigmodel_cli.parted import is_part, place_of, whole
from bigmodel_cli.roles import Weight
from bigmodel_cli.shares.groups import axis_of, gathered_apart


@dataclass(frozen=True)
class Mesh:
    """How many copies of the weights there are, and among how many processes each is divided.

    The processes of a copy have neighbouring ranks; those of a `context` are among its `shard`.
    """

    replicate: int = 1
    shard: int = 1
    reshard: bool = True  # a block's weights are freed after its forward pass
    tensor: int = 1  # neighbours that divide each part among them and take the same samples
    reduce: str = "fp32"  # or "bf16", what gradients are summed in
    offload: bool = False  # parts are in the CPU's memory, and the model is on a GPU
    experts: int = 1  # neighbours that keep different experts, and take other samples
    context: int = 1  # those with the same samples, each some positions of them

    @property
    def sharded(self) -> bool:
        """Whether a process keeps but a part of the weights."""
        return max(self.shard, self.tensor, self.experts) > 1


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
        return tensor.narrow(*place_of(self.parameter))


Fill = Callable[[Iterable[Tensor]], None]
"""Is given weights before they are divided, to make their numbers."""


def made_before(weights: Iterable[Tensor]) -> None:
    """The `Fill` of weights that have their numbers."""


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
        self,
        model: Module,
        groups: Sequence[Module],
        mesh: Mesh,
        device: torch.device,
        fill: Fill = made_before,
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
        self.modules: list[Any] = []  # inner ones first
        for module in gathered_apart(model, groups):
            fill(module.parameters())
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
        forget_passes(self.modules)

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
        every = gathered(squares_of(parts, first.device)[None])[: self.mesh.shard]
        return (torch.cat(every).sum() + squares_of(alone, first.device)).sqrt()

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
    """Its axes have torchtitan's names; those on which samples differ."""
    from torch.distributed.device_mesh import init_device_mesh

    sizes = {"dp_replicate": mesh.replicate, "dp_shard": mesh.shard, "tp": mesh.tensor}
    names = tuple(name for name, size in sizes.items() if size > 1 or name == "dp_shard")
    made = init_device_mesh(device.type, tuple(map(sizes.get, names)), mesh_dim_names=names)  # type: ignore[arg-type]
    return made if mesh.tensor == 1 else made[tuple(n for n in names if n != "tp")]


def squares_of(tensors: Sequence[Tensor], device: torch.device) -> Tensor:
    """()   the sum of all squares, in float64."""
    if not tensors:
        return torch.zeros((), dtype=torch.float64, device=device)
    norms = torch.stack(torch._foreach_norm(list(tensors)))
    return norms.to(torch.float64).square().sum()


def _axis(tensor: Tensor, count: int) -> Any:
    """How FSDP2 is to divide a weight."""
    from torch.distributed.tensor import Shard

    return Shard(axis_of(tensor.shape, count))
