"""A model whose weights are divided among a team: cut, trained with, and put together again."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from bigmodel_cli.errors import SpecError
from bigmodel_cli.lazy import Module, Tensor, nn, torch
from bigmodel_cli.shares.cut import WHOLE, Cut, Share, Shares
from bigmodel_cli.shares.team import Team


@runtime_checkable
class Divides(Protocol):
    """A module that can be computed by several processes, each with a share of its weights.

    Its own class has `shares`: one that inherits it may compute otherwise, and is kept whole.
    """

    team: Team

    def shares(self) -> Shares:
        """How its weights and buffers are divided: all of its own and of modules inside that do
        not say it themselves. What is not named is `WHOLE`.

        Raises `ValueError` whose message begins with the option that does not allow it.
        """

    def narrow(self, team: Team) -> None:
        """Go on with the sizes of this process's share; the weights are cut already."""


@dataclass
class Division:
    """The weights of a model that are divided, or whose gradients are known in part.

    Names are those of the model: of `shares` all, of `tensors` one for each weight. Where a process
    keeps but some places of its share, along one axis, `windows` has (axis, the first of them).
    """

    team: Team
    shares: dict[str, Share] = field(default_factory=dict)
    tensors: dict[str, nn.Parameter] = field(default_factory=dict)
    windows: dict[str, tuple[int, int]] = field(default_factory=dict)

    def settle(self) -> None:
        """Complete the gradients of a step: sum what each process knows a part of.

        Once a step, after all its passes and before anything looks at a gradient.
        """
        pieces: dict[tuple[int, torch.dtype], list[Tensor]] = {}
        for name, tensor in self.tensors.items():
            if tensor.grad is not None:
                for copies, piece in self._incomplete(name, tensor.grad):
                    pieces.setdefault((copies, piece.dtype), []).append(piece)
        for (copies, _), parts in sorted(pieces.items(), key=lambda item: str(item[0])):
            whole = self.team.neighbours(copies).sum(torch.cat([p.flatten() for p in parts]))
            for part, found in zip(parts, whole.split([p.numel() for p in parts]), strict=True):
                part.copy_(found.view_as(part))

    def _incomplete(self, name: str, gradient: Tensor) -> list[tuple[int, Tensor]]:
        """(neighbours that have the rest, a view of the gradient) of each piece."""
        share = self.shares[name]
        if not isinstance(share, Cut):
            return [(self.team.size, gradient)] if share.partial else []
        return [(n, view) for n, view in self._of_runs(name, share, gradient) if n > 1]

    def _of_runs(self, name: str, share: Cut, tensor: Tensor) -> list[tuple[int, Tensor]]:
        """(neighbours that have the same, a view of what is kept of it) of each run."""
        lengths = share.lengths(self.team.rank, self.team.size)
        axis, first = self.windows.get(name, (None, 0))
        if axis == share.axis:
            lengths = inside(lengths, first, tensor.shape[axis])
        copies = [run.copies(self.team.size) for run in share.runs]
        return list(zip(copies, tensor.split(lengths, share.axis), strict=True))

    def squares(self, gradients: Iterable[tuple[str, Tensor]]) -> Tensor:
        """()   the sum of squares of all gradients of the model, in float64, each counted once.

        `gradients` are those of this process by name, settled; with `windows`, of what teams of the
        same places keep.
        """
        whole, own = list[Tensor](), list[Tensor]()
        for name, gradient in gradients:
            share = self.shares.get(name, WHOLE)
            if not isinstance(share, Cut):
                whole.append(gradient.double().square().sum())
                continue
            for copies, view in self._of_runs(name, share, gradient):
                own.append(view.double().square().sum() / copies)
        found = torch.stack(whole).sum() if whole else torch.zeros((), dtype=torch.float64)
        return found + self.team.sum(torch.stack(own).sum()) if own else found

    def whole(self, name: str, tensor: Tensor) -> Tensor:
        """The whole of a tensor that is divided as the weight `name`: its value or its moments.

        All processes call it, in the same order.
        """
        share = self.shares.get(name, WHOLE)
        if not isinstance(share, Cut):
            return tensor
        return share.gathered(tensor, self.team)

    def own(self, name: str, whole: Tensor) -> Tensor:
        """This process's share of a tensor that is divided as the weight `name`."""
        share = self.shares.get(name, WHOLE)
        return (
            share.taken(whole, self.team.rank, self.team.size) if isinstance(share, Cut) else whole
        )


def inside(lengths: list[int], first: int, count: int) -> list[int]:
    """How much of each of these lengths, one after the other, is in the `count` places from
    `first` on.
    """
    found, at = [], 0
    for length in lengths:
        found.append(max(0, min(at + length, first + count) - max(at, first)))
        at += length
    return found


@dataclass(frozen=True)
class Plan:
    """How one module's weights are divided, and what it is told when they are."""

    shares: Shares
    narrow: Callable[[Team], None]


Plans = Callable[[Module], Plan | None]
"""The plan of a module; None where it is kept whole. May raise as `Divides.shares`."""


def by_parts(module: Module) -> Plan | None:
    """By heads, hidden units, experts and tokens of the vocabulary, as parts say it."""
    if not says_so(module):
        return None
    assert isinstance(module, Divides)
    return Plan(module.shares(), module.narrow)


def divide(model: Module, team: Team, plans: Plans = by_parts) -> Division:
    """Leave this process its share of the model's weights.

    All processes hold the same whole model before. Raises `SpecError` naming every part that
    cannot be divided so; the model is as it was then.
    """
    found = Division(team)
    if team.size == 1:
        return found
    planned, faults = _planned(model, team.size, plans)
    if faults:
        raise SpecError("\n".join(faults))
    cut: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}  # tied weights stay one
    for path, plan in planned.items():
        for name, share in plan.shares.items():
            _take(
                model.get_submodule(path),
                name,
                f"{path}.{name}" if path else name,
                share,
                found,
                cut,
            )
        plan.narrow(team)
    return found


def says_so(module: Module) -> bool:
    """Whether a module's own class says how it is divided: a subclass may compute otherwise."""
    return isinstance(module, Divides) and "shares" in vars(type(module))


def _planned(model: Module, size: int, plans: Plans) -> tuple[dict[str, Plan], list[str]]:
    """The modules that are divided, by path, and why some cannot be among `size` processes."""
    planned, faults = dict[str, Plan](), list[str]()
    for path, module in model.named_modules():
        where = f"model.{path}".removesuffix(".")
        try:
            plan = plans(module)
        except ValueError as error:
            faults.append(f"{where}.{error}")
            continue
        if plan is not None:
            planned[path] = plan
            own = (share.fault(size) for share in plan.shares.values())
            faults += dict.fromkeys(f"{where}: {fault}" for fault in own if fault)
    return planned, faults


def _take(
    module: Module,
    name: str,
    path: str,
    share: Share,
    division: Division,
    cut: dict[int, tuple[nn.Parameter, nn.Parameter]],  # (whole, share), by the whole's identity
) -> None:
    """Put this process's share in the place of one weight or buffer."""
    place, _, own = name.rpartition(".")
    holder, team = module.get_submodule(place), division.team
    if own in holder._buffers:
        buffer = holder.get_buffer(own)
        if isinstance(share, Cut):
            holder._buffers[own] = share.taken(buffer, team.rank, team.size)
            division.shares[path] = share
        return
    whole = holder.get_parameter(own)
    if id(whole) not in cut:
        taken = whole
        if isinstance(share, Cut):
            piece = share.taken(whole.detach(), team.rank, team.size)
            taken = nn.Parameter(piece, requires_grad=whole.requires_grad)
        cut[id(whole)] = whole, taken
        division.tensors[path] = taken
    division.shares[path] = share
    taken = cut[id(whole)][1]
    holder.register_parameter(own, taken)
    if isinstance(holder, nn.Linear) and own == "weight":
        holder.out_features, holder.in_features = taken.shape
