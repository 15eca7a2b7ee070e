"""AdamW through PyTorch's fused kernel."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from bigmodel_cli.config import NonNegative, Positive, Probability
from bigmodel_cli.lazy import torch
from bigmodel_cli.optim.base import (
    AnyOptimizerOptions,
    Number,
    RecordableOptimizer,
    in_memory_order,
)
from bigmodel_cli.roles import Weight


class AdamWOptions(AnyOptimizerOptions):
    """AdamW (Loshchilov and Hutter 2019); with `weight_decay: 0` Adam (Kingma and Ba 2015)."""

    type: Literal["adamw"] = "adamw"
    state_per_param: ClassVar[int] = 2
    lr: Positive = Field(1e-3, description="peak learning rate")
    betas: Annotated[list[Probability], Field(min_length=2, max_length=2)] = Field(
        [0.9, 0.999],
        description="decay rates of the running means of the gradient and of its square",
    )
    eps: Positive = Field(1e-8, description="added to the root of the second moment")
    weight_decay: NonNegative = Field(
        0.0, description="decoupled decay of matrices, kernels and embeddings of tokens"
    )

    def scratch(self, sizes: list[int]) -> int:
        """Temporary bytes of an update of weights of these sizes: none, the kernel is fused."""
        return 0

    def build(self, weights: Iterable[Weight]) -> AdamW:
        return AdamW(self, weights)


class AdamW(RecordableOptimizer):
    """AdamW through PyTorch's fused kernel."""

    slots = ("exp_avg", "exp_avg_sq")

    def __init__(self, options: AdamWOptions, weights: Iterable[Weight]) -> None:
        super().__init__(options.weight_decay, weights)
        self.options = options

    def numbers(self, lr: float) -> list[float]:
        return [x for _, _, rate, step in self.due() for x in (lr * rate, float(step))]

    def update(self, numbers: Sequence[Number], divisor: Number) -> None:
        gradients, given = self.gradients(), iter(numbers)
        for group, decay, _, _ in self.due():
            device = self.parameters[group[0]].device
            lr, step = next(given), next(given)
            clock = (
                step
                if isinstance(step, torch.Tensor)
                else torch.full((), step, dtype=torch.float32, device=device)
            )
            every = self.parameters, gradients, self.state["exp_avg"], self.state["exp_avg_sq"]
            p, g, mean, square = in_memory_order(*([own[i] for i in group] for own in every))
            torch._fused_adamw_(
                p,
                g,
                mean,
                square,
                [],
                [clock] * len(group),  # the step, which parameters may share
                lr=lr,
                beta1=self.options.betas[0],
                beta2=self.options.betas[1],
                weight_decay=decay,
                eps=self.options.eps,
                amsgrad=False,
                maximize=False,
                grad_scale=self.scale(divisor, device),
                found_inf=None,
            )
