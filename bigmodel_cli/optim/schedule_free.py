"""Schedule-free AdamW: an average of the weights replaces a decaying schedule."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from bigmodel_cli.config import NonNegative, Positive, Probability
from bigmodel_cli.lazy import torch
from bigmodel_cli.optim.base import AnyOptimizerOptions, Optimizer
from bigmodel_cli.roles import Weight


class ScheduleFreeAdamWOptions(AnyOptimizerOptions):
    """Schedule-free AdamW (Defazio et al. 2024): averages weights instead of decaying the rate."""

    type: Literal["schedule_free_adamw"] = "schedule_free_adamw"
    state_per_param: ClassVar[int] = 3
    averages: ClassVar[bool] = True
    lr: Positive = Field(2.5e-3, description="learning rate after the warm-up")
    betas: Annotated[list[Probability], Field(min_length=2, max_length=2)] = Field(
        [0.9, 0.999],
        description=(
            "how near the average gradients are taken, and decay rate of the mean of their squares"
        ),
    )
    eps: Positive = Field(1e-8, description="added to the root of the second moment")
    weight_decay: NonNegative = Field(
        0.0, description="decoupled decay of matrices, kernels and embeddings of tokens"
    )

    def scratch(self, sizes: list[int]) -> int:
        """The scaled gradients, and the roots of the second moments."""
        return 2 * sum(sizes)

    def build(self, weights: Iterable[Weight]) -> ScheduleFreeAdamW:
        return ScheduleFreeAdamW(self, weights)

    def remarks(self, last: float) -> list[str]:
        """Warn of a decaying learning rate, which the method is meant to replace."""
        if last == 1:
            return []
        return [
            f"train.schedule: the learning rate ends at {100 * last:.3g} % of its peak, and"
            f" {self.type} is made to do without that; set train.schedule: {{type: constant,"
            " warmup: N}"
        ]


class ScheduleFreeAdamW(Optimizer):
    """Algorithm 1 of the paper: z moves, x is its mean, and gradients are taken at y between them.

    y = (1 - beta1) z + beta1 x
    z' = z - lr (g(y) / (sqrt(v') + eps) + decay y)
    x' = (1 - c) x + c z'

    c = w / (sum of all w so far), with w the square of the largest learning rate so far, so that
    steps of the warm-up count less. The parameters hold y while training; y is computed from x and
    z alone, so that a resume is exact.
    """

    slots = ("z", "exp_avg_sq")

    def __init__(self, options: ScheduleFreeAdamWOptions, weights: Iterable[Weight]) -> None:
        super().__init__(options.weight_decay, weights)
        self.options = options
        self.averaged = {w.name: w.tensor.detach().clone() for w in self.weights}
        for z, p in zip(self.state["z"], self.parameters, strict=True):
            z.copy_(p.detach())
        self.sums = torch.zeros(2, dtype=torch.float64)  # largest rate so far, sum of the w

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {**super().state_dict(), "sums": self.sums}

    def load_state_dict(self, tensors: dict[str, torch.Tensor], steps: int) -> None:
        super().load_state_dict(tensors, steps)
        self.sums.copy_(tensors["sums"])

    def step(self, lr: float, divisor: float | torch.Tensor) -> None:
        self.steps += 1
        largest, total = self.sums.tolist()
        largest = max(largest, lr)
        total += largest**2
        self.sums.copy_(torch.tensor([largest, total], dtype=torch.float64))
        with torch.no_grad():
            every = self.gradients()
            for group, decay, rate, _ in self.due():
                gradients = torch._foreach_div([every[i] for i in group], divisor)
                # The square of a tiny rate is 0.
                share = largest**2 / total if total else 1.0
                self.update(group, list(gradients), decay, lr * rate, share)

    def update(
        self,
        group: list[int],
        gradients: list[torch.Tensor],
        decay: float,
        lr: float,
        share: float,
    ) -> None:
        """One group's update; `share` is c."""
        beta1, beta2 = self.options.betas
        y = [self.parameters[i].data for i in group]
        z, square = ([self.state[slot][i] for i in group] for slot in self.slots)
        x = [self.averaged[self.names[i]] for i in group]
        torch._foreach_mul_(square, beta2)
        torch._foreach_addcmul_(square, gradients, gradients, 1 - beta2)
        size = torch._foreach_div(square, 1 - beta2**self.steps)
        torch._foreach_sqrt_(size)
        torch._foreach_add_(size, self.options.eps)
        torch._foreach_div_(gradients, size)
        if decay:
            torch._foreach_add_(gradients, y, alpha=decay)
        torch._foreach_add_(z, gradients, alpha=-lr)
        torch._foreach_lerp_(x, z, share)
        torch._foreach_copy_(y, z)
        torch._foreach_lerp_(y, x, beta1)
