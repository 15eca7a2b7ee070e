"""Deterministic hold-out split, and which files belong to which split.

The same for every seed.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

import numpy as np
from pydantic import Field, model_validator

from bigmodel_cli.data.base import AnyDataOptions, Say
from bigmodel_cli.data.files import find_files
from bigmodel_cli.data.order import Ints, permute
from bigmodel_cli.data.text.corpus import ENDINGS
from bigmodel_cli.errors import DataError

TENTH = 0.1
KEY = (0, 0)
"""Key of the permutation whose first items are held out, whatever `train.seed` is."""
Mask = np.ndarray[Any, np.dtype[np.bool_]]
ValFraction = Annotated[float, Field(ge=0, lt=1)] | None
HELD_OUT = (
    "part of the training {} held out for validation, the same for every seed; left out: a tenth"
    " where no validation data is named; 0: none"
)
"""The description of `val_fraction`."""


def fraction_of(given: float | None, named: bool) -> float:
    """The part to hold out: none where validation data is `named`, else the given one, or a
    tenth.
    """
    return 0.0 if named else TENTH if given is None else given


def not_both(named: Any, option: str, given: float | None) -> None:
    """Raise `ValueError` where a spec gives both validation data and a part to hold out."""
    if named and given:
        raise ValueError(f"give either {option} or val_fraction, not both")


def hold_out(count: int, fraction: float, unit: str, say: Say | None) -> Mask:
    """(count,) bool, whether each training item is held out: at least one is, and at least one is
    not.

    They are the first of a fixed permutation, so that a smaller part is contained in a larger one.
    Raises `DataError`.
    """
    held = max(1, round(fraction * count))
    if held >= count:
        raise DataError(
            f"data.val_fraction: {fraction} leaves nothing of {count} {unit} to train on; name"
            " validation data, or set data.val_fraction: 0 to train without validation"
        )
    if say is not None:
        tell(f"{held:,} of {count:,} training {unit}", say)
    mask = np.zeros(count, bool)
    mask[permute(np.arange(held), count, KEY)] = True
    return mask


def tell(what: str, say: Say) -> None:
    """Report what is held out."""
    say(f"holding out {what} for validation; data.val_fraction: 0 turns it off")


def parts_of(count: int, fraction: float, unit: str, say: Say | None) -> dict[str, Ints]:
    """The numbers of the training items, and where `fraction` is not 0 of those held out: {"train":
    ..., "val": ...}.
    """
    if not fraction:
        return {"train": np.arange(count)}
    held_out = hold_out(count, fraction, unit, say)
    return {"train": np.flatnonzero(~held_out), "val": np.flatnonzero(held_out)}


def part_of_each_class(labels: Any, fraction: float) -> Ints:
    """The numbers of that part of each class's items, at least one, in order: the same for every
    seed, and a smaller part is contained in a larger one.

    Of numbers and sets, a part of all items.
    """
    chosen, labels = [], labels if labels.ndim == 1 else np.zeros(len(labels), np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        order = permute(np.arange(len(members)), len(members), (1, int(label)))
        chosen.append(members[order[: max(1, round(fraction * len(members)))]])
    return np.sort(np.concatenate(chosen))


def needed(named: Iterable[str], only: str | None) -> tuple[str, ...]:
    """The named splits that must be read for `only` that one: a held-out part is in the training
    data.
    """
    return tuple(
        name
        for name in named
        if only is None or name == only or (only not in named and name == "train")
    )


def files_of_splits(
    named: Mapping[str, tuple[Sequence[str], str]],
    base: Path,
    only: str | None,
    say: Say,
    endings: tuple[str, ...] = ENDINGS,
) -> dict[str, tuple[Path, ...]]:
    """The files of each split that is needed: `named` has the names of each and the option that
    gives them.

    A file of another split is left out of training, which is reported. Raises `DataError` where
    nothing is left.
    """
    given = {split: value for split, value in named.items() if value[0]}
    found = {s: find_files(given[s][0], base, given[s][1], endings) for s in needed(given, only)}
    if "train" not in found:
        return found
    train_files, option = list(found["train"]), given["train"][1]
    for split in [s for s in given if s != "train"]:
        theirs = {
            os.path.realpath(p) for p in found.get(split) or _there(*given[split], base, endings)
        }
        taken = [p for p in train_files if os.path.realpath(p) in theirs]
        train_files = [p for p in train_files if p not in taken]
        if taken:
            more = f" and {len(taken) - 1:,} more" if len(taken) > 1 else ""
            say(
                f"{option}: left out of training, since {given[split][1]} names it too:"
                f" {taken[0]}{more}"
            )
    if not train_files:
        raise DataError(
            f"{option}: nothing is left to train on: every file belongs to another split; name"
            " other files"
        )
    return {**found, "train": tuple(train_files)}


def _there(names: Sequence[str], option: str, base: Path, endings: tuple[str, ...]) -> list[Path]:
    """The files of a split that is not read: missing ones cannot be among the training files."""
    found: list[Path] = []
    for name in names:
        try:
            found += find_files([name], base, option, endings)
        except DataError:
            continue
    return found


class HeldOutOptions(AnyDataOptions):
    """Options of data of which a part of the training items may be held out for validation."""

    if TYPE_CHECKING:
        val_fraction: ValFraction

    @abstractmethod
    def named(self, base: Path) -> tuple[str, ...]:
        """The splits that the source itself has."""

    def splits(self, base: Path) -> tuple[str, ...]:
        names = self.named(base)
        return (*names, "val") if "train" in names and self.fraction(base) else names

    def fraction(self, base: Path) -> float:
        """The part of the training items to hold out."""
        return fraction_of(self.val_fraction, "val" in self.named(base))


class FilesOptions(HeldOutOptions):
    """Options of data whose splits are files, named by `train`, `val` and `test`."""

    paths = ("train", "val", "test")
    test_data: ClassVar[str] = "data.test=[FILE]"
    if TYPE_CHECKING:
        train: list[str]
        val: list[str]
        test: list[str]

    @model_validator(mode="after")
    def _one_validation(self) -> Self:
        not_both(self.val, "val", self.val_fraction)
        return self

    def given(self) -> dict[str, tuple[list[str], str]]:
        """The names of each split's files, and the option that gives them."""
        return {
            "train": (self.train, "data.train"),
            "val": (self.val, "data.val"),
            "test": (self.test, "data.test"),
        }

    def named(self, base: Path) -> tuple[str, ...]:
        return tuple(name for name, (files, _) in self.given().items() if files)

    def files(
        self, base: Path, only: str | None, say: Say, endings: tuple[str, ...]
    ) -> dict[str, tuple[Path, ...]]:
        """The files of each split that is needed (`files_of_splits`)."""
        return files_of_splits(self.given(), base, only, say, endings)
