"""Optimizers.

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

from bigmodel_cli.config import Count, NonNegative, Options, Positive, Probability
from bigmodel_cli.lazy import torch
from bigmodel_cli.roles import Role, Weight


class AdamWOptions(Options):
    """AdamW (Loshchilov and Hutter 2019); with `weight_decay: 0` it is Adam (Kingma and Ba 2015)."""

    type: Literal["adamw"] = "adamw"
    copies: ClassVar[int] = 2  # of the weights, in the optimizer's state
    lr: Positive = Field(1e-3, description="peak learning rate")
    betas: Annotated[list[Probability], Field(min_length=2, max_length=2)] = Field(
        [0.9, 0.999], description="decay rates of the running means of the gradient and of its square"
    )
    eps: Positive = Field(1e-8, description="added to the root of the second moment")
    weight_decay: NonNegative = Field(0.0, description="decoupled decay of matrices, kernels and embeddings of tokens")

    def scratch(self, sizes: list[int]) -> int:
        """Bytes that an update needs for itself, for weights of these sizes in bytes: none, the kernel is fused."""
        return 0

    def build(self, weights: Iterable[Weight]) -> AdamW:
        """The optimizer of these weights."""
        return AdamW(self, weights)

    def mover(self, role: Role) -> tuple[str, float]:
        """Which optimizer moves a weight of that role, and with how much decay."""
        return "adamw", self.weight_decay if role.decayed else 0.0


class SGDOptions(Options):
    """Stochastic gradient descent with (Nesterov) momentum (Sutskever et al. 2013, in PyTorch's formulation)."""

    type: Literal["sgd"] = "sgd"
    copies: ClassVar[int] = 1
    lr: Positive = Field(0.1, description="peak learning rate")
    momentum: Probability = Field(0.9, description="decay rate of the running sum of gradients")
    nesterov: bool = Field(True, description="look ahead along the momentum")
    weight_decay: NonNegative = Field(0.0, description="L2 penalty on matrices, kernels and embeddings of tokens")

    def scratch(self, sizes: list[int]) -> int:
        """Bytes that an update needs for itself, for weights of these sizes in bytes: the scaled gradients."""
        return sum(sizes)

    def build(self, weights: Iterable[Weight]) -> SGD:
        """The optimizer of these weights."""
        return SGD(self, weights)

    def mover(self, role: Role) -> tuple[str, float]:
        """Which optimizer moves a weight of that role, and with how much decay."""
        return "sgd", self.weight_decay if role.decayed else 0.0


class MuonOptions(Options):
    """Muon (Jordan et al. 2024) for hidden matrices and kernels, AdamW for all other weights (first and last layer, gains ...)."""

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

    def build(self, weights: Iterable[Weight]) -> Muon:
        """The optimizer of these weights."""
        return Muon(self, weights)

    def mover(self, role: Role) -> tuple[str, float]:
        """Which optimizer moves a weight of that role, and with how much decay."""
        return ("muon", self.weight_decay) if role.matrix else self.rest.mover(role)


OptimizerOptions = Annotated[AdamWOptions | SGDOptions | MuonOptions, Field(discriminator="type")]
OPTIMIZERS: dict[str, type[Options]] = {"adamw": AdamWOptions, "sgd": SGDOptions, "muon": MuonOptions}


class Optimizer(ABC):
    """Common to all optimizers: weights in groups with and without decay, and named state tensors."""

    slots: tuple[str, ...] = ()

    def __init__(self, weight_decay: float, weights: Iterable[Weight]) -> None:
        self.weights = [w for w in weights if w.tensor.requires_grad]
        self.names = [w.name for w in self.weights]
        self.parameters = [w.tensor for w in self.weights]
        decayed = [i for i, w in enumerate(self.weights) if w.role.decayed]
        rest = [i for i, w in enumerate(self.weights) if not w.role.decayed]
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

    def __init__(self, options: AdamWOptions, weights: Iterable[Weight]) -> None:
        super().__init__(options.weight_decay, weights)
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

    def __init__(self, options: SGDOptions, weights: Iterable[Weight]) -> None:
        super().__init__(options.weight_decay, weights)
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
    code. Kernels count as matrices of (output, rest); experts, groups of channels and fused projections (query, key, value) are
    one matrix each (roles.py).
    """

    slots = ("momentum",)

    def __init__(self, options: MuonOptions, weights: Iterable[Weight]) -> None:
        everything = list(weights)
        super().__init__(options.weight_decay, [w for w in everything if w.role.matrix])
        self.options = options
        self.rest = AdamW(options.rest, [w for w in everything if not w.role.matrix])

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
            for weight, momentum in zip(self.weights, self.state["momentum"], strict=True):
                p = weight.tensor
                gradient = p.grad if p.grad is not None else torch.zeros_like(p)
                gradient = gradient / divisor
                momentum.lerp_(gradient, 1 - options.momentum)
                update = gradient.lerp(momentum, options.momentum) if options.nesterov else momentum
                parts = [
                    orthogonal(m, options.iterations) * math.sqrt(max(1.0, m.shape[-2] / m.shape[-1]))
                    for m in weight.role.matrices(update)
                ]
                if options.weight_decay:
                    p.mul_(1 - lr * options.weight_decay)
                p.add_(weight.role.joined(parts, p), alpha=-lr)


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


def describe_weights(options: OptimizerOptions, weights: Iterable[Weight]) -> list[dict[str, Any]]:
    """Of each weight, as plain values: its name and shape, which optimizer moves it (None: it is frozen), and whether it decays."""
    described = []
    for weight in weights:
        optimizer, decay = options.mover(weight.role)
        trained = weight.tensor.requires_grad
        described.append(
            {
                "name": weight.name,
                "shape": list(weight.tensor.shape),
                "optimizer": optimizer if trained else None,
                "decayed": trained and decay > 0,
            }
        )
    return described


def summary(described: list[dict[str, Any]]) -> str:
    """What `describe_weights` found, as one line: which optimizer moves how many tensors, and how many decay."""
    trained = [w for w in described if w["optimizer"] is not None]
    parts = []
    for optimizer in dict.fromkeys(w["optimizer"] for w in trained):
        moved = [math.prod(w["shape"]) for w in trained if w["optimizer"] == optimizer]
        parts.append(f"{optimizer} {len(moved)} tensors ({sum(moved):,} numbers)")
    decayed = sum(w["decayed"] for w in trained)
    frozen = f"; {len(described) - len(trained)} tensors frozen" if len(trained) < len(described) else ""
    decay = f"weight decay on {decayed} of {len(trained)} tensors" if decayed else "weight decay on none"
    return f"{', '.join(parts)}; {decay}{frozen}"
