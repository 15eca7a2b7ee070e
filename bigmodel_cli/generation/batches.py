"""Inputs answered in batches, in order."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from bigmodel_cli.console import say
from bigmodel_cli.data import Item, Reader, read_items
from bigmodel_cli.distributed.peers import Peers
from bigmodel_cli.errors import DataError
from bigmodel_cli.lazy import Tensor, torch

BATCH = 64
"""Inputs at once."""
Answer = Callable[[list[Item], dict[str, Tensor]], Iterable[dict[str, Any]]]
"""A batch -> the model's answer for each of its items."""
_among: list[Peers | None] = [None]


@contextlib.contextmanager
def shared(peers: Peers | None) -> Iterator[None]:
    """Inside, the batches of `in_order` are shared among these processes: the first one has the
    inputs and gets the records, which are those of one process to the bit.
    """
    _among.append(peers)
    try:
        yield
    finally:
        _among.pop()


@dataclass
class Told:
    """What is told at the end: how many inputs there were and were cut, and why some had no
    answer.
    """

    total: int = 0
    cut: int = 0
    failed: list[str] = field(default_factory=list)

    def add(self, total: int, cut: int, failed: Sequence[str]) -> None:
        """Those of another batch."""
        self.total, self.cut = self.total + total, self.cut + cut
        self.failed.extend(failed)

    def end(self, word: str, most: str) -> None:
        """Report it. Raises `DataError` where an input could not be read."""
        if self.cut:
            say(f"{self.cut:,} of {self.total:,} {word}s were cut: the model reads {most}")
        if self.failed:
            raise DataError(
                f"{len(self.failed):,} of {self.total:,} {word}s could not be read; the first:"
                f" {self.failed[0]}"
            )


@dataclass(frozen=True)
class Answering:
    """How a batch of items becomes records."""

    reader: Reader
    answer: Answer
    device: torch.device

    def records(self, batch: list[Item], told: Told) -> Iterator[dict[str, Any]]:
        """A record for each item."""
        good = [item for item in batch if item.error is None]
        tensors = self.reader.batch([item.content for item in good]) if good else {}
        on_device = {k: v.to(self.device) for k, v in tensors.items()}
        answers = iter(self.answer(good, on_device) if good else ())
        for item in batch:
            if item.error is not None:
                told.add(0, 0, [item.error])
                yield {"input": item.given, "error": item.error}
            else:
                cut_off = {"truncated": True} if item.truncated else {}
                yield {"input": item.given, **next(answers), **cut_off}
        told.add(len(batch), sum(item.truncated for item in batch), ())


def in_order(
    reader: Reader,
    inputs: Iterable[str],
    answer: Answer,
    device: torch.device,
    word: str = "input",
    rows: int = BATCH,
) -> Iterator[dict[str, Any]]:
    """A record per input, in order, as soon as its batch is done.

    It is {"input", the answer's keys, "truncated" where it was cut}, or {"input", "error"} where it
    cannot be read. At the end the number of cut inputs is reported, and `DataError` is raised where
    any could not be read; `word` is what an input is called, and `rows` of them are read at once.
    Of several processes the first one gives all records, the others none.
    """
    answering, told, peers = Answering(reader, answer, device), Told(), _among[-1]
    if peers is None:
        items = read_items(reader, inputs, word)
        while batch := list(islice(items, rows)):
            yield from answering.records(batch, told)
    else:
        yield from _together(peers, answering, inputs, told, word, rows)
    told.end(word, reader.most)


def _together(
    peers: Peers, answering: Answering, inputs: Iterable[str], told: Told, word: str, rows: int
) -> Iterator[dict[str, Any]]:
    """The records in the first process, a round at a time, in which each has one batch.

    The batches are those of one process, so that each text is computed beside the same ones.
    """
    lines, start, first = iter(inputs), 0, peers.rank * rows
    while given := peers.told(list(islice(lines, rows * peers.size)) if peers.first else None):
        own, here = given[first : first + rows], Told()
        items = list(read_items(answering.reader, own, word, start + first))
        records = list(answering.records(items, here))
        mine = {"records": records, "told": [here.total, here.cut, here.failed]}
        for one in peers.gathered(mine):
            told.add(*one["told"])
            if peers.first:
                yield from one["records"]
        start += len(given)
