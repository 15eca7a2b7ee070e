"""A training's weights as this process keeps them: all of each, or a part (sharding.py)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass

from bigmodel_cli.distributed import most
from bigmodel_cli.failpoints import failpoint
from bigmodel_cli.lazy import Module, Tensor, torch
from bigmodel_cli.optim import total_norm
from bigmodel_cli.sharding import Sharding
from bigmodel_cli.shares import ALONE, Team
from bigmodel_cli.tensor_parallel import TensorParallel


@dataclass(frozen=True)
class Kept:
    """The weights of a model, of which processes may keep parts."""

    model: Module
    sharding: Sharding | TensorParallel | None = None
    context: Team = ALONE  # with positions of the same rows

    @property
    def pass_together(self) -> bool:
        """Whether the processes wait for one another in each pass."""
        return self.sharding is not None or self.context.size > 1

    @property
    def passes_alone(self) -> bool:
        """Whether this process can let the model pass without the others, within `gathered`."""
        return self.sharding is None or self.sharding.passes_alone

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

    def begin(self, passes: int) -> int:
        """Before the passes of a step, of which this process has so many: how many others are taken
        in which it has no sample, where the processes wait for one another in each.
        """
        if self.sharding is None:
            return 0
        self.sharding.begin()
        return most(passes) - passes if self.sharding.sums_itself else 0

    def agreed(self, power: float) -> float:
        """The most of all processes' numbers, where gradients are summed in the passes."""
        if self.sharding is not None:
            return float(most(int(power)))
        if self.context.size > 1:
            first = next(self.model.parameters())
            return float(self.context.largest(torch.tensor(power, device=first.device)))
        return power

    def end(self) -> None:
        """After the passes: the optimizer's weights have the gradients."""
        if self.sharding is not None:
            self.sharding.end()

    def norm(self, gradients: list[Tensor]) -> Tensor:
        """()   the norm of the optimizer's gradients, in all processes."""
        return total_norm(gradients) if self.sharding is None else self.sharding.norm()
