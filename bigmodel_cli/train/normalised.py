"""Batch normalisation's running statistics, of the micro-batches of several processes.

Each micro-batch is normalised by its own statistics, on the process that has it. The running ones
are afterwards, in all processes, those of one process that saw the same micro-batches in order.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from bigmodel_cli.distributed import gathered
from bigmodel_cli.errors import SpecError
from bigmodel_cli.lazy import Module, Tensor, torch


def batch_norms(model: Module, still: Collection[str]) -> dict[str, Any]:
    """The batch normalisations with running statistics, by name, but for frozen ones."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)
        and module.track_running_stats
        and name not in still
    }


class Normalised:
    """The running statistics of a step.

    A pass makes r of them (1 - m) r + m s, with the statistics s of its samples. After k passes
    that is (1 - m)^k r + c: c and k say what passes add, whatever they began with.

    Raises `SpecError` for a normalisation whose statistics are the mean of all passes.
    """

    def __init__(self, norms: dict[str, Any]) -> None:
        self.norms = list(norms.values())
        for name, norm in norms.items():
            if norm.momentum is None:
                raise SpecError(
                    f"model: {name} has no momentum, and so its statistics cannot be joined over"
                    " processes; give it one"
                )
        self.before = [self._flat(norm) for norm in self.norms]
        self.counts = [norm.num_batches_tracked.clone() for norm in self.norms]
        self.added: list[tuple[Tensor, Tensor]] = []

    @staticmethod
    def _flat(norm: Any) -> Tensor:
        """(2 C,)   running mean and variance."""
        return torch.cat((norm.running_mean, norm.running_var))

    def begin(self) -> None:
        """Passes are noted from here on."""
        for norm, count in zip(self.norms, self.counts, strict=True):
            norm.running_mean.zero_()
            norm.running_var.zero_()
            norm.num_batches_tracked.copy_(count)

    def note(self) -> None:
        """Note what the passes since `begin` add."""
        if self.norms:
            passed = [
                norm.num_batches_tracked - count
                for norm, count in zip(self.norms, self.counts, strict=True)
            ]
            self.added.append(
                (torch.cat([self._flat(norm) for norm in self.norms]), torch.stack(passed))
            )

    def join(self) -> None:
        """Set the statistics to those after all passes of all processes, in order; each noted as
        often.
        """
        if not self.norms:
            return
        # with the numbers of passes among them, which no dtype rounds
        sums = torch.stack([torch.cat((flat, passes.to(flat))) for flat, passes in self.added])
        every = torch.cat(gathered(sums))
        *columns, passes = every.split([*(len(flat) for flat in self.before), len(self.norms)], 1)
        columns = zip(columns, passes.to(torch.int64).unbind(1), strict=True)
        for i, (norm, (added, counts)) in enumerate(zip(self.norms, columns, strict=True)):
            now = self.before[i]
            shares = (1 - norm.momentum) ** counts.to(torch.float64)
            for one, share in zip(added, shares.to(now.dtype), strict=True):
                now = now * share + one
            mean, variance = now.chunk(2)
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(variance)
            norm.num_batches_tracked.copy_(self.counts[i] + counts.sum())
