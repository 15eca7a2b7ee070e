"""Conversations as a split: each a row, or several in a row, apart from one another."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import Any

import numpy as np

from bigmodel_cli.data.base import Split, padded
from bigmodel_cli.data.chat.turns import Sample
from bigmodel_cli.data.order import Ints
from bigmodel_cli.lazy import Tensor


class Chat(Split):
    """{"tokens": (B, T + 1), -1 after a row's end, "loss_mask": (B, T + 1) bool, "key": (B,)}.

    Where several conversations are packed into a row of at most `context` + 1 tokens, "segments"
    (B, T + 1) numbers them.
    """

    def __init__(self, samples: Sequence[Sample], context: int, *, packed: bool) -> None:
        self.tokens = [np.array(sample.tokens, np.int64) for sample in samples]
        self.learnt = [np.array(sample.learnt, bool) for sample in samples]
        sizes = [len(tokens) for tokens in self.tokens]
        self.packed = packed
        self.rows = pack(sizes, context + 1) if packed else [[i] for i in range(len(sizes))]
        self.lengths = np.array([sum(sizes[i] for i in row) - 1 for row in self.rows])

    def __len__(self) -> int:
        return len(self.rows)

    def tensors(self, samples: Ints, epoch: int, seed: int, augment: bool) -> dict[str, Tensor]:
        """The rows, padded to the longest."""
        rows = [self.rows[i] for i in samples.tolist()]
        batch = {
            "tokens": padded([np.concatenate([self.tokens[i] for i in row]) for row in rows]),
            "loss_mask": padded(
                [np.concatenate([self.learnt[i] for i in row]) for row in rows], False
            ),
        }
        if self.packed:
            batch["segments"] = padded([self._numbers(row) for row in rows])
        return batch

    def _numbers(self, row: list[int]) -> Any:
        return np.repeat(np.arange(len(row)), [len(self.tokens[i]) for i in row])


def pack(sizes: Sequence[int], room: int) -> list[list[int]]:
    """Items into rows of at most `room`: the longest first, each where least room is left after it
    (best fit decreasing).
    """
    rows: list[list[int]] = []
    left: list[tuple[int, int]] = []  # (room, row), sorted
    for item in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        at = bisect.bisect_left(left, (sizes[item], -1))
        if at < len(left):
            free, row = left.pop(at)
        else:
            free, row = room, len(rows)
            rows.append([])
        rows[row].append(item)
        bisect.insort(left, (free - sizes[item], row))
    return rows


def shown(tokens: Sequence[int], learnt: Sequence[bool], decode: Any, most: int = 200) -> str:
    """The text of a sample, what is learnt of it between » and «."""
    parts: list[str] = []
    first = 0
    for index in range(1, len(tokens) + 1):
        if index == len(tokens) or learnt[index] != learnt[first]:
            text = decode(tokens[first:index])
            if len(text) > most:
                text = f"{text[: most // 2]} ... {text[-most // 2 :]}"
            parts.append(f"»{text}«" if learnt[first] else text)
            first = index
    return "".join(parts)
