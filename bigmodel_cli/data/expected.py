"""Data that is missing: its shapes, as far as the options say them.

Dry runs and `bench` need no more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import Field

from bigmodel_cli.config import Count, DatasetInfo
from bigmodel_cli.data.base import AnyDataOptions, DataSet, Split
from bigmodel_cli.errors import DataError


@dataclass(frozen=True)
class Expected:
    """The DatasetInfo, the names in a batch, the training samples (None: unknown), and the tokens
    of the longest rows.
    """

    info: DatasetInfo
    names: frozenset[str]
    samples: int | None = None
    longest: tuple[int, ...] = ()

    def __str__(self) -> str:
        info = self.info
        shown = {
            "images of {} (channels, height, width)": " x ".join(map(str, info.image_shape or ())),
            "{} classes": len(info.classes),
            "the numbers {}": ", ".join(info.targets),
            "{:,} tokens": info.vocab_size,
            "{:,} tokens of the sources": info.source_vocab_size,
            "rows of up to {:,}": info.context,
            "{:,} training samples": self.samples,
        }
        return ", ".join(text.format(value) for text, value in shown.items() if value)


class LabelledOptions(AnyDataOptions):
    """Options of data whose classes are found in it."""

    classes: Count | None = Field(
        None,
        description=(
            "how many classes there are: checked, and what a dry run without the data goes by"
        ),
    )

    def check(self, info: DatasetInfo) -> None:
        """Raise `DataError` where there are more or fewer classes."""
        if self.classes not in (None, len(info.classes)) and info.classes:
            shown = ", ".join(info.classes[:10]) + (" ..." if len(info.classes) > 10 else "")
            raise DataError(
                f"data.classes: {self.classes}, and the data has {len(info.classes)}: {shown}"
            )

    def expected_classes(self) -> int:
        """The number of classes."""
        if self.classes is None:
            raise DataError("the number of classes is not known: give data.classes: N")
        return self.classes


def numbered(count: int, samples: int | None = None) -> DatasetInfo:
    """A DatasetInfo of that many equally frequent classes, whose names are not known."""
    return DatasetInfo(
        classes=tuple(map(str, range(count))),
        class_counts=(max(1, (samples or 0) // max(1, count)),) * count,
    )


def unscaled(names: Sequence[str]) -> DatasetInfo:
    """A DatasetInfo of numbers whose mean and deviation are not known."""
    count = len(names)
    return DatasetInfo(targets=tuple(names), target_mean=(0.0,) * count, target_std=(1.0,) * count)


class ExpectedSplit(Split):
    """The training split of missing data; empty where the number of samples is unknown."""

    def __init__(self, expected: Expected) -> None:
        self.expected = expected

    def __len__(self) -> int:
        return self.expected.samples or 0

    def longest_rows(self) -> tuple[int, ...]:
        return self.expected.longest


class ExpectedData(DataSet):
    """Data that is missing."""

    missing = True

    def __init__(self, expected: Expected) -> None:
        splits: dict[str, Split] = dict.fromkeys(("train", "val"), ExpectedSplit(expected))
        super().__init__(expected.info, "", splits, {}, {}, "", False)
        self.expected = expected

    def names(self) -> frozenset[str]:
        return self.expected.names
