"""The first sample, shown before the first step, and proof that something is learnt of the data."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from bigmodel_cli.console import say
from bigmodel_cli.data import (
    TOKENIZER,
    DataSet,
    input_of,
    load_source_tokenizer,
    load_tokenizer,
)
from bigmodel_cli.errors import DataError
from bigmodel_cli.tasks import Task
from bigmodel_cli.tasks.shown import Spell

ROWS = 8
"""Samples whose targets are counted."""


def say_first(task: Task, data: DataSet, seed: int) -> None:
    """Show the first training sample as the network is given it, with what is learnt of it.

    Raises `DataError` where nothing is learnt of the first samples, or answers are marked in them
    and all of their tokens are, of questions that have no sequence of their own.
    """
    split = data.split("train")
    count = min(ROWS, len(split))
    batch = split.batch(np.arange(count), 0, seed, True)
    found = task.shown(batch, Spell(_speller(data.assets()), input_of(data.info).picture))
    rows = f"the first {count:,} samples" if count > 1 else "the first sample"
    if not found.count:
        raise DataError(
            f"data.train: nothing is learnt of {rows}: {found.first}; the targets are missing"
        )
    asked_within = "loss_mask" in batch and "source" not in batch
    if asked_within and found.count == found.of:
        raise DataError(
            f"data.train: every token of {rows} is learnt, questions too: {found.first}"
        )
    if not found.first:
        return
    say(f"the first sample, as it is learnt:{_own_lines(found.first)}")
    if found.of is not None:
        share = f"{found.count:,} of {found.of:,} tokens ({100 * found.count / found.of:.1f} %)"
        say(f"in {rows} {share} {found.how}")


def _own_lines(text: str) -> str:
    """A text of several lines begins on a line of its own."""
    return "\n" + text.strip("\n") if "\n" in text else f" {text}"


def _speller(assets: Mapping[str, bytes]) -> Callable[[str, list[int]], str]:
    """How tokens are spelled: by the data's tokenizers, else as numbers."""
    if TOKENIZER not in assets:
        return lambda name, tokens: " ".join(map(str, tokens))
    tokenizers = {"source": load_source_tokenizer(assets)}
    own = load_tokenizer(assets)
    return lambda name, tokens: tokenizers.get(name, own).decode_marked(tokens)
