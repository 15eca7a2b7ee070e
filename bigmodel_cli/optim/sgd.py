"""Stochastic gradient descent through PyTorch's foreach kernels."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Literal

from pydantic import Field

from bigmodel_cli.config import NonNegative, Positive, Probability
from bigmodel_cli.lazy import torch
from bigmodel_cli.optim.base import AnyOptimizerOptions, Optimizer
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

    def build(self, weights: Iterable[Weight]) -> SGD:
        return SGD(self, weights)


class SGD(Optimizer):
    """SGD with momentum through PyTorch's foreach kernels."""

    slots = ("momentum",)

    def __init__(self, options: SGDOptions, weights: Iterable[Weight]) -> None:
        super().__init__(options.weight_decay, weights)
        self.options = options

    def step(self, lr: float, divisor: float | torch.Tensor) -> None:
        self.steps += 1
        every = self.gradients()
        with torch.no_grad():
            for group, decay, rate, _ in self.due():
                gradients = torch._foreach_div([every[i] for i in group], divisor)
                self.update(group, list(gradients), decay, lr * rate)

    def update(
        self, group: list[int], gradients: list[torch.Tensor], decay: float, lr: float
    ) -> None:
        """One group's update: momentum = mu * momentum + gradient.

        Nesterov's adds mu * momentum to the gradient once more.
        """
        parameters: list[torch.Tensor] = [self.parameters[i] for i in group]
        if decay:
            torch._foreach_add_(gradients, parameters, alpha=decay)
        momentum = [self.state["momentum"][i] for i in group]
        torch._foreach_mul_(momentum, self.options.momentum)
        torch._foreach_add_(momentum, gradients)
        if self.options.nesterov:
            torch._foreach_add_(gradients, momentum, alpha=self.options.momentum)
        else:
            gradients = momentum
        torch._foreach_add_(parameters, gradients, alpha=-lr)
