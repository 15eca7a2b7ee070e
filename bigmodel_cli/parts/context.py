"""Context for parts: `LayerContext` at construction, `SequenceInfo` at each call."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from bigmodel_cli.lazy import Module, Tensor, torch
from bigmodel_cli.parts.row_share import RowShare

M = TypeVar("M")


_RECORDING: list[bool] = [False]


def recorded() -> bool:
    """Whether a graph is being recorded that is to hold for other sizes (torch.export).

    A part then takes the way that reads no size and no value to decide anything. PyTorch's own
    answer, `torch.compiler.is_exporting`, is yes inside `torch.compile` too (2.11).
    """
    return _RECORDING[-1]


@contextlib.contextmanager
def recording() -> Iterator[None]:
    """Inside, graphs are recorded."""
    _RECORDING.append(True)
    try:
        yield
    finally:
        _RECORDING.pop()


@dataclass(frozen=True)
class LayerContext:
    """What a part is built for: the model's width, the longest sequence, and its layer's index.

    `causal` applies to a mixer whose options leave it open: True in a decoder, False in an encoder.
    Where x is an image, `grid` has its rows and columns of patches, and `first` tokens come before
    them; further ones may follow. `tables` has modules that layers share.
    """

    dim: int
    max_len: int
    layer_index: int = 0
    num_layers: int = 1
    causal: bool = True
    grid: tuple[int, int] | None = None
    first: int = 0
    tables: dict[Hashable, Module] = field(default_factory=dict, compare=False, repr=False)

    def shared(self, key: Hashable, make: Callable[[], M]) -> M:
        """The module of this key, made by the first layer that asks for it."""
        if key not in self.tables:
            self.tables[key] = make()  # type: ignore[assignment]
        return self.tables[key]  # type: ignore[return-value]


@dataclass(frozen=True)
class SequenceInfo:
    """The positions of x (B, T, C) within their rows, and what belongs to them.

    `offset` positions came before and are in the caches. `segment_ids` (B, offset + T) numbers the
    documents of a packed row: a position sees only its own segment, a recurrent state is empty
    where a segment begins, and positions count from its first token. Padding is a segment of its
    own. None: each row is one document. `memory` (B, S, C) is what cross-attention reads, and
    `memory_mask` (B, S) is True where it is not padding. `real` (B, T) is True where x itself is
    not padding, for parts that count positions (None: all). Which positions see one another is
    decided by `segment_ids` alone.

    With a `share`, x are this process's positions alone, and so is `real`; `segment_ids` are of all
    positions of the rows, and there are no caches.
    """

    offset: int = 0
    segment_ids: Tensor | None = None
    memory: Tensor | None = None
    memory_mask: Tensor | None = None
    real: Tensor | None = None
    share: RowShare | None = field(default=None, kw_only=True)
    positions: Tensor | None = field(init=False)
    """(B, T) positions of x within their segments; None: they count on from `offset`, or are those
    of the `share`.
    """

    def __post_init__(self) -> None:
        # not cached when first asked for: torch.compile would break the graph at functools' lock
        ids = self.segment_ids
        found = None if ids is None else self._of_x(positions(ids))
        object.__setattr__(self, "positions", found)

    def _of_x(self, every: Tensor) -> Tensor:
        """(B, offset + T) -> (B, T)   what belongs to the positions of x."""
        return after(every, self.offset) if self.share is None else self.share.own(every)

    def end(self, length: int) -> int:
        """One more than the last position of x, which has so many."""
        return self.offset + length if self.share is None else self.share.length

    def current_segments(self) -> Tensor | None:
        """(B, T) the segment ids of x, without those of earlier positions."""
        return None if self.segment_ids is None else self._of_x(self.segment_ids)

    def previous_segment(self) -> Tensor | None:
        """(B) segment id of the last cached position, or None."""
        return (
            None
            if self.segment_ids is None or not self.offset
            else self.segment_ids[:, self.offset - 1]
        )

    def seen(self, x: Tensor) -> Tensor:
        """(1 or B, T, offset + T) bool: causal mask of x (B, T, C) within its segments."""
        place = torch.arange(self.offset + x.shape[1], device=x.device)
        before = (place <= place[self.offset :, None])[None]
        own = self.current_segments()
        return (
            before
            if own is None or self.segment_ids is None
            else before & (own[:, :, None] == self.segment_ids[:, None, :])
        )

    def lookup(self, table: Tensor, length: int) -> Tensor:
        """The rows of a position table: (T, ...), or (B, T, ...) where positions differ by row."""
        if self.positions is not None:
            return table[self.positions]
        if self.share is not None:
            return table[self.share.places(table.device)]
        return table[self.offset : self.offset + length]


SINGLE_DOCUMENT = SequenceInfo()
"""One document per row, from its first position."""


def after(x: Tensor, offset: int) -> Tensor:
    """(B, S) -> (B, S - offset)   what follows the first `offset` positions.

    A recorded graph looks the positions up: of a slice it would not know the length.
    """
    if recorded():
        return x[:, torch.arange(offset, x.shape[1], device=x.device)]
    return x[:, offset:]


def positions(segments: Tensor) -> Tensor:
    """(B, S) -> (B, S)   index of each position within its segment, from 0.

    In a recorded graph a row is one run of real positions (1) between padding (0), whose own
    positions do not matter: ONNX has no cumulative maximum.
    """
    if recorded():
        return (segments.cumsum(1) - 1).clamp(min=0)
    index = torch.arange(segments.shape[1], device=segments.device).expand_as(segments)
    begins = torch.ones_like(segments, dtype=torch.bool)
    begins[:, 1:] = segments[:, 1:] != segments[:, :-1]
    return index - torch.where(begins, index, 0).cummax(1).values


def padding_segments(real: Tensor) -> Tensor | None:
    """(B, S) bool -> (B, S) int64   one segment of real positions, another of padding.

    None where there is no padding.
    """
    if recorded():
        return real.long()
    return None if real.is_meta or bool(real.all()) else real.long()
