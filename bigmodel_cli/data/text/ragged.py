"""Rows of tokens of different lengths as flat arrays: concatenated in the cache, padded at the
right in a batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bigmodel_cli.config import PADDING
from bigmodel_cli.data.order import Ints, draw
from bigmodel_cli.data.trained_on import as_hashes, hash_of

DROPPED = 2  # first stream of random numbers that leave tokens out; one for each column of text


class Ragged:
    """Rows of tokens: all of them concatenated in `tokens`, and the end of each row in `ends`
    (N,).
    """

    def __init__(self, tokens: Any, ends: Ints) -> None:
        self.tokens = tokens
        self.starts = np.concatenate((np.zeros(1, np.int64), ends[:-1])) if len(ends) else ends
        self.lengths: Ints = ends - self.starts

    @classmethod
    def of(cls, rows: Sequence[Any]) -> Ragged:
        """Rows from memory."""
        ends = np.cumsum([len(row) for row in rows], dtype=np.int64)
        return cls(np.concatenate([np.asarray(row, np.int64) for row in rows]), ends)

    @classmethod
    def read(cls, folder: Path, name: str, dtype: Any) -> Ragged:
        """Rows from a `RowWriter`, memory-mapped."""
        path = folder / f"{name}.bin"
        tokens = (
            np.memmap(path, dtype=dtype, mode="r") if path.stat().st_size else np.zeros(0, dtype)
        )
        return cls(tokens, np.load(folder / f"{name}.ends.npy"))

    def take(self, rows: Ints, lengths: Ints) -> Ints:
        """(B,), (B,) -> (B, longest) int64   the first `lengths` tokens of some rows, -1 after
        them.
        """
        place = np.arange(int(lengths.max(initial=0)))
        if not len(place):
            return np.zeros((len(rows), 0), np.int64)
        index = np.minimum(self.starts[rows][:, None] + place, len(self.tokens) - 1)
        return np.where(place < lengths[:, None], self.tokens[index].astype(np.int64), PADDING)


class RowWriter:
    """Writes the rows of a split one by one: for each of its columns the tokens, as `Ragged.read`
    reads them, and the hash of each row's texts.
    """

    def __init__(self, folder: Path, split: str, dtypes: Mapping[str, Any]) -> None:
        self.folder, self.split, self.dtypes = folder, split, dtypes
        self.files = {c: open(folder / f"{split}.{c}.bin", "wb") for c in dtypes}  # noqa: SIM115
        self.lengths: dict[str, list[int]] = {column: [] for column in dtypes}
        self.items: list[int] = []

    def write(self, texts: Iterable[str], tokens: Iterable[Any]) -> None:
        """Add a row: its texts, and the tokens of each."""
        for (column, file), own in zip(self.files.items(), tokens, strict=True):
            file.write(np.asarray(own, self.dtypes[column]).tobytes())
            self.lengths[column].append(len(own))
        self.items.append(hash_of(*(text.encode("utf-8") for text in texts)))

    def finish(self) -> None:
        """Write where the rows end, and their hashes."""
        for column, file in self.files.items():
            file.close()
            ends = np.cumsum(self.lengths[column], dtype=np.int64)
            np.save(self.folder / f"{self.split}.{column}.ends.npy", ends)
        np.save(self.folder / f"{self.split}.items.npy", as_hashes(self.items))


class Marks(NamedTuple):
    """The special tokens of a row: before it, and after each of its texts.

    BERT's (Devlin et al. 2019): one token between the texts of a pair, and type 1 from the second
    on; RoBERTa has two, and one type.
    """

    start: int
    end: int
    between: int = 1
    second: int = 1

    def room(self, context: int, sides: Sequence[Any]) -> int:
        """Most tokens of text in a row, without special tokens."""
        return context - 1 - len(sides) - (self.between - 1) * (len(sides) - 1)


def fit_lengths(lengths: Sequence[Ints], room: int) -> list[Ints]:
    """How many tokens of one or two sides to keep, so that a row has at most `room`: the longer
    side is cut first.
    """
    if len(lengths) == 1:
        return [np.minimum(lengths[0], room)]
    first, second = lengths
    of_first = np.minimum(first, np.maximum(room - second, room - room // 2))
    return [of_first, np.minimum(second, room - of_first)]


def leave_out(
    taken: Ints, probability: float, seed: int, epoch: int, samples: Ints, side: int
) -> tuple[Ints, Ints]:
    """(B, L) -> (B, L), (B,) the rows with tokens dropped at random for each (seed, epoch, sample),
    and their lengths.
    """
    keep = (draw(seed, epoch, samples, DROPPED + side, taken.shape[1]) >= probability) & (
        taken != PADDING
    )
    order = np.argsort(~keep, axis=1, kind="stable")
    return np.take_along_axis(np.where(keep, taken, PADDING), order, 1), keep.sum(1)


def join_sides(sides: Iterable[Ints], lengths: Sequence[Ints], marks: Marks) -> tuple[Ints, Ints]:
    """(B, T) tokens and (B, T) types: the start, the first side, an end token, and where there are
    two the second and its end.

    The type is 0 up to the end of the first side, that of `marks` after it, and -1 after a row's
    end.
    """
    extra = (marks.between - 1) * (len(lengths) - 1)
    width = 1 + extra + int(sum(n + 1 for n in lengths).max(initial=0))  # type: ignore[union-attr]
    count = len(lengths[0])
    tokens, types = (np.full((count, width), PADDING, np.int64) for _ in range(2))
    tokens[:, 0], types[:, 0] = marks.start, 0
    place = np.arange(width)
    at = np.ones(count, np.int64)  # where the next side begins
    for side, (taken, n) in enumerate(zip(sides, lengths, strict=True)):
        inside = np.arange(taken.shape[1]) < n[:, None]
        row, column = np.nonzero(inside)
        tokens[row, at[row] + column] = taken[inside]
        ends = marks.between if side + 1 < len(lengths) else 1
        last = (at + n + ends)[:, None]
        tokens[(place >= (at + n)[:, None]) & (place < last)] = marks.end
        types[(place >= at[:, None]) & (place < last)] = side * marks.second
        at = at + n + ends
    return tokens, types
