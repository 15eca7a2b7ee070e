"""Promises of plugins' optimizers and schedules (other plugins need a spec to be checked with)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from bigmodel_cli.lazy import Tensor, nn, torch
from bigmodel_cli.promises.trial import Broken, expect_equal
from bigmodel_cli.roles import GAIN, MATRIX, Weight

STEPS = 4
REMEDIES = {
    "sums": "divide the gradients by `divisor`: they are sums over a step's targets",
    "saved": (
        "keep all that changes in self.state, or give it by state_dict and take it by"
        " load_state_dict"
    ),
    "finite": "compute without zeros below a fraction bar: gradients may be 0",
    "factors": (
        "return a finite number of 0 or more for any step of any run, and the same when asked again"
    ),
}
"""What to do about a broken promise."""


class _Tried:
    """An optimizer of a few weights, with fixed gradients."""

    def __init__(self, options: Any) -> None:
        draw = torch.Generator().manual_seed(1)
        shapes = {"matrix": (4, 3), "kernel": (4, 2, 3, 3), "gain": (3,), "scalar": ()}
        self.weights = {n: nn.Parameter(torch.randn(s, generator=draw)) for n, s in shapes.items()}
        roles = {n: MATRIX if p.dim() > 1 else GAIN for n, p in self.weights.items()}
        self.optimizer = options.build([Weight(n, p, roles[n]) for n, p in self.weights.items()])

    def move(self, steps: range, factor: float = 1.0, gradients: float = 1.0) -> Tensor:
        """Take these steps and return all weights as one vector."""
        for step in steps:
            draw = torch.Generator().manual_seed(step)
            for p in self.weights.values():
                p.grad = factor * gradients * torch.randn(p.shape, generator=draw)
            self.optimizer.step(1e-2, factor)
            self.optimizer.clear()
        return torch.cat([p.detach().flatten() for p in self.weights.values()])


def _sums(options: Any) -> None:
    """Sums over 8 targets update the weights as their mean does."""
    expect_equal(
        _Tried(options).move(range(STEPS), 8.0),
        _Tried(options).move(range(STEPS)),
        "sums move otherwise than means",
    )


def _saved(options: Any) -> None:
    """Another optimizer with the same weights and the saved state continues as the first."""
    first, second = _Tried(options), _Tried(options)
    first.move(range(STEPS))
    for name, p in second.weights.items():
        p.data.copy_(first.weights[name].detach())
    state = {name: tensor.clone() for name, tensor in first.optimizer.state_dict().items()}
    second.optimizer.load_state_dict(state, first.optimizer.steps)
    for name, p in second.optimizer.averaged.items():
        p.copy_(first.optimizer.averaged[name])
    if not torch.equal(first.move(range(STEPS, 2 * STEPS)), second.move(range(STEPS, 2 * STEPS))):
        raise Broken("a resumed run moves the weights otherwise")


def _finite(options: Any) -> None:
    """Weights stay finite where all gradients are 0, and where they are large."""
    for size in (0.0, 1e6):
        if not bool(torch.isfinite(_Tried(options).move(range(STEPS), gradients=size)).all()):
            raise Broken(f"weights are not finite after gradients of about {size:g}")


def _factors(options: Any) -> None:
    """Every factor is a finite number of 0 or more, by the step and the run's length alone."""
    for total in (1, 2, 10, 1000):
        for step in range(total):
            factor = options.factor(step, total)
            if not math.isfinite(factor) or factor < 0 or factor != options.factor(step, total):
                raise Broken(f"step {step} of {total} has the factor {factor}")


TRIES: dict[str, dict[str, Callable[[Any], None]]] = {
    "optimizer": {"sums": _sums, "saved": _saved, "finite": _finite},
    "schedule": {"factors": _factors},
}
"""By the kind of table, what is tried of options with values."""
