"""The items of the classes that two checkpoints share, for the head of either."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.console import listed
from bigmodel_cli.data.base import Split
from bigmodel_cli.data.order import Ints
from bigmodel_cli.errors import SpecError
from bigmodel_cli.lazy import Tensor, torch

LABEL = "label"
"""The key of a batch whose items have one class each."""
AT_ONCE = 256
"""Items that are read at once to learn their classes."""


@dataclass(frozen=True)
class SharedClasses:
    """`classes` are those of the data, in the order of its numbers; `kept` are measured."""

    classes: tuple[str, ...]
    kept: tuple[str, ...]

    @classmethod
    def of(cls, before: DatasetInfo, after: DatasetInfo) -> SharedClasses | None:
        """What two checkpoints share of the classes that the first one has learnt.

        None where it is all of them, or none, or where an item does not have one class.
        """
        kept = tuple(name for name in before.classes if name in after.classes)
        single = not (before.label_sets or before.tagged or before.spelling)
        if not single or not kept or len(kept) == len(before.classes):
            return None
        return cls(before.classes, kept)

    def numbered(self, info: DatasetInfo) -> DatasetInfo:
        """The facts by which the data is opened, whichever checkpoint they are of."""
        return replace(info, classes=self.classes, class_counts=())

    def items(self, split: Split, known: Sequence[str]) -> SharedItems:
        """The items of these classes, numbered as a checkpoint that has learnt `known` does.

        Raises `SpecError` where there are none.
        """
        parts = np.array_split(np.arange(len(split)), max(1, -(-len(split) // AT_ONCE)))
        labels = [split.batch(part, 0, 0, False)[LABEL].cpu().numpy() for part in parts]
        wanted = [self.classes.index(name) for name in self.kept]
        rows = np.flatnonzero(np.isin(np.concatenate(labels), wanted))
        if not len(rows):
            raise SpecError(f"no item is of a class that is left: {', '.join(self.kept[:5])}")
        number = {name: i for i, name in enumerate(known)}
        return SharedItems(split, rows, [number.get(name, -1) for name in self.classes])

    def note(self) -> str:
        """What is measured, for people."""
        gone = [name for name in self.classes if name not in self.kept]
        return (
            f"measured on the items of the {len(self.kept)} classes that are left"
            f" ({listed(self.kept, 5)}); gone: {listed(gone, 5)}"
        )


class SharedItems(Split):
    """Some rows of a split, with the number of each class of theirs in another order."""

    def __init__(self, split: Split, rows: Ints, numbers: Sequence[int]) -> None:
        self.split, self.rows = split, rows
        self.numbers = torch.tensor(numbers)
        self.resident = split.resident
        self.lengths = None if split.lengths is None else split.lengths[rows]

    def __len__(self) -> int:
        return len(self.rows)

    def to(self, device: torch.device) -> None:
        self.split.to(device)

    def longest_rows(self) -> tuple[int, ...]:
        return self.split.longest_rows()

    def tensors(self, samples: Ints, epoch: int, seed: int, augment: bool) -> dict[str, Tensor]:
        """The rows' tensors, labels numbered anew."""
        found = self.split.tensors(self.rows[samples], epoch, seed, augment)
        return {**found, LABEL: self.numbers.to(found[LABEL].device)[found[LABEL]]}
