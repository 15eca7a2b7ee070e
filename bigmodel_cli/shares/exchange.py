"""Processes with other samples each, among which tokens travel to the experts that they chose."""

from __future__ import annotations

import functools
from typing import Any, Protocol, runtime_checkable

from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.shares.cut import Shares


class Exchange:
    """One of the processes that keep whole experts each, in equal numbers, by rank.

    Whoever connects them overrides `gathered` and `moved`; every process calls them in the same
    order, whatever its samples are.
    """

    rank: int = 0
    size: int = 1

    def __deepcopy__(self, memo: Any) -> Exchange:
        """Itself: a copied part has the same neighbours."""
        return self

    def gathered(self, x: Tensor) -> Tensor:
        """(...) -> (processes, ...)   what each of them gives, of one shape."""
        return x[None]

    def moved(self, x: Tensor, to: list[int], of: list[int]) -> Tensor:
        """(sum of to, C) -> (sum of of, C)   the next `to[r]` rows go to process r, from which
        `of[r]` come, by rank.
        """
        return x.clone()

    def counts(self, own: Tensor) -> Tensor:
        """(E,) -> (processes, E / processes)   of this process's tokens for each expert: those of
        each process for the experts here.
        """
        return self.gathered(own).chunk(self.size, 1)[self.rank]

    def sent(self, x: Tensor, to: list[int], of: list[int]) -> Tensor:
        """As `moved`; gradients go back the way that rows came."""
        found: Tensor = _function().apply(x, to, of, self)
        return found


@runtime_checkable
class SpreadsExperts(Protocol):
    """A module whose experts can be kept by several processes, to which tokens are sent."""

    exchange: Exchange | None
    """The processes that keep its experts; None: all are here."""

    def shares_of_experts(self) -> Shares:
        """How the weights of its experts are divided among them."""


@functools.cache
def _function() -> Any:
    """The class; torch is imported by now."""

    class Sent(torch.autograd.Function):
        """Rows that change places."""

        @staticmethod
        def forward(
            context: Any, x: Tensor, to: list[int], of: list[int], exchange: Exchange
        ) -> Tensor:
            context.to, context.of, context.exchange = to, of, exchange
            return exchange.moved(x, to, of)

        @staticmethod
        def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
            return context.exchange.moved(gradient, context.of, context.to), None, None, None

    return Sent
