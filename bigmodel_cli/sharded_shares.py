"""Tensor parallel and FSDP2 together: shares of each part, of which processes keep parts in turn.

Neighbours compute each part together (tensor_parallel.py); those of several teams that have the
same share divide that among them (sharding.py). So a weight comes together in two steps: the share
within a group of processes with other samples, the whole within the team.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from bigmodel_cli.distributed import Neighbours, gathered
from bigmodel_cli.lazy import Module, Tensor, torch
from bigmodel_cli.parted import place_of
from bigmodel_cli.roles import Weight
from bigmodel_cli.sharding import Mesh, Piece, Sharding, squares_of
from bigmodel_cli.shares import Cut, divide
from bigmodel_cli.tensor_parallel import Piece as CutPiece
from bigmodel_cli.tensor_parallel import Processes, placed


@dataclass(frozen=True)
class PieceOfShare:
    """How one weight is divided twice, for an optimizer that works on whole matrices."""

    cut: CutPiece
    piece: Piece

    def whole(self, local: Tensor) -> Tensor:
        """All of a tensor of which each process has a part as of the weight; all call it."""
        return self.cut.whole(self.piece.whole(local))

    def own(self, tensor: Tensor) -> Tensor:
        """This process's part of a whole tensor of the weight's shape."""
        return self.piece.own(self.cut.own(tensor))


class ShardedShares(Sharding):
    """A model that teams compute together, and whose shares the teams divide among them.

    Gradients are summed over teams in the passes; what a team's processes know in part is summed
    among those that keep the same places, after them.
    """

    passes_alone = False

    def __init__(
        self, model: Module, groups: Sequence[Module], mesh: Mesh, device: torch.device
    ) -> None:
        team = Processes(Neighbours.of(mesh.tensor))
        self.division = divide(model, team)
        super().__init__(model, groups, mesh, device)
        cuts = self.division.shares.items()
        self.cuts = {n: CutPiece(cut, team) for n, cut in cuts if isinstance(cut, Cut)}
        kept: Any = self.kept()
        self.division.tensors = {n: kept[n] for n in self.division.tensors}
        pieces = self.pieces.items()
        self.division.windows = {n: place_of(p.parameter)[:2] for n, p in pieces}
        model.register_state_dict_post_hook(lambda *given: self._placed_all(*given))

    def weights(self, weights: Sequence[Weight]) -> list[Weight]:
        """The same weights as the parts that this process keeps."""
        return [
            replace(w, parts=PieceOfShare(self.cuts[w.name], self.pieces[w.name]))
            if w.name in self.cuts
            else w
            for w in super().weights(weights)
        ]

    def placed(self, name: str, local: Tensor) -> Tensor:
        """What is kept beside a weight, as a tensor of its shape; others as they are."""
        share = super().placed(name, local)
        return placed(share, self.cuts[name]) if name in self.cuts else share

    def _placed_all(self, module: Any, state: dict[str, Any], prefix: str, *more: Any) -> None:
        """The model's `state_dict` is of whole tensors."""
        for name in state.keys() & self.cuts.keys() if module is self.model else ():
            state[name] = placed(state[name], self.cuts[name])

    def end(self) -> None:
        """After passes: the parts have the gradients, which are sums over all processes."""
        super().end()
        self.division.settle()

    def norm(self) -> Tensor:
        """()   the norm of all gradients, in all processes to the bit; in float64."""
        kept = self.kept().items()
        own = [(n, p.grad) for n, p in kept if p.grad is not None and n not in self.alone]
        every = gathered(self.division.squares(own)[None])[: self.mesh.shard]
        alone = [p.grad for p in self.alone.values() if p.grad is not None]
        return (torch.cat(every).sum() + squares_of(alone, every[0].device)).sqrt()
