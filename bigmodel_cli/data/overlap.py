"""Items that are in two splits, and evaluated items that the checkpoint was trained on: counted and
reported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bigmodel_cli.data.base import DataSet, Say
from bigmodel_cli.data.trained_on import Hashes, Seen, dump, joined
from bigmodel_cli.errors import SpecError


@dataclass(frozen=True)
class Share:
    """How many of a split's items are in a set; `of` is the number of items for which that is
    known.
    """

    items: int
    of: int

    def to_json(self) -> dict[str, int]:
        return {"items": self.items, "of": self.of}


def share(items: Hashes, seen: Seen) -> Share:
    """How many of the items are in the set."""
    return Share(int(seen.holds(items).sum()), int(seen.known(items).sum()))


def say_overlaps(data: DataSet, task: str, before: Sequence[Seen], say: Say) -> None:
    """Report how many validation and test items are also in training, or in what the weights were
    trained on before.
    """
    if {"val", "test"} <= set(data.splits):
        meaning = "validation split, by which the best checkpoint is chosen"
        _say_both(data, "test", "val", meaning, say)
    for name in [n for n in data.splits if n != "train"]:
        items = data.items(name)
        _say_both(data, name, "train", "training split", say)
        for seen in before:
            found = share(items, seen)
            if found.items:
                kind = "warning: " if seen.task == task else ""
                say(
                    f"{kind}{found.items:,} of {found.of:,} {data.unit} of the {name} split were in"
                    " the training of the weights that this run starts from (task.type:"
                    f" {seen.task})"
                )


def _say_both(data: DataSet, name: str, other: str, meaning: str, say: Say) -> None:
    """Report how many items of a split are also in another one, which `meaning` describes."""
    items = data.items(name)
    both = int(np.isin(items, data.items(other)).sum())
    if both:
        say(
            f"warning: {both:,} of {len(items):,} {data.unit} of the {name} split are also in the"
            f" {meaning}"
        )


def record(data: DataSet, task: str, before: Sequence[Seen]) -> bytes:
    """What a checkpoint records of the items that it, and the checkpoint it started from, were
    trained on.
    """
    return dump(joined([Seen.of(task, data.items("train")), *before]))


def check_held_out(data: DataSet, task: str, seen: Sequence[Seen], remedy: str, say: Say) -> None:
    """Raise `SpecError` where the held-out part contains items that the checkpoint was trained on.

    An item that is in the data twice, once in either part, does not count.
    """
    same_task = [s for s in seen if s.task == task]
    if not seen:
        say(
            "warning: the checkpoint keeps no record of what it was trained on; the validation"
            " split is a part of the training data, and may hold items that it was trained on"
        )
    val = data.items("val")
    alone = val[~np.isin(val, data.items("train"))]
    trained = np.zeros(len(alone), bool)
    for s in same_task:
        trained |= s.holds(alone)
    if trained.any():
        raise SpecError(
            f"data.val_fraction: the checkpoint was trained on {int(trained.sum()):,} of the"
            f" {len(val):,} {data.unit} in the validation split that it makes: what it scores there"
            f" says nothing. Name data that it never saw (--set {remedy}), measure the training"
            " split as what it is (--split train), or train anew with data.val_fraction"
        )


def exposure(
    data: DataSet, split: str, task: str, seen: Sequence[Seen], say: Say
) -> dict[str, Any]:
    """How many evaluated items the checkpoint was trained on, reported and as JSON; {} where it has
    no record.
    """
    items = data.items(split)
    shares = {s.task: share(items, s) for s in seen}
    for name, found in shares.items():
        if not found.items:
            continue
        kind = "" if split == "train" or name != task else "warning: "
        how = (
            "were trained on"
            if name == task
            else f"were in an earlier training with task.type: {name}"
        )
        say(f"{kind}{found.items:,} of {found.of:,} {data.unit} of the {split} split {how}")
    earlier = {name: found.to_json() for name, found in shares.items() if name != task}
    return {
        **({"seen_in_training": shares[task].to_json()} if task in shares else {}),
        **({"seen_in_earlier_training": earlier} if earlier else {}),
    }
