"""A model whose weights are divided by heads, hidden units and experts among neighbours (shares).

What is above works with plain tensors, this process's shares, and asks here for the whole of one.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bigmodel_cli.distributed import Neighbours
from bigmodel_cli.lazy import Module, Tensor, torch
from bigmodel_cli.roles import Weight
from bigmodel_cli.shares import Cut, Plans, Team, by_parts, divide


class Processes(Team):
    """A team of processes with neighbouring ranks."""

    def __init__(self, group: Neighbours) -> None:
        self.group, self.rank, self.size = group, group.rank, group.size

    def sum(self, x: Tensor) -> Tensor:
        return self.group.reduced(x)

    def largest(self, x: Tensor) -> Tensor:
        return self.group.reduced(x, largest=True)

    def all_of(self, x: Tensor) -> list[Tensor]:
        return self.group.all_of(x)

    def neighbours(self, count: int) -> Team:
        return self if count == self.size else Processes(Neighbours.of(count))


@dataclass(frozen=True)
class Piece:
    """How one weight is divided, for an optimizer that works on whole matrices."""

    cut: Cut
    team: Team

    def whole(self, local: Tensor) -> Tensor:
        """All of a tensor of which each process has a share as of the weight; all call it."""
        return self.cut.gathered(local, self.team)

    def own(self, tensor: Tensor) -> Tensor:
        """This process's share of a whole tensor of the weight's shape."""
        return self.cut.taken(tensor, self.team.rank, self.team.size)


class TensorParallel:
    """A model of which each process has a share; passes are those of all processes of a team."""

    sums_itself = False
    """Whether passes sum gradients over the processes that take other samples."""
    passes_alone = False
    """Whether one process can let the model pass within `gathered`, without the others."""

    def __init__(
        self, model: Module, size: int, device: torch.device, plans: Plans = by_parts
    ) -> None:
        self.model, self.team = model, Processes(Neighbours.of(size))
        self.spare: dict[str, Tensor] = {}  # as of Sharding; passes are not waited for
        self.division = divide(model, self.team, plans)
        model.to(device)
        cuts = self.division.shares.items()
        self.pieces = {n: Piece(cut, self.team) for n, cut in cuts if isinstance(cut, Cut)}
        model.register_state_dict_post_hook(lambda *given: self._placed_all(*given))

    def weights(self, weights: Sequence[Weight]) -> list[Weight]:
        """The same weights as this process's shares."""
        now: Any = dict(self.model.named_parameters())
        return [replace(w, tensor=now[w.name], parts=self.pieces.get(w.name)) for w in weights]

    def kept(self) -> dict[str, Tensor]:
        """What this process has of each weight, by name."""
        return dict(self.model.named_parameters())

    def placed(self, name: str, local: Tensor) -> Tensor:
        """What is kept beside a weight, as a tensor of its shape; others as they are."""
        piece = self.pieces.get(name)
        return local if piece is None else placed(local.detach(), piece)

    def _placed_all(self, module: Any, state: dict[str, Any], prefix: str, *more: Any) -> None:
        """The model's `state_dict` is of whole tensors; weights that are tied stay one."""
        found: dict[int, Tensor] = {}
        for name in state.keys() & self.pieces.keys() if module is self.model else ():
            local = state[name]
            if local.data_ptr() not in found:
                found[local.data_ptr()] = self.placed(name, local)
            state[name] = found[local.data_ptr()]

    def begin(self) -> None:
        """Before the passes of a step there is nothing to do."""

    def end(self) -> None:
        """After them gradients that processes of a team know in part are summed."""
        self.division.settle()

    def norm(self) -> Tensor:
        """()   the norm of all gradients, in all processes to the bit; in float64."""
        every = ((n, p.grad) for n, p in self.model.named_parameters() if p.grad is not None)
        return self.division.squares(every).sqrt()

    @contextlib.contextmanager
    def gathered(self) -> Iterator[None]:
        """Nothing comes together: all processes of a team let the same rows pass."""
        yield


@functools.cache
def _class() -> Any:
    """The class; torch is imported by now."""

    class Placed(torch.Tensor):
        """A tensor of a whole weight's shape, of which this process has the share `local`."""

        local: Tensor
        piece: Piece

        @staticmethod
        def __new__(cls: Any, local: Tensor, piece: Piece) -> Any:
            shape = list(local.shape)
            shape[piece.cut.axis] = sum(run.length for run in piece.cut.runs)
            made = torch.Tensor._make_wrapper_subclass(
                cls, shape, dtype=local.dtype, device=local.device
            )
            made.local, made.piece = local, piece
            return made

        def __repr__(self) -> str:  # type: ignore[override]
            return f"Placed({tuple(self.shape)}, here {tuple(self.local.shape)})"

        @classmethod
        def __torch_dispatch__(  # type: ignore[override]
            cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if function in (torch.ops.aten.detach.default, torch.ops.aten.clone.default):
                return cls(function(args[0].local), args[0].piece)
            raise NotImplementedError(f"{function} of a tensor of which this process has a share")

    return Placed


def placed(local: Tensor, piece: Piece) -> Tensor:
    """A tensor of the whole shape, which can be saved and read into, and computes nothing.

    Of its share `local` other processes may have parts in turn (sharding.py).
    """
    found: Tensor = _class()(local, piece)
    return found


def is_placed(tensor: Any) -> bool:
    """Whether it is one of those."""
    return isinstance(tensor, _class())


def share_of(target: Any, tensor: Any) -> Tensor:
    """What this process has, as of such a target, of a whole tensor or of another such one."""
    found: Tensor = tensor.local if is_placed(tensor) else target.piece.own(tensor)
    return found
