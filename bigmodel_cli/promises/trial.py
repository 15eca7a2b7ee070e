"""One part under check: built at a small width, with reproducible weights and inputs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from bigmodel_cli.lazy import Module, Tensor, torch
from bigmodel_cli.parts.context import SINGLE_DOCUMENT, LayerContext, SequenceInfo

LONGEST = 32
"""Positions that the part is built for."""
ROWS, LENGTH = 3, 13
"""The usual size of an input, odd so that nothing divides it by chance."""


class Broken(Exception):
    """A broken promise; the message says what was seen."""


class Trial:
    """A part to be checked.

    `part` is None where the options have nothing to build (a position of type none).
    """

    def __init__(self, slot: str, options: Any, layer: LayerContext) -> None:
        self.slot, self.options, self.layer = slot, options, layer
        self.part: Any = self.build()
        self.renew()

    @property
    def dim(self) -> int:
        """The width."""
        return self.layer.dim

    def build(self) -> Module | None:
        """The part with its first weights, as skeletons build it: what layers share is new too."""
        given = {"norm": (self.dim,), "position": (self.dim, self.layer.max_len)}
        layer = replace(self.layer, tables={})
        part: Module | None = self.options.build(*given.get(self.slot, (layer,)))
        return part

    def renew(self) -> None:
        """Build it again for evaluation; zeros and ones, which may hide a fault, are moved."""
        torch.manual_seed(1)
        self.part = self.build()
        if self.part is None:
            return
        self.part.eval()
        with torch.no_grad():
            for weight in self.part.parameters():
                weight.add_(0.1 * torch.randn(weight.shape))

    def input(self, rows: int = ROWS, length: int = LENGTH, seed: int = 2) -> Tensor:
        """(B, T, C) random numbers."""
        return torch.randn(rows, length, self.dim, generator=torch.Generator().manual_seed(seed))

    def run(self, x: Tensor, sequence: SequenceInfo = SINGLE_DOCUMENT, cache: Any = None) -> Tensor:
        """(B, T, C) -> (B, T, C), without gradients."""
        with torch.no_grad():
            return self.call(x, sequence, cache)

    def call(
        self, x: Tensor, sequence: SequenceInfo = SINGLE_DOCUMENT, cache: Any = None
    ) -> Tensor:
        """The same with gradients, called as a block calls this slot."""
        given: dict[str, tuple[Any, ...]] = {"norm": (), "mixer": (sequence, cache)}
        y = self.part(x, *given.get(self.slot, (sequence,)))
        if not torch.is_tensor(y):
            raise Broken(f"it returns {type(y).__name__}, not a tensor")
        return y


def differ(a: Tensor, b: Tensor) -> float:
    """The largest relative difference; 0 within rounding, infinite for other shapes."""
    if a.shape != b.shape or not bool(a.isfinite().all() and b.isfinite().all()):
        return float("inf")
    largest = float((a - b).abs().max()) if a.numel() else 0.0
    scale = 1e-6 + float(b.abs().max()) if b.numel() else 1.0
    return largest / scale if largest > 2e-4 * scale else 0.0


def expect_equal(a: Tensor, b: Tensor, what: str) -> None:
    """Raise `Broken` where two outputs differ by more than rounding."""
    found = differ(a, b)
    if found:
        size = (
            f"shapes {list(a.shape)} and {list(b.shape)}"
            if a.shape != b.shape
            else f"by up to {100 * found:.2g} %"
        )
        raise Broken(f"{what} ({size})")


def first_line(error: Exception) -> str:
    """The first line of an exception's text."""
    return (str(error).splitlines() or [""])[0][:200]
