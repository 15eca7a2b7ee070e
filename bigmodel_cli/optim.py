"""Optimizers and learning-rate schedules.

Our own few lines around PyTorch's fused and foreach kernels: `torch.optim.Optimizer` imports the compiler on first use,
which costs as much start-up time as half of torch itself, and its state has no names. Here the state is keyed by the
parameter's name, so that a checkpoint can be read by a person, and the scale of the gradient (sums, not means) is applied
inside the update.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from bigmodel_cli.config import Count, Fraction, Natural, NonNegative, Options, Positive, Probability
from bigmodel_cli.lazy import torch


class AdamWOptions(Options):
    """AdamW (Loshchilov and Hutter 2019); with `weight_decay: 0` it is Adam (Kingma and Ba 2015)."""

    type: Literal["adamw"] = "adamw"
    copies: ClassVar[int] = 2  # of the weights, in the optimizer's state
    lr: Positive = Field(1e-3, description="peak learning rate")
    betas: Annotated[list[Probability], Field(min_length=2, max_length=2)] = Field(
        [0.9, 0.999], description="decay rates of the running means of the gradient and of its square"
    )
    eps: Positive = Field(1e-8, description="added to the root of the second moment")
    weight_decay: NonNegative = Field(0.0, description="decoupled decay, on matrices and kernels only")

    def scratch(self, sizes: list[int]) -> int:
        """Bytes that an update needs for itself, for weights of these sizes in bytes: none, the kernel is fused."""
        return 0

    def build(self, parameters: Iterable[tuple[str, torch.nn.Parameter]]) -> AdamW:
        """The optimizer of these named parameters."""
        return AdamW(self, parameters)


class SGDOptions(Options):
    """Stochastic gradient descent with (Nesterov) momentum (Sutskever et al. 2013, in PyTorch's formulation)."""

    type: Literal["sgd"] = "sgd"
    copies: ClassVar[int] = 1
    lr: Positive = Field(0.1, description="peak learning rate")
    momentum: Probability = Field(0.9, description="decay rate of the running sum of gradients")
    nesterov: bool = Field(True, description="look ahead along the momentum")
    weight_decay: NonNegative = Field(0.0, description="L2 penalty, on matrices and kernels only")

    def scratch(self, sizes: list[int]) -> int:
        """Bytes that an update needs for itself, for weights of these sizes in bytes: the scaled gradients."""
        return sum(sizes)

    def build(self, parameters: Iterable[tuple[str, torch.nn.Parameter]]) -> SGD:
        """The optimizer of these named parameters."""
        return SGD(self, parameters)


class MuonOptions(Options):
    """Muon (Jordan et al. 2024) for the matrices between embedding and head, AdamW for all other weights."""

    type: Literal["muon"] = "muon"
    copies: ClassVar[int] = 2
    lr: Positive = Field(0.02, description="peak learning rate of the matrices")
    momentum: Probability = Field(0.95, description="decay rate of the running mean of gradients")
    nesterov: bool = Field(True, description="look ahead along the momentum")
    iterations: Count = Field(5, description="Newton-Schulz iterations")
    weight_decay: NonNegative = Field(0.0, description="decoupled decay of the matrices")
    rest: AdamWOptions = Field(AdamWOptions(lr=3e-4), description="AdamW for the other weights, on the same schedule")

    def scratch(self, sizes: list[int]) -> int:
        """Bytes that an update needs for itself, for weights of these sizes in bytes: some copies of one matrix at a time."""
        return 6 * max(sizes, default=0)

    def build(self, parameters: Iterable[tuple[str, torch.nn.Parameter]]) -> Muon:
        """The optimizer of these named parameters."""
        return Muon(self, parameters)


OptimizerOptions = Annotated[AdamWOptions | SGDOptions | MuonOptions, Field(discriminator="type")]
OPTIMIZERS: dict[str, type[Options]] = {"adamw": AdamWOptions, "sgd": SGDOptions, "muon": MuonOptions}


class Schedule(Options):
    """Learning rate over a run: linear warm-up to the peak, then the shape called `type` down to `final` x peak."""

    type: Literal["constant", "linear", "cosine", "inverse_sqrt", "wsd"] = Field(
        "constant",
        description="the shape after the warm-up; inverse_sqrt: as the original Transformer; wsd: constant, then down",
    )
    warmup: Natural = Field(0, description="steps of linear warm-up")
    final: Fraction = Field(0.0, description="the learning rate at the last step, as a fraction of the peak")
    decay: Fraction = Field(
        0.2, description="wsd: the part of the run, at its end, in which the rate goes down linearly"
    )

    def factor(self, step: int, total: int) -> float:
        """The fraction of the peak learning rate for optimizer step `step` (from 0) of `total`.

        Inverse square root: Vaswani et al. 2017, equation 3; its peak is at the end of the warm-up, and it heeds no `final`.
        Warm-up, stable, decay: Hu et al. 2024 (MiniCPM), with a linear end.
        """
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        if self.type == "constant":
            return 1.0
        if self.type == "inverse_sqrt":
            return math.sqrt(max(1, self.warmup) / max(1, step))
        progress = min(1.0, (step - self.warmup) / max(1, total - self.warmup))
        if self.type == "wsd":
            shape = min(1.0, (total - step) / max(1.0, self.decay * total))
        else:
            shape = 1 - progress if self.type == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
        return self.final + (1 - self.final) * shape


class Optimizer(ABC):
    """Common to all optimizers: named parameters in groups with and without decay, and named state tensors."""

    slots: tuple[str, ...] = ()

    def __init__(self, weight_decay: float, parameters: Iterable[tuple[str, torch.nn.Parameter]]) -> None:
        trainable = [(name, p) for name, p in parameters if p.requires_grad]
        self.names = [name for name, _ in trainable]
        self.parameters = [p for _, p in trainable]
        decayed = [i for i, p in enumerate(self.parameters) if p.dim() >= 2]
        rest = [i for i, p in enumerate(self.parameters) if p.dim() < 2]
        self.groups = [(group, decay) for group, decay in ((decayed, weight_decay), (rest, 0.0)) if group]
        self.state = {slot: [torch.zeros_like(p) for p in self.parameters] for slot in self.slots}
        self.steps = 0

    def gradients(self) -> list[torch.Tensor]:
        """The gradients, in the order of `parameters`; zeros for a parameter that took no part in the loss."""
        for p in self.parameters:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        return [p.grad for p in self.parameters if p.grad is not None]

    def clear(self) -> None:
        """Forget the gradients."""
        for p in self.parameters:
            p.grad = None

    def state_dict(self) -> dict[str, torch.Tensor]:
        """State tensors under '<slot>.<parameter name>'; the step count is the run's own."""
        return {f"{slot}.{n}": t for slot, ts in self.state.items() for n, t in zip(self.names, ts, strict=True)}

    def load_state_dict(self, tensors: dict[str, torch.Tensor], steps: int) -> None:
        """Copy a saved state back. Raises `KeyError` or `RuntimeError` where names or shapes differ."""
        for slot, own in self.state.items():
            for name, tensor in zip(self.names, own, strict=True):
                tensor.copy_(tensors[f"{slot}.{name}"])
        self.steps = steps

    @abstractmethod
    def step(self, lr: float, divisor: float) -> None:
        """Update the parameters with their gradients divided by `divisor`."""


class AdamW(Optimizer):
    """AdamW through PyTorch's fused kernel."""

    slots = ("exp_avg", "exp_avg_sq")

    def __init__(self, options: AdamWOptions, parameters: Iterable[tuple[str, torch.nn.Parameter]]) -> None:
        super().__init__(options.weight_decay, parameters)
        self.options = options
        # The kernel reads the step from a tensor per parameter: they all share one.
        self.clock = torch.zeros((), dtype=torch.float32, device=self.parameters[0].device) if self.parameters else None

    def step(self, lr: float, divisor: float) -> None:
        if self.clock is None:
            return
        self.steps += 1
        self.clock.fill_(self.steps)
        gradients = self.gradients()
        scale = torch.full((), divisor, dtype=torch.float32, device=self.clock.device)
        for group, decay in self.groups:
            torch._fused_adamw_(
                [self.parameters[i] for i in group],
                [gradients[i] for i in group],
                [self.state["exp_avg"][i] for i in group],
                [self.state["exp_avg_sq"][i] for i in group],
                [],
                [self.clock] * len(group),
                lr=lr,
                beta1=self.options.betas[0],
                beta2=self.options.betas[1],
                weight_decay=decay,
                eps=self.options.eps,
                amsgrad=False,
                maximize=False,
                grad_scale=scale,
                found_inf=None,
            )


class SGD(Optimizer):
    """SGD with momentum through PyTorch's foreach kernels."""

    slots = ("momentum",)

    def __init__(self, options: SGDOptions, parameters: Iterable[tuple[str, torch.nn.Parameter]]) -> None:
        super().__init__(options.weight_decay, parameters)
        self.options = options

    def step(self, lr: float, divisor: float) -> None:
        self.steps += 1
        every = self.gradients()
        with torch.no_grad():
            for group, decay in self.groups:
                self.update([self.parameters[i] for i in group], [every[i] for i in group], group, decay, lr, divisor)

    def update(
        self,
        parameters: list[torch.Tensor],
        gradients: list[torch.Tensor],
        group: list[int],
        decay: float,
        lr: float,
        divisor: float,
    ) -> None:
        """One group's update: momentum = mu * momentum + gradient; Nesterov adds mu * momentum once more."""
        gradients = list(torch._foreach_div(gradients, divisor))
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


class Muon(Optimizer):
    """Momentum whose matrices are made orthogonal before they move the weights (Jordan et al. 2024, "Muon").

    Every singular value of the update becomes about 1; it is multiplied by sqrt(max(1, rows / columns)), as in the author's
    code. Kernels count as matrices of (output, rest), experts as one matrix each.
    """

    slots = ("momentum",)

    def __init__(self, options: MuonOptions, parameters: Iterable[tuple[str, torch.nn.Parameter]]) -> None:
        everything = list(parameters)
        matrices = [(name, p) for name, p in everything if p.dim() >= 2 and not name.endswith(NOT_MATRICES)]
        chosen = {name for name, _ in matrices}
        super().__init__(options.weight_decay, matrices)
        self.options = options
        self.rest = AdamW(options.rest, [(name, p) for name, p in everything if name not in chosen])

    def gradients(self) -> list[torch.Tensor]:
        return [*super().gradients(), *self.rest.gradients()]

    def clear(self) -> None:
        super().clear()
        self.rest.clear()

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {**super().state_dict(), **self.rest.state_dict()}

    def load_state_dict(self, tensors: dict[str, torch.Tensor], steps: int) -> None:
        super().load_state_dict(tensors, steps)
        self.rest.load_state_dict(tensors, steps)

    def step(self, lr: float, divisor: float) -> None:
        self.steps += 1
        options = self.options
        self.rest.step(options.rest.lr * lr / options.lr, divisor)
        with torch.no_grad():
            for p, momentum in zip(self.parameters, self.state["momentum"], strict=True):
                gradient = p.grad if p.grad is not None else torch.zeros_like(p)
                gradient = gradient / divisor
                momentum.lerp_(gradient, 1 - options.momentum)
                update = gradient.lerp(momentum, options.momentum) if options.nesterov else momentum
                matrix = update if p.dim() == 3 else update.flatten(1)
                scale = math.sqrt(max(1.0, matrix.shape[-2] / matrix.shape[-1]))
                if options.weight_decay:
                    p.mul_(1 - lr * options.weight_decay)
                p.add_(orthogonal(matrix, options.iterations).view_as(p), alpha=-lr * scale)


NOT_MATRICES = (
    "embedding.weight",
    "head.weight",
    "head.logits.weight",
    "table",
    "table.weight",
    "conv.weight",
    "types.weight",
)
"""Ends of the names of weights that Muon leaves to AdamW: embeddings, logits, positions, convolutions of single channels."""


def orthogonal(matrix: torch.Tensor, iterations: int) -> torch.Tensor:
    """(..., M, N) -> (..., M, N)   about U V^T of the singular value decomposition U S V^T.

    A quintic Newton-Schulz iteration whose coefficients (Jordan et al. 2024) bring singular values into about 0.7 to 1.2; in bf16
    on CUDA, where that is fastest and enough.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.bfloat16() if matrix.is_cuda else matrix
    wide = x.shape[-2] <= x.shape[-1]
    x = x if wide else x.transpose(-1, -2)
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    for _ in range(iterations):
        square = x @ x.transpose(-1, -2)
        x = a * x + (b * square + c * square @ square) @ x
    result: torch.Tensor = x if wide else x.transpose(-1, -2)
    return result.to(matrix.dtype)


def total_norm(tensors: list[torch.Tensor]) -> torch.Tensor:
    """The Euclidean norm of all values of all tensors, as one number on their device."""
    if not tensors:
        return torch.zeros(())
    norm: torch.Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors)))
    return norm


def describe_optimizers() -> dict[str, Any]:
    """Each optimizer's name with one line about it."""
    return {name: (options.__doc__ or "").strip().splitlines()[0] for name, options in OPTIMIZERS.items()}
