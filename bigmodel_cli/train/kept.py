"""A training's weights as this process keeps them: all of each, or a part (sharding.py)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass

from bigmodel_cli.distributed import gathered, most
from bigmodel_cli.errors import SpecError
from bigmodel_cli.failpoints import failpoint
from bigmodel_cli.lazy import Module, Tensor, torch
from bigmodel_cli.optim import total_norm
from bigmodel_cli.sharding import Sharding
from bigmodel_cli.tensor_parallel import TensorParallel
from bigmodel_cli.train.smaller import divided, rows_of

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Kept:
    """The weights of a model, of which processes may keep parts."""

    model: Module
    sharding: Sharding | TensorParallel | None = None

    def named(self) -> dict[str, Tensor]:
        """What this process keeps of each weight, by name."""
        if self.sharding is not None:
            return self.sharding.kept()
        return dict(self.model.named_parameters())

    def placed(self, name: str, tensor: Tensor) -> Tensor:
        """What is kept beside a weight, as a tensor of the weight's shape, for a checkpoint."""
        return tensor if self.sharding is None else self.sharding.placed(name, tensor)

    def state_dict(self, averages: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The model's tensors for a checkpoint, with averages in the place of weights that are in
        parts.
        """
        found: dict[str, Tensor] = self.model.state_dict()
        if self.sharding is None:
            return found
        named = self.named()
        names = {id(p): name for name, p in self.model.named_parameters()}
        aliases = {
            name: names[id(p)] for name, p in self.model.named_parameters(remove_duplicate=False)
        }
        whole = {name: self.placed(name, averages.get(name, t)) for name, t in named.items()}
        return {name: whole[aliases[name]] if name in aliases else t for name, t in found.items()}

    def swap(self, averages: MutableMapping[str, Tensor]) -> None:
        """Exchange the weights and their averages."""
        with torch.no_grad():
            for name, p in self.named().items():
                failpoint("train.exchanging")
                if name not in averages:
                    continue
                if self.sharding is None:
                    p.data, averages[name] = averages[name], p.data
                else:  # whose memory is the processes' own
                    before = p.detach().clone()
                    p.copy_(averages[name])
                    averages[name].copy_(before)

    @contextlib.contextmanager
    def gathered(self) -> Iterator[None]:
        """Inside, this process has all weights, and needs no other one for a pass."""
        with contextlib.nullcontext() if self.sharding is None else self.sharding.gathered():
            yield

    def begin(self, micro_batches: list[Batch]) -> list[Batch]:
        """Before the passes of a step: its micro-batches, as many in all processes where these
        wait for one another in each.

        Raises `SpecError` where a process has fewer samples than another one micro-batches.
        """
        if self.sharding is None:
            return micro_batches
        self.sharding.begin()
        if not self.sharding.sums_itself:
            return micro_batches
        rows = sum(map(rows_of, micro_batches))
        counts = torch.stack(gathered(torch.tensor([len(micro_batches), rows])))
        passes, least = int(counts[:, 0].max()), int(counts[:, 1].min())
        if least < passes:
            raise SpecError(
                f"train.parallel.shard: a step of {passes:,} passes, for which a process has"
                f" {least:,} samples: its weights are divided, and all pass as often; take larger"
                " batches, or fewer processes"
            )
        found = list(micro_batches)
        while len(found) < passes:
            largest = max(range(len(found)), key=lambda i: rows_of(found[i]))
            found[largest : largest + 1] = divided([found[largest]], 2)
        return found

    def agreed(self, power: float) -> float:
        """The most of all processes' numbers, where gradients are summed in the passes."""
        return power if self.sharding is None else float(most(int(power)))

    def end(self) -> None:
        """After the passes: the optimizer's weights have the gradients."""
        if self.sharding is not None:
            self.sharding.end()

    def norm(self, gradients: list[Tensor]) -> Tensor:
        """()   the norm of the optimizer's gradients, in all processes."""
        return total_norm(gradients) if self.sharding is None else self.sharding.norm()
