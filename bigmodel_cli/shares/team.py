"""The processes that compute one part together, and what they tell one another as they do."""

from __future__ import annotations

import functools
from typing import Any

from bigmodel_cli.lazy import F, Tensor, nn, torch


class Team:
    """One process among those that share the weights of a part; by itself, it is all of them.

    A part calls `enter` on what it reads and `leave` with its last layer, between which it computes
    on its share alone. Whoever connects processes overrides `sum`, `largest`, `all_of` and
    `neighbours`; every process calls them in the same order.
    """

    rank: int = 0
    size: int = 1

    def __deepcopy__(self, memo: Any) -> Team:
        """Itself: a copied part has the same neighbours."""
        return self

    def sum(self, x: Tensor) -> Tensor:
        """The sum of all processes' x, new; the same to the bit for each of them."""
        return x

    def largest(self, x: Tensor) -> Tensor:
        """The largest of all processes' x, place by place, new."""
        return x

    def all_of(self, x: Tensor) -> list[Tensor]:
        """The x of each process, by rank; shapes may differ in the last axis alone."""
        return [x]

    def stacked(self, x: Tensor) -> Tensor:
        """(size, ...)   the x of each process, by rank, of one shape."""
        return torch.stack(self.all_of(x))

    def share_of_sum(self, x: Tensor) -> Tensor:
        """(size, ...) -> (...)   the sum of what each process has for this one."""
        return self.sum(x)[self.rank]

    def neighbours(self, count: int) -> Team:
        """The team of `count` neighbours, this process among them; `count` divides `size`."""
        return self

    def enter(self, x: Tensor) -> Tensor:
        """x, which all processes have alike; its gradient is the sum of theirs."""
        return x if self.size == 1 else _functions()[0].apply(x, self)

    def summed(self, x: Tensor) -> Tensor:
        """The sum of the processes' x, from which they go on alike."""
        return x if self.size == 1 else _functions()[1].apply(x, self)

    def pooled(self, x: Tensor) -> Tensor:
        """The sum of the processes' x, with which each goes on in its own share."""
        return self.enter(self.summed(x))

    def leave(self, layer: nn.Linear, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)   `layer(x)`, of which each process has some of the inputs."""
        if self.size == 1:
            y: Tensor = layer(x)
            return y
        y = self.summed(F.linear(x, layer.weight))
        return y if layer.bias is None else y + layer.bias.to(y.dtype)

    def beside(self, x: Tensor, first: int) -> Tensor:
        """(..., n) -> (..., all)   the processes' x side by side, from which they go on alike; this
        one's begins at `first`.
        """
        return x if self.size == 1 else _functions()[2].apply(x, first, self)


ALONE = Team()


@functools.cache
def _functions() -> tuple[Any, Any, Any]:
    """(enter, summed, beside); torch is imported by now."""

    class Enter(torch.autograd.Function):
        """Identity, whose gradient is summed (f of Shoeybi et al. 2019, Megatron-LM)."""

        @staticmethod
        def forward(context: Any, x: Tensor, team: Team) -> Tensor:
            context.team = team
            return x.view_as(x)

        @staticmethod
        def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
            return context.team.sum(gradient), None

    class Summed(torch.autograd.Function):
        """A sum, whose gradient is everybody's (g of the same)."""

        @staticmethod
        def forward(context: Any, x: Tensor, team: Team) -> Tensor:
            return team.sum(x)

        @staticmethod
        def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
            return gradient, None

    class Beside(torch.autograd.Function):
        """Side by side; each has the gradient of its own."""

        @staticmethod
        def forward(context: Any, x: Tensor, first: int, team: Team) -> Tensor:
            context.first, context.count = first, x.shape[-1]
            return torch.cat(team.all_of(x), -1)

        @staticmethod
        def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
            return gradient.narrow(-1, context.first, context.count), None, None

    return Enter, Summed, Beside
