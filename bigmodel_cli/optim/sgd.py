"""Stochastic gradient descent through PyTorch's fused kernel."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar, Literal

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


class SGDOptions(AnyOptimizerOptions):
    """Stochastic gradient descent with (Nesterov) momentum (Sutskever et al. 2013)."""

    type: Literal["sgd"] = "sgd"
    state_per_param: ClassVar[int] = 1
    lr: Positive = Field(0.1, description="peak learning rate")
    momentum: Probability = Field(0.9, description="decay rate of the running sum of gradients")
    nesterov: bool = Field(True, description="look ahead along the momentum")
    weight_decay: NonNegative = Field(
        0.0, description="L2 penalty on matrices, kernels and embeddings of tokens"
    )

    def scratch(self, sizes: list[int]) -> int:
        """Temporary bytes of an update of weights of these sizes: none, the kernel is fused."""
        return 0

    def build(self, weights: Iterable[Weight]) -> SGD:
        return SGD(self, weights)


class SGD(RecordableOptimizer):
    """SGD with momentum through PyTorch's fused kernel."""

    slots = ("momentum",)

    def __init__(self, options: SGDOptions, weights: Iterable[Weight]) -> None:
        super().__init__(options.weight_decay, weights)
        self.options = options

    def numbers(self, lr: float) -> list[float]:
        return [lr * rate for _, _, rate, _ in self.due()]

    def update(self, numbers: Sequence[Number], divisor: Number) -> None:
        gradients = self.gradients()
        for (group, decay, _, _), lr in zip(self.due(), numbers, strict=True):
            mu = self.options.momentum
            every = self.parameters, gradients, self.state["momentum"]
            p, g, momentum = in_memory_order(*([own[i] for i in group] for own in every))
            torch._fused_sgd_(
                p,
                g,
                momentum if mu else [],  # without momentum the kernel refuses a list
                weight_decay=decay,
                momentum=mu,
                lr=lr,
                dampening=0.0,
                nesterov=self.options.nesterov and mu > 0,
                maximize=False,
                is_first_step=False,
                grad_scale=self.scale(divisor, self.parameters[group[0]].device),
                found_inf=None,
            )
