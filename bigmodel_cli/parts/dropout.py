"""Dropout with a quarter of the random numbers: each 64-bit number decides four elements."""

from __future__ import annotations

import functools
from typing import Any

from bigmodel_cli.draw import kept_by_row
from bigmodel_cli.lazy import F, Module, Tensor, nn, torch
from bigmodel_cli.shares import ALONE, Team

STEPS = 1 << 16
"""On a CPU probabilities are multiples of 1 / STEPS."""


def dropout(x: Tensor, p: float, training: bool, team: Team = ALONE) -> Tensor:
    """(...) -> (...)   dropout (Srivastava et al. 2014); identity unless `training`.

    PyTorch draws a number for every element, on one core: a third of the time of a small
    Transformer's training step. Here a number serves four, each compared with 16 bits of it; what
    is kept is divided by the probability that those bits give. In training it is drawn by the rows'
    keys (draw.py), so that micro-batches, neighbours and padding change nothing; but for compiled
    networks, whose draws are those of torch's generator. A `team` has equal shares of the last
    axis.
    """
    if not training or p == 0:
        return x
    if team.size > 1:
        return _of_share(x, p, team)
    if torch.compiler.is_compiling():
        return F.dropout(x, p, True)
    found = drawn(x.shape, p, x.device)
    if found is None:
        return F.dropout(x, p, True)
    dropped: Tensor = _dropping().apply(x, *found)
    return dropped


def _of_share(x: Tensor, p: float, team: Team) -> Tensor:
    """(..., n) -> (..., n)   dropout of one's share of (..., n * size), drawn for all of it: all
    processes draw the same, and drop what one process by itself would.
    """
    shape = torch.Size((*x.shape[:-1], x.shape[-1] * team.size))
    found = drawn(shape, p, x.device) or drawn(shape, p, torch.device("cpu"))
    assert found is not None
    own = found[0].narrow(-1, team.rank * x.shape[-1], x.shape[-1]).to(x.device)
    dropped: Tensor = _dropping().apply(x, own, found[1])
    return dropped


def drawn(shape: torch.Size, p: float, device: torch.device) -> tuple[Tensor, float] | None:
    """Which elements are kept (bool), and what they are multiplied by; None where the device's own
    kernels are to draw it: where no rows are told, but for a CPU.
    """
    dropped = min(STEPS - 1, max(1, round(p * STEPS)))
    kept = kept_by_row(shape, dropped, device)
    if kept is None:
        if device.type != "cpu":
            return None
        count = shape.numel()
        bits = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(1 << 63), None)
        kept = (bits.view(torch.int16)[:count] >= dropped - STEPS // 2).view(shape)
    return kept, STEPS / (STEPS - dropped)


def drop_path(y: Tensor, p: float) -> Tensor:
    """(B, ...) -> (B, ...)   rows dropped as a whole, in training (Huang et al. 2016, stochastic
    depth).
    """
    shape = torch.Size((len(y), *[1] * (y.dim() - 1)))
    # one number a row, whichever of its positions are here
    found = None if torch.compiler.is_compiling() else drawn(shape[:1], p, y.device)
    if found is None:
        kept = torch.rand(shape, device=y.device) >= p
        return y * (kept / (1 - p)).to(y.dtype)
    return y * (found[0].view(shape).to(torch.float32) * found[1]).to(y.dtype)


def dropout_module(p: float) -> Module:
    """`dropout` as a module."""
    found: Module = _module_class()(p)
    return found


@functools.cache
def _module_class() -> Any:
    """The class; torch is imported by now."""

    class Dropout(nn.Dropout):
        """`dropout` as a module."""

        def forward(self, x: Tensor) -> Tensor:
            """(...) -> (...)"""
            return dropout(x, self.p, self.training)

    return Dropout


def drawn_by_row(module: Module) -> None:
    """Let PyTorch's or torchvision's own dropout and stochastic depth draw as these do."""
    if type(module) is nn.Dropout:
        module.__class__ = _module_class()
    elif type(module).__name__ == "StochasticDepth" and module.mode == "row":
        module.__class__ = _path_class(type(module))  # type: ignore[arg-type]


@functools.cache
def _path_class(own: type[Module]) -> type[Module]:
    """Of torchvision's class, which is imported by now, one that draws by row."""

    def forward(self: Any, y: Tensor) -> Tensor:
        return drop_path(y, self.p) if self.training and self.p else y

    return type(own.__name__, (own,), {"forward": forward, "__doc__": own.__doc__})


def applied(x: Tensor, kept: Tensor, factor: float) -> Tensor:
    """(...) -> (...)   what is kept times the factor; 0 elsewhere."""
    return x * kept.to(x.dtype).mul_(factor)


@functools.cache
def _dropping() -> Any:
    """The class; torch is imported by now."""

    class Dropping(torch.autograd.Function):
        """Keeps a byte for each element, where autograd would keep a number."""

        @staticmethod
        def forward(context: Any, x: Tensor, kept: Tensor, factor: float) -> Tensor:
            """What is kept."""
            context.save_for_backward(kept)
            context.factor = factor
            return applied(x, kept, factor)

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
            """Of what is kept."""
            (kept,) = context.saved_tensors
            return applied(gradient, kept, context.factor), None, None

    return Dropping
