"""Inputs answered in batches, in order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

from bigmodel_cli.console import say
from bigmodel_cli.data import Item, Reader, read_items
from bigmodel_cli.errors import DataError
from bigmodel_cli.lazy import Tensor, torch

BATCH = 64
"""Inputs at once."""
Answer = Callable[[list[Item], dict[str, Tensor]], Iterable[dict[str, Any]]]
"""A batch -> the model's answer for each of its items."""


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
    """
    items = read_items(reader, inputs, word)
    total, cut, failed = 0, 0, list[str]()
    while batch := list(islice(items, rows)):
        good = [item for item in batch if item.error is None]
        tensors = reader.batch([item.content for item in good]) if good else {}
        answers = iter(answer(good, {k: v.to(device) for k, v in tensors.items()}) if good else ())
        for item in batch:
            if item.error is not None:
                failed.append(item.error)
                yield {"input": item.given, "error": item.error}
            else:
                cut_off = {"truncated": True} if item.truncated else {}
                yield {"input": item.given, **next(answers), **cut_off}
        total, cut = total + len(batch), cut + sum(item.truncated for item in batch)
    if cut:
        say(f"{cut:,} of {total:,} {word}s were cut: the model reads {reader.most}")
    if failed:
        raise DataError(
            f"{len(failed):,} of {total:,} {word}s could not be read; the first: {failed[0]}"
        )
