"""Batches of rows of different lengths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bigmodel_cli.config import PADDING
from bigmodel_cli.lazy import Tensor, torch


def padded(rows: Sequence[Any], padding: int = PADDING) -> Tensor:
    """(B, longest) rows of numbers, padded at the right."""
    tensors = [torch.as_tensor(row) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=padding)


def join(batches: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Concatenate batches: (B, T, ...) that differ in T are padded at the right, integers with
    `PADDING`, others with 0.
    """
    joined = {}
    for name in batches[0]:
        pieces = [batch[name] for batch in batches]
        if pieces[0].dim() > 1:
            longest = max(piece.shape[1] for piece in pieces)
            pieces = [_widened(piece, longest) for piece in pieces]
        joined[name] = torch.cat(pieces)
    return joined


def _widened(piece: Tensor, length: int) -> Tensor:
    if piece.shape[1] == length:
        return piece
    wide = piece.new_full(
        (len(piece), length, *piece.shape[2:]), 0 if piece.is_floating_point() else PADDING
    )
    wide[:, : piece.shape[1]] = piece
    return wide
