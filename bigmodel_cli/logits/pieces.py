"""Sums over rows of late logits, with their gradients, of which a piece at a time is in memory."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from bigmodel_cli.draw import drawing
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.logits.late import LateLogits, read

Piece = Callable[..., Tensor]
"""(rows, logits (n, V) of these rows, one for each network) -> ()   their part of the sum."""


def summed_in_pieces(piece: Piece, *logits: LateLogits | Tensor) -> Tensor:
    """()   the sum of `piece` over the rows of some (N, V) logits, the first of which are late.

    The gradient of a piece's logits is known when its part of the sum is, up to a factor: so hidden
    states and the weights of heads get theirs at once, and the logits are freed. Every other tensor
    that `piece` reads is a constant. Heads may be any modules; one that draws (an adapter's
    dropout) draws for each piece.
    """
    first = logits[0]
    assert isinstance(first, LateLogits)
    each = [one for one in logits if isinstance(one, LateLogits)]
    weights = list({id(p): p for one in each for p in one.head.parameters()}.values())
    inputs = [*(one.hidden for one in each), *weights]
    given = constant_without_gradients(*inputs)
    found: Tensor = _function().apply(piece, logits, len(each), *given)
    return found


def constant_without_gradients(*inputs: Tensor | None) -> tuple[Any, ...]:
    """The inputs of a function whose gradients are computed with its value, where gradients are
    off: of constants there is none to compute.
    """
    if torch.is_grad_enabled():
        return inputs
    return tuple(None if x is None else x.detach() for x in inputs)


@functools.cache
def _function() -> Any:
    """The class; torch is imported by now."""

    class SummedInPieces(torch.autograd.Function):
        """Its gradient is known up to a factor in the forward pass."""

        @staticmethod
        def forward(
            context: Any,
            piece: Piece,
            logits: Sequence[LateLogits | Tensor],
            late: int,
            *inputs: Tensor,
        ) -> Tensor:
            """The sum; gradients are kept."""
            needed = context.needs_input_grad[3:]
            gradients: list[Tensor | None] = [
                torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32))
                if wanted
                else None
                for x, wanted in zip(inputs, needed, strict=True)
            ]
            with drawing(None):  # what passes through a head here are not the rows
                total = _all_pieces(piece, logits, late, inputs, gradients)
            context.gradients = gradients
            context.kinds = [x.dtype for x in inputs]
            return total

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(context: Any, factor: Tensor) -> Any:
            """The kept gradients times the factor."""
            gradients = context.gradients
            del context.gradients
            kinds = zip(gradients, context.kinds, strict=True)
            scaled = [None if g is None else g.mul_(factor).to(kind) for g, kind in kinds]
            return None, None, None, *scaled

    return SummedInPieces


def _all_pieces(
    piece: Piece,
    logits: Sequence[LateLogits | Tensor],
    late: int,
    inputs: Sequence[Tensor],
    gradients: Sequence[Tensor | None],
) -> Tensor:
    """The sum; `gradients` of hidden states and weights are filled and added to."""
    first = logits[0]
    assert isinstance(first, LateLogits)
    kind = torch.promote_types(first.hidden.dtype, torch.float32)
    total = torch.zeros((), dtype=kind, device=first.device)
    weights = [w for w, g in zip(inputs[late:], gradients[late:], strict=True) if g is not None]
    sums = [g for g in gradients[late:] if g is not None]
    for rows in first.bounds():
        parts: list[Tensor] = []
        at: list[Tensor] = []  # where the gradients of those parts go
        given = []
        numbers = iter(range(late))
        for one in logits:
            if not isinstance(one, LateLogits):
                given.append(read(one)(rows))
                continue
            gradient = gradients[next(numbers)]
            x = one.hidden[rows].detach()
            if gradient is not None:
                parts.append(x.requires_grad_())
                at.append(gradient[rows])
            with torch.set_grad_enabled(gradient is not None or bool(weights)):
                given.append(one.of(x))
        wanted = [*parts, *weights]
        with torch.set_grad_enabled(bool(wanted)):
            value = piece(rows, *given)
        if value.requires_grad:
            found = torch.autograd.grad(value, wanted, allow_unused=True)
            for place, g in zip([*at, *sums], found, strict=True):
                if g is not None:
                    place += g
        total = total + value.detach().to(total.dtype)
    return total
