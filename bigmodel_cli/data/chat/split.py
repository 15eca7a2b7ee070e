"""Conversations as a split: each a row, or several in a row, apart from one another."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import Any

import numpy as np

from bigmodel_cli.data.base import Split
from bigmodel_cli.data.batches import padded
from bigmodel_cli.data.chat.turns import Sample
from bigmodel_cli.data.order import Ints
from bigmodel_cli.lazy import Tensor

SIDES = (("tokens", "loss_mask"), ("rejected", "rejected_mask"))


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

    def redrawn(self) -> str | None:
        return None

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


class Preferences(Split):
    """{"tokens", "loss_mask", "rejected", "rejected_mask": (B, T + 1), "key": (B,)}.

    The better and the worse answer after their question, and which tokens are the answer's.
    """

    def __init__(self, pairs: Sequence[Sequence[Sample]]) -> None:
        self.pairs = pairs
        self.lengths = np.array([max(len(s.tokens) for s in pair) - 1 for pair in pairs])

    def __len__(self) -> int:
        return len(self.pairs)

    def redrawn(self) -> str | None:
        return None

    def tensors(self, samples: Ints, epoch: int, seed: int, augment: bool) -> dict[str, Tensor]:
        """The pairs, each side padded to its longest."""
        batch = {}
        for side, (tokens, mask) in enumerate(SIDES):
            chosen = [self.pairs[i][side] for i in samples.tolist()]
            batch[tokens] = padded([sample.tokens for sample in chosen])
            batch[mask] = padded([sample.learnt for sample in chosen], False)
        return batch


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
