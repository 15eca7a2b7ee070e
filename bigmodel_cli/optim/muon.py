"""Muon: momentum with orthogonalised matrices."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import ClassVar, Literal

from pydantic import Field

from bigmodel_cli.config import Count, NonNegative, Positive, Probability
from bigmodel_cli.lazy import torch
from bigmodel_cli.optim.adamw import AdamW, AdamWOptions
from bigmodel_cli.optim.base import AnyOptimizerOptions, Number, RecordableOptimizer
from bigmodel_cli.roles import Role, Weight


class MuonOptions(AnyOptimizerOptions):
    """Muon (Jordan et al. 2024) for hidden matrices and kernels, AdamW for all other weights."""

    type: Literal["muon"] = "muon"
    state_per_param: ClassVar[int] = 2
    lr: Positive = Field(0.02, description="peak learning rate of the matrices")
    momentum: Probability = Field(0.95, description="decay rate of the running mean of gradients")
    nesterov: bool = Field(True, description="look ahead along the momentum")
    iterations: Count = Field(5, description="Newton-Schulz iterations")
    weight_decay: NonNegative = Field(0.0, description="decoupled decay of the matrices")
    rest: AdamWOptions = Field(
        AdamWOptions(lr=3e-4), description="AdamW for the other weights, on the same schedule"
    )

    def state_copies(self, role: Role) -> int:
        return len(Muon.slots) if role.matrix else self.rest.state_copies(role)

    def scratch(self, sizes: list[int]) -> int:
        """Copies of one matrix at a time."""
        return 6 * max(sizes, default=0)

    def build(self, weights: Iterable[Weight]) -> Muon:
        return Muon(self, weights)

    def mover(self, role: Role) -> tuple[str, float]:
        return ("muon", self.weight_decay) if role.matrix else self.rest.mover(role)


class Muon(RecordableOptimizer):
    """Momentum whose matrices are orthogonalised before the update (Jordan et al. 2024, "Muon").

    Every singular value of the update becomes about 1; it is multiplied by sqrt(max(1, rows /
    columns)), as in the author's code. Kernels count as matrices of (output, rest); experts, groups
    of channels and fused projections (query, key, value) are one matrix each (roles.py).
    """

    slots = ("momentum",)

    def __init__(self, options: MuonOptions, weights: Iterable[Weight]) -> None:
        everything = list(weights)
        super().__init__(options.weight_decay, [w for w in everything if w.role.matrix])
        self.options = options
        self.rest = AdamW(options.rest, [w for w in everything if not w.role.matrix])

    def gradients(self) -> list[torch.Tensor]:
        return [*super().gradients(), *self.rest.gradients()]

    def moving(self) -> list[torch.Tensor]:
        return [*super().moving(), *self.rest.moving()]

    def wake(self) -> None:
        super().wake()
        self.rest.wake()

    def clear(self) -> None:
        super().clear()
        self.rest.clear()

    def count(self) -> None:
        super().count()
        self.rest.count()

    @property
    def device(self) -> torch.device:
        return super().device if self.parameters else self.rest.device

    def phase(self) -> tuple[bool, ...]:
        return super().phase() + self.rest.phase()

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {**super().state_dict(), **self.rest.state_dict()}

    def load_state_dict(self, tensors: dict[str, torch.Tensor], steps: int) -> None:
        super().load_state_dict(tensors, steps)
        self.rest.load_state_dict(tensors, steps)

    def numbers(self, lr: float) -> list[float]:
        rest = self.rest.numbers(self.options.rest.lr * lr / self.options.lr)
        return [*(lr * rate for _, _, rate, _ in self.due()), *rest]

    def update(self, numbers: Sequence[Number], divisor: Number) -> None:
        options, due = self.options, list(self.due())
        self.rest.update(numbers[len(due) :], divisor)
        with torch.no_grad():
            rates = {i: lr for (group, *_), lr in zip(due, numbers, strict=False) for i in group}
            for i, lr in sorted(rates.items()):
                weight, momentum = self.weights[i], self.state["momentum"][i]
                p = weight.tensor
                gradient = (p.grad if p.grad is not None else torch.zeros_like(p)) / divisor
                momentum.lerp_(gradient, 1 - options.momentum)
                update = gradient.lerp(momentum, options.momentum) if options.nesterov else momentum
                update = weight.whole(update)
                parts = [
                    orthogonal(m, options.iterations)
                    * math.sqrt(max(1.0, m.shape[-2] / m.shape[-1]))
                    for m in weight.role.matrices(update)
                ]
                if options.weight_decay:
                    p.mul_(1 - lr * options.weight_decay)
                p.sub_(weight.own(weight.role.joined(parts, update)) * lr)


def orthogonal(matrix: torch.Tensor, iterations: int) -> torch.Tensor:
    """(..., M, N) -> (..., M, N)   about U V^T of the SVD U S V^T.

    A quintic Newton-Schulz iteration whose coefficients (Jordan et al. 2024) bring singular values
    into about 0.7 to 1.2; in bf16 on CUDA, where that is fastest and enough.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.bfloat16() if matrix.is_cuda else matrix
    wide = x.shape[-2] <= x.shape[-1]
    x = x if wide else x.transpose(-1, -2)
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    stacked = x if x.dim() == 2 else x.flatten(0, -3)
    added = torch.addmm if x.dim() == 2 else torch.baddbmm  # sums and products in one operation
    for _ in range(iterations):
        square = stacked @ stacked.transpose(-1, -2)
        factor = added(square, square, square, beta=b, alpha=c)
        stacked = added(stacked, factor, stacked, beta=a)
    x = stacked.view(x.shape)
    result: torch.Tensor = x if wide else x.transpose(-1, -2)
    return result.to(matrix.dtype)
