"""A mixture's experts over processes with other samples each, to which tokens are sent and return.

A process keeps whole experts, and all of every other weight. It computes its experts for the tokens
of all its neighbours, so that their gradients are sums over the neighbours' samples as they are,
and are added up over the processes that keep the same experts; all other gradients over all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from bigmodel_cli.distributed import Neighbours, sum_
from bigmodel_cli.errors import SpecError
from bigmodel_cli.lazy import Module, Tensor, torch
from bigmodel_cli.shares import Exchange, Plan, SpreadsExperts, own_of, says_so
from bigmodel_cli.tensor_parallel import TensorParallel


class AllToAll(Exchange):
    """Processes with neighbouring ranks."""

    def __init__(self, group: Neighbours) -> None:
        self.group, self.rank, self.size = group, group.rank, group.size

    def gathered(self, x: Tensor) -> Tensor:
        return torch.stack(self.group.all_of(x))

    def moved(self, x: Tensor, to: list[int], of: list[int]) -> Tensor:
        return self.group.moved(x, to, of)


class ExpertParallel(TensorParallel):
    """A model whose experts are kept by `size` neighbours; in each pass of one all of them pass."""

    sums_itself = True
    passes_alone = True

    def __init__(self, model: Module, size: int, device: torch.device) -> None:
        group = Neighbours.of(size)
        exchange = AllToAll(group)
        self.alike = Neighbours.alike(size)
        self.spread: list[SpreadsExperts] = []
        self.exchange = exchange
        super().__init__(model, size, device, self._plan)
        if not self.spread:
            raise SpecError(
                "train.parallel.experts: no part of this network has experts; set it to 1"
            )

    def _plan(self, module: Module) -> Plan | None:
        """Experts alone are divided; a plugin's part that computes otherwise keeps all."""
        if not (says_so(module) and isinstance(module, SpreadsExperts)):
            return None
        self.spread.append(module)

        def told(team: object) -> None:
            module.exchange = self.exchange

        return Plan(own_of(module, module.shares_of_experts()), told)

    def end(self) -> None:
        """After the passes of a step gradients are summed over all samples."""
        given = {n: p.grad for n, p in self.model.named_parameters() if p.grad is not None}
        sum_([gradient for name, gradient in given.items() if name not in self.pieces])
        own = [gradient for name, gradient in given.items() if name in self.pieces]
        sum_(own, among=self.alike)

    @contextlib.contextmanager
    def gathered(self) -> Iterator[None]:
        """Inside, this process has all experts, and needs no other one for a pass."""
        named = dict(self.model.named_parameters())
        kept = {name: named[name].data for name in self.pieces if name in named}
        for name, own in kept.items():
            named[name].data = self.pieces[name].whole(own)
        for part in self.spread:
            part.exchange = None
        try:
            yield
        finally:
            for part in self.spread:
                part.exchange = self.exchange
            for name, own in kept.items():
                named[name].data = own
