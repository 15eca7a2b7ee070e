"""The base classes of data: options, splits, and what a checkpoint keeps of them."""

from __future__ import annotations

import copy
import json
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from bigmodel_cli.config import DatasetInfo, Options
from bigmodel_cli.data.order import Ints, keys_of, permute
from bigmodel_cli.data.trained_on import Hashes
from bigmodel_cli.draw import KEY
from bigmodel_cli.errors import CheckpointError, DataError
from bigmodel_cli.lazy import Tensor, torch

if TYPE_CHECKING:
    from bigmodel_cli.data.expected import Expected
    from bigmodel_cli.data.shards.packing import Packable


Say = Callable[[str], None]


Piece = Literal["first", "last"]
"""Which token of a word has its tag."""


Assets = Mapping[str, bytes]
"""Files of a checkpoint that data continues from, by name: facts.json, and its own assets, such as
tokenizer.json.
"""


FACTS = "facts.json"


TOKENIZERS = ("tokenizer", "source_tokenizer")
"""Options of the data that a checkpoint fixes for all that continue from it: it brings its own."""


LONG_ROWS = 64
"""Samples that are looked at to find the longest rows of a batch."""


class ReplayOptions(Options):
    """Items of the data before among those of a finetuning, against forgetting (Robins 1995)."""

    share: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.1, description="of the training items of an epoch"
    )
    spec: str | None = Field(
        None,
        description=(
            "a spec, run or checkpoint whose data is replayed; left out: that of init.checkpoint"
        ),
    )


class AnyDataOptions(Options):
    """Options of a data source, and the questions that upper rooms ask of any of them."""

    type: str
    replay: ReplayOptions | None = Field(
        None, description="mixes in training items of the data before, against forgetting"
    )
    test_data: ClassVar[str]
    """How test data is named on the command line, for messages."""
    paths: ClassVar[tuple[str, ...]] = ()
    """The options that name files (*: any name): their content may be elsewhere on a resume."""
    carried: ClassVar[tuple[str, ...]] = TOKENIZERS
    """What a finetuning takes from data of this type of its checkpoint, where its own leaves it
    out: those of `TOKENIZERS` whatever the type.
    """

    @abstractmethod
    def open(
        self, *, base: Path, say: Say, assets: Assets | None = None, only: str | None = None
    ) -> DataSet:
        """The data, as `open_data` says."""

    def splits(self, base: Path) -> tuple[str, ...]:
        """The splits that there are."""
        raise NotImplementedError

    def packable(self, *, base: Path, say: Say) -> Packable:
        """What `bigmodel pack` writes as shards of tokens. Raises `DataError` for other data."""
        raise DataError(
            f"data.type: {self.type}: only running text can be packed: text, stdlib, shards"
        )

    def loader_workers(self) -> int:
        """Processes that load and augment."""
        return 0

    def target_prompt(self) -> str:
        """Special tokens, spelled out, that each target begins with after its start."""
        return ""

    def longest(self) -> int | None:
        """The most tokens that the model sees at once; None where the data itself says it, or has
        none.
        """
        return None

    def isolates(self) -> bool:
        """Whether a token sees only its own document."""
        return False

    def tagged_piece(self) -> Piece:
        """Which token of a word has its tag, where words have tags."""
        return "first"

    def text_columns(self) -> int:
        """The number of texts in a row; 0 for running text, or none."""
        return 0

    def check(self, info: DatasetInfo) -> None:
        """Raise `DataError` where the data, with these `info`, is not what the options say."""

    def expected(self, assets: Assets | None) -> Expected:
        """What the options, and a checkpoint's files, say about data that is missing.

        Raises `DataError` saying what is not known, and the option that would say it.
        """
        raise DataError("its shapes are not known")


class Split:
    """Samples by number.

    `resident`: batches are index arithmetic on tensors that can be moved to the device.

    `lengths` (N,) are the tokens (or frames) of each sample, special tokens included; None where
    all samples are of one size.
    """

    resident: bool = False
    lengths: Ints | None = None
    answered: ClassVar[bool] = False
    """Whether each sample is a problem; its answers are where "loss_mask" is true."""
    near: bool = False
    """Whether the order keeps neighbours together: another would read all of them for a batch."""

    def __len__(self) -> int:
        raise NotImplementedError

    def order(self, places: Ints, epoch: int, seed: int) -> Ints:
        """(B,) -> (B,)   the samples in these places of an epoch's order: a permutation of all."""
        return permute(places, len(self), (seed, epoch))

    def coming(self, place: int, epoch: int, seed: int) -> None:
        """What stands from this place of an epoch's order on is asked for next: a split may have it
        fetched; a no-op for others.
        """

    def to(self, device: torch.device) -> None:
        """Move the tensors of a resident split to the device; a no-op for others."""

    def stream(self) -> Any:
        """(N,) all its tokens in order.

        Raises `DataError` where it is not running text.
        """
        raise DataError("only running text is a stream of tokens")

    def longest_rows(self) -> tuple[int, ...]:
        """The tokens or frames of the longest rows in training, of both sides of a pair; () where
        all are of one size.
        """
        return () if self.lengths is None else (int(self.lengths.max()),)

    def long_batch(self) -> dict[str, Tensor]:
        """The longest rows, as training sees them; the first ones where all are of one size or
        drawn.
        """
        order = (
            np.arange(len(self))
            if self.lengths is None
            else np.argsort(-self.lengths, kind="stable")
        )
        return self.batch(order[:LONG_ROWS], 0, 0, True)

    def redrawn(self) -> str | None:
        """What of a training row is drawn anew in each epoch, as the first half of a message; None
        where each epoch has the same rows.
        """
        return "this data does not say whether each epoch has the same rows"

    def texts(self) -> tuple[list[str], list[str]]:
        """(sources, references) of every sample, as they were read.

        Raises `DataError` where samples are not pairs of texts.
        """
        raise DataError(
            "the data has no pairs of a source and a reference; use data.type: pairs or pair_table"
        )

    def batch(self, samples: Ints, epoch: int, seed: int, augment: bool) -> dict[str, Tensor]:
        """Named tensors of the samples numbered (B,): a function of the arguments alone.

        Each batch has "key" (B,) int64, a number of each row made of (seed, epoch, sample): tasks
        draw from it (see draw.py). Evaluation asks with epoch and seed 0, so that what it hides of
        a sample depends only on the sample's number in its split.
        """
        tensors = self.tensors(samples, epoch, seed, augment)
        return {**tensors, KEY: keys_of(seed, epoch, samples)}

    def tensors(self, samples: Ints, epoch: int, seed: int, augment: bool) -> dict[str, Tensor]:
        """The batch without its keys."""
        raise NotImplementedError


class DataSet:
    """Opened data: `info` for the model, a `fingerprint` of the content, and splits by name.

    `items` gives the hash of each item of a split, and `unit` is the word for an item. Where
    `held_out`, the validation split is a part of the training data, and `items` has both even where
    only one of them was opened.
    """

    missing: ClassVar[bool] = False
    """Whether only the shapes are known, without any sample."""

    def __init__(
        self,
        info: DatasetInfo,
        fingerprint: str,
        splits: dict[str, Split],
        assets: dict[str, bytes],
        items: Mapping[str, Callable[[], Hashes]],
        unit: str,
        held_out: bool,
    ) -> None:
        self.info, self.fingerprint, self.unit, self.held_out = info, fingerprint, unit, held_out
        self._splits, self._assets, self._items = splits, assets, items

    def with_training(self, split: Split, fingerprint: str) -> DataSet:
        """The same with another training split."""
        splits = {**self._splits, "train": split}
        return DataSet(
            self.info, fingerprint, splits, self._assets, self._items, self.unit, self.held_out
        )

    def scaled_as(self, info: DatasetInfo) -> DataSet:
        """The same, with the mean and deviation that a run which goes on began with."""
        if not self.info.targets or self.missing or info.targets != self.info.targets:
            return self
        found = copy.copy(self)
        found.info = replace(self.info, target_mean=info.target_mean, target_std=info.target_std)
        return found

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits that there are."""
        return tuple(self._splits)

    def split(self, name: str) -> Split:
        """The split called `name`.

        Raises `DataError` where there is none.
        """
        if name not in self._splits:
            raise DataError(f"the data has no {name!r} split; it has {', '.join(self._splits)}")
        return self._splits[name]

    def items(self, name: str) -> Hashes:
        """(N,) uint64   64 bits of the SHA-256 of each item of a split, as it was read from its
        source.
        """
        return self._items[name]()

    def names(self) -> frozenset[str]:
        """The names in a batch, without that of the rows' keys, which all data have."""
        return frozenset(self.split("train").batch(np.zeros(1, np.int64), 0, 0, False)) - {KEY}

    def assets(self) -> dict[str, bytes]:
        """Files that a checkpoint keeps, by name, such as tokenizer.json."""
        return self._assets


def info_of(assets: Assets | None) -> DatasetInfo | None:
    """The DatasetInfo in a checkpoint's files, or None.

    Raises `CheckpointError`.
    """
    if assets is None or FACTS not in assets:
        return None
    try:
        return DatasetInfo.from_json(json.loads(assets[FACTS]))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{FACTS}: {error}; use another checkpoint") from None
