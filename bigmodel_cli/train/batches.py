"""Which samples make up each micro-batch: a function of its index, so that a resume is a seek.

Sample i of an endless stream belongs to epoch i // n and is an entry of that epoch's permutation.
`BySamples` cuts the stream into pieces of one size, which may reach from one epoch into the next.
`ByTokens` fills each micro-batch with samples of similar length up to a number of tokens.
"""

from __future__ import annotations

import bisect
from fractions import Fraction
from typing import Protocol

import numpy as np

from bigmodel_cli.data import Split
from bigmodel_cli.data.batches import join
from bigmodel_cli.data.order import Ints, permute
from bigmodel_cli.distributed import ALONE, World
from bigmodel_cli.errors import SpecError
from bigmodel_cli.lazy import Tensor
from bigmodel_cli.recipe import TrainOptions

BLOCK = 1 << 14
"""Entries of a permutation that are computed at once, since a few cost as much as many."""
SEEK = 1 << 8
"""The same for the first ones after a jump, which are waited for."""


class MicroBatches(Protocol):
    """The stream of micro-batches: `self[k]` is micro-batch k.

    Loader workers index it.
    """

    split: Split
    per_epoch: Fraction

    def __getitem__(self, k: int) -> dict[str, Tensor]:
        """Micro-batch k, augmented."""

    def pieces(self, count: int, among: World) -> int:
        """In how many pieces a process takes its part of a step of `count` micro-batches."""

    def piece(self, step: int, number: int, count: int, among: World) -> dict[str, Tensor]:
        """One of them; {} where there is no row for it."""

    def whole(self, count: int, among: World) -> bool:
        """Whether pieces are micro-batches, and no parts of one."""


class Shares:
    """The micro-batches that one of several processes takes: `self[step * each + i]`.

    In each step a process has samples that lie side by side in it. Where they can be divided so,
    these are whole micro-batches.
    """

    def __init__(self, micro: MicroBatches, count: int, among: World) -> None:
        self.micro, self.count, self.among = micro, count, among
        self.each = micro.pieces(count, among)
        self.whole = among.alone or micro.whole(count, among)  # whether no micro-batch is divided

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        step, piece = divmod(number, self.each)
        return self.micro.piece(step, piece, self.count, self.among)


def micro_batches(split: Split, options: TrainOptions) -> MicroBatches:
    """The stream that the options ask for.

    Raises `SpecError` where the data cannot be batched so.
    """
    if options.batch_tokens is None:
        return BySamples(split, options.micro, options.seed)
    if split.lengths is None:
        raise SpecError(
            "train.batch_tokens: the samples of this data are all of one size; give"
            " train.batch_size"
        )
    longest = int(split.lengths.max())
    if longest > options.micro:
        given = "micro_batch_size" if options.micro_batch_size is not None else "batch_tokens"
        raise SpecError(
            f"train.{given}: {options.micro} tokens do not hold the longest sample, of {longest};"
            " make it larger"
        )
    return ByTokens(split, split.lengths, options.micro, options.seed)


class BySamples:
    """Micro-batch k holds the samples number k * size ... (k + 1) * size - 1."""

    def __init__(self, split: Split, size: int, seed: int) -> None:
        self.split, self.size, self.seed = split, size, seed
        self.per_epoch = Fraction(len(split), size)
        self.kept: tuple[int, int, Ints] = (-1, 0, np.zeros(0, np.int64))

    def __getitem__(self, k: int) -> dict[str, Tensor]:
        return self.rows(range(k * self.size, (k + 1) * self.size))

    def rows(self, numbers: range) -> dict[str, Tensor]:
        """The samples with these numbers, of which there are some."""
        n, first = len(self.split), numbers.start
        pieces = []
        while first < numbers.stop:
            epoch, offset = divmod(first, n)
            self.split.coming(offset, epoch, self.seed)
            count = min(numbers.stop - first, n - offset)
            pieces.append((self.entries(epoch, offset, count), epoch))
            first += count
        batches = [self.split.batch(samples, epoch, self.seed, True) for samples, epoch in pieces]
        return batches[0] if len(batches) == 1 else join(batches)

    def pieces(self, count: int, among: World) -> int:
        """Whole micro-batches where they can be divided so, else rows: as few pieces as can be."""
        if self.whole(count, among):
            return count // among.size
        return max(1, -(-len(among.share(count * self.size)) // self.size))

    def piece(self, step: int, number: int, count: int, among: World) -> dict[str, Tensor]:
        own = among.share(count * self.size)
        place = World(number, self.pieces(count, among)).share(len(own))
        first = step * count * self.size + own.start
        return self.rows(range(first + place.start, first + place.stop)) if place else {}

    def whole(self, count: int, among: World) -> bool:
        return count % among.size == 0

    def entries(self, epoch: int, first: int, count: int) -> Ints:
        """(count,) the samples in the places from `first` on of an epoch's order."""
        known, start, found = self.kept
        if known != epoch or not start <= first <= first + count <= start + len(found):
            is_near = known == epoch and start <= first < start + 2 * BLOCK
            end = min(len(self.split), first + max(count, BLOCK if is_near else SEEK))
            start, found = first, self.split.order(np.arange(first, end), epoch, self.seed)
            self.kept = (epoch, start, found)
        return found[first - start : first - start + count]


class ByTokens:
    """Micro-batches of samples of similar length: rows x longest row is at most `budget`.

    The samples are sorted by length, those of one length in another order each epoch; so the sorted
    lengths, and with them the boundaries of micro-batches, are the same in every epoch, and
    micro-batch k can be found without those before it. The micro-batches of an epoch come in a
    random order.
    """

    def __init__(self, split: Split, lengths: Ints, budget: int, seed: int) -> None:
        self.split, self.lengths, self.seed = split, lengths, seed
        self.cuts = cuts(np.sort(lengths), budget)
        self.per_epoch = Fraction(len(self.cuts) - 1)
        self.kept: tuple[int, Ints, Ints] = (-1, self.cuts, self.cuts)

    def __getitem__(self, k: int) -> dict[str, Tensor]:
        return self.part(k, ALONE)

    def part(self, k: int, among: World) -> dict[str, Tensor]:
        """A process's rows of micro-batch k; {} where there is none for it."""
        epoch, number = divmod(k, len(self.cuts) - 1)
        samples, turns = self.order(epoch)
        place = turns[number]
        rows = samples[self.cuts[place] : self.cuts[place + 1]]
        own = among.share(len(rows))
        found = rows[own.start : own.stop]
        return self.split.batch(found, epoch, self.seed, True) if len(found) else {}

    def pieces(self, count: int, among: World) -> int:
        """Whole micro-batches where there are enough of them, else some rows of each."""
        return len(among.share(count)) if self.whole(count, among) else count

    def piece(self, step: int, number: int, count: int, among: World) -> dict[str, Tensor]:
        if self.whole(count, among):
            return self[step * count + among.share(count)[number]]
        return self.part(step * count + number, among)

    def whole(self, count: int, among: World) -> bool:
        return count >= among.size

    def order(self, epoch: int) -> tuple[Ints, Ints]:
        """(the samples by length, the order of the micro-batches) of an epoch, cached."""
        if self.kept[0] != epoch:
            n, count = len(self.lengths), len(self.cuts) - 1
            shuffled = permute(np.arange(n), n, (self.seed, epoch))
            by_length = shuffled[np.argsort(self.lengths[shuffled], kind="stable")]
            self.kept = (epoch, by_length, permute(np.arange(count), count, (self.seed, epoch, 1)))
        return self.kept[1:]


def cuts(ascending: Ints, budget: int) -> Ints:
    """Boundaries of micro-batches among samples sorted by length, filled up to the budget."""
    places = [0]
    while places[-1] < len(ascending):
        start = places[-1]
        most = min(len(ascending) - start, budget // max(1, int(ascending[start])))
        # The size of a batch grows with its rows: the last number of rows that fits is found by
        # bisection.
        rows = bisect.bisect_right(
            range(1, most + 1), budget, key=lambda n: n * int(ascending[start + n - 1])
        )
        places.append(start + max(1, rows))
    return np.asarray(places, np.int64)
