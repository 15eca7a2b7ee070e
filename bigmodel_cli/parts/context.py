"""What a part is told beside its input: where it stands in the network, and what is known about the
positions of x.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from bigmodel_cli.lazy import Tensor, torch


@dataclass(frozen=True)
class LayerContext:
    """Where a part stands: the width of the stream, the longest sequence, and which block (from 0)
    of how many.

    `causal` is what the skeleton asks of a mixer that leaves it open: True in a decoder, False in
    an encoder.
    """

    dim: int
    max_len: int
    layer_index: int = 0
    num_layers: int = 1
    causal: bool = True


@dataclass(frozen=True)
class SequenceInfo:
    """The positions of x (B, T, C) and what stands before and beside them.

    `offset` positions came before and lie in the caches. `segment_ids` (B, start + T) numbers the
    documents of a packed row: a position sees its own segment alone, a recurrent state is empty
    where a segment begins, and positions count from its first token. Padding is a segment of its
    own. None: each row is one document. `memory` (B, S, C) is what cross-attention reads, and
    `memory_mask` (B, S) is True where it is not padding. `real` (B, T) is True where x itself is
    not padding, for what counts positions (None: all); what a position gets from others is the
    business of `segment_ids`.
    """

    offset: int = 0
    segment_ids: Tensor | None = None
    memory: Tensor | None = None
    memory_mask: Tensor | None = None
    real: Tensor | None = None

    def current_segments(self) -> Tensor | None:
        """(B, T) the segments of x alone."""
        return None if self.segment_ids is None else self.segment_ids[:, self.offset :]

    def previous_segment(self) -> Tensor | None:
        """(B) the segment of the position before x; None where x begins the row or there are no
        segments.
        """
        return (
            None
            if self.segment_ids is None or not self.offset
            else self.segment_ids[:, self.offset - 1]
        )

    @cached_property
    def positions(self) -> Tensor | None:
        """(B, T) the places of x within their segments; None where they are start, start + 1, ...
        in every row.
        """
        return None if self.segment_ids is None else positions(self.segment_ids)[:, self.offset :]

    def seen(self, x: Tensor) -> Tensor:
        """(1 or B, T, start + T) bool: which positions so far each of x (B, T, C) may see: its own
        segment, up to itself.
        """
        place = torch.arange(self.offset + x.shape[1], device=x.device)
        before = (place <= place[self.offset :, None])[None]
        own = self.current_segments()
        return (
            before
            if own is None or self.segment_ids is None
            else before & (own[:, :, None] == self.segment_ids[:, None, :])
        )

    def lookup(self, table: Tensor, length: int) -> Tensor:
        """The rows of a table of positions: (T, ...), or (B, T, ...) where positions differ by
        segment.
        """
        if self.positions is None:
            return table[self.offset : self.offset + length]
        return table[self.positions]


SINGLE_DOCUMENT = SequenceInfo()
"""One document per row, from its first position."""


def positions(segments: Tensor) -> Tensor:
    """(B, S) -> (B, S)   the place of each position within its segment, from 0."""
    index = torch.arange(segments.shape[1], device=segments.device).expand_as(segments)
    begins = torch.ones_like(segments, dtype=torch.bool)
    begins[:, 1:] = segments[:, 1:] != segments[:, :-1]
    return index - torch.where(begins, index, 0).cummax(1).values


def padding_segments(real: Tensor) -> Tensor | None:
    """(B, S) bool -> (B, S) int64   one segment for what is real, another for padding on either
    side; None without padding.
    """
    return None if real.is_meta or bool(real.all()) else real.long()
