"""Logits that are not computed before somebody reads them, so that they need never be whole.

The logits of a language model (B, T, V) are the largest tensor of its training by far: for GPT-2 at
8 x 1,024 tokens 1.6 GB, and their gradient as much. Whoever can read them piece by piece (a loss, a
score) asks for that around the model's call; a model ends in `logits_of`, which then gives
`LateLogits` where they are large, and a tensor where they are not.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from bigmodel_cli.lazy import Module, Tensor, torch
from bigmodel_cli.logits.share import LogitsShare
from bigmodel_cli.logits.wide import wide_logits

Chunk = Literal["auto", "off"] | int
"""How many rows of logits are computed at once: by their size, all, or so many."""

PIECE = {"cpu": 1 << 25, "cuda": 1 << 27}
"""Numbers of a piece where its size is left open: enough rows to keep a product fast."""
LEAST = {"cpu": 128, "cuda": 1024}
"""Rows of a piece at least: the gradient of the head is added up once for each piece."""
TILE = 128
"""Rows of a piece are a multiple of it, as the products' tiles are."""
LARGE = 2
"""Logits of fewer pieces than that are computed as a whole."""

_ASKED: list[tuple[Chunk, bool]] = [("off", False)]


@dataclass(frozen=True)
class LateLogits:
    """(..., V)   what `head` makes of `hidden` (..., C), times `scale`, within +-`cap` by tanh.

    `rows` are computed at once, their loss by a compiled kernel where they are `fused`. Indexing,
    by a mask too, takes some positions.
    """

    hidden: Tensor
    head: Module
    scale: float
    cap: float | None
    rows: int
    fused: bool = False

    @property
    def device(self) -> torch.device:
        """Where they would be."""
        return self.hidden.device

    def of(self, hidden: Tensor) -> Tensor:
        """(N, C) -> (N, V)   the logits of some hidden states."""
        return _finished(wide_logits(hidden, self.head), self.scale, self.cap)

    def flat(self) -> LateLogits:
        """(N, V)   the same, row by row."""
        return replace(self, hidden=self.hidden.flatten(0, -2))

    def __getitem__(self, at: Any) -> LateLogits:
        return replace(self, hidden=self.hidden[at])

    def chunk(self, count: int) -> list[LateLogits]:
        """The parts of the first axis."""
        return [replace(self, hidden=part) for part in self.hidden.chunk(count)]

    def whole(self) -> Tensor:
        """(..., V)   all of them."""
        return self.of(self.hidden)

    def bounds(self) -> Iterator[slice]:
        """The pieces of the rows of `flat`; without storage the first two, which all others are
        like.
        """
        count = self.hidden.shape[:-1].numel()
        if self.hidden.is_meta:
            count = min(count, 2 * self.rows)
        return (slice(at, min(at + self.rows, count)) for at in range(0, count, self.rows))


@contextlib.contextmanager
def late(chunk: Chunk = "auto", able: bool = True, fused: bool = False) -> Iterator[None]:
    """Inside, models may give `LateLogits` to a reader that is `able` to take them; `fused` lets
    it compile its loss.
    """
    _ASKED.append((chunk if able else "off", fused))
    try:
        yield
    finally:
        _ASKED.pop()


def logits_of(
    hidden: Tensor, head: Module, width: int, scale: float = 1.0, cap: float | None = None
) -> Any:
    """(..., C) -> (..., V)   the logits, V is `width`: a tensor, or `LateLogits` where these were
    asked for and pay.
    """
    (chunk, fused), kind = _ASKED[-1], hidden.device.type
    if chunk != "off" and not _is_fp16(kind):
        count, most = hidden.shape[:-1].numel(), PIECE.get(kind, PIECE["cpu"])
        if chunk != "auto" and (count > chunk or isinstance(head, LogitsShare)):
            return LateLogits(hidden, head, scale, cap, chunk, fused)
        rows = max(LEAST.get(kind, LEAST["cpu"]), most // width // TILE * TILE)
        divided = isinstance(head, LogitsShare)  # of which a reader need not have all
        if chunk == "auto" and (divided or count >= LARGE * rows):
            return LateLogits(hidden, head, scale, cap, rows, fused)
    return _finished(wide_logits(hidden, head), scale, cap)


def _is_fp16(kind: str) -> bool:
    """Whether gradients must be scaled while they are computed, which pieces know too late."""
    able = kind != "meta" and torch.is_autocast_enabled(kind)
    return able and torch.get_autocast_dtype(kind) == torch.float16


def _finished(logits: Tensor, scale: float, cap: float | None) -> Tensor:
    if scale != 1.0:
        logits = logits * scale
    return logits if cap is None else cap * (logits / cap).tanh()


def read(logits: Tensor | LateLogits) -> Callable[[slice], Tensor]:
    """What gives some rows of (N, V) logits, late or not."""
    if isinstance(logits, LateLogits):
        own = logits
        return lambda rows: own.of(own.hidden[rows])
    whole = logits
    return lambda rows: whole[rows]


def is_late(logits: Any) -> bool:
    """Whether these logits are not computed yet."""
    return isinstance(logits, LateLogits)


def whole(logits: Any) -> Any:
    """The same logits, computed."""
    return logits.whole() if isinstance(logits, LateLogits) else logits
