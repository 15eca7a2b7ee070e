"""What can be said of data that is not there: its shapes, as far as the options say them. Dry runs and `bench` need no more."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import Field

from bigmodel_cli.config import Count, Facts
from bigmodel_cli.data.base import AnyDataOptions, DataSet, Split
from bigmodel_cli.errors import DataError


@dataclass(frozen=True)
class Expected:
    """The facts, the names in a batch, the training samples (None: only the data says it), and the tokens of the longest rows."""

    facts: Facts
    names: frozenset[str]
    samples: int | None = None
    longest: tuple[int, ...] = ()

    def __str__(self) -> str:
        facts = self.facts
        shown = {
            "images of {} (channels, height, width)": " x ".join(map(str, facts.image_shape or ())),
            "{} classes": len(facts.classes),
            "{:,} tokens": facts.vocab_size,
            "{:,} tokens of the sources": facts.source_vocab_size,
            "rows of up to {:,}": facts.context,
            "{:,} training samples": self.samples,
        }
        return ", ".join(text.format(value) for text, value in shown.items() if value)


class LabelledOptions(AnyDataOptions):
    """Options of data whose classes are found in it."""

    classes: Count | None = Field(
        None, description="how many classes there are: checked, and what a dry run without the data goes by"
    )

    def check(self, facts: Facts) -> None:
        """Raise `DataError` where there are more or fewer classes."""
        if self.classes not in (None, len(facts.classes)) and facts.classes:
            shown = ", ".join(facts.classes[:10]) + (" ..." if len(facts.classes) > 10 else "")
            raise DataError(f"data.classes: {self.classes}, and the data has {len(facts.classes)}: {shown}")

    def expected_classes(self) -> int:
        """How many there are."""
        if self.classes is None:
            raise DataError("how many classes it has is not known: give data.classes: N")
        return self.classes


def numbered(count: int, samples: int | None = None) -> Facts:
    """The facts of so many classes, whose names are not known; of all there are equally many items."""
    return Facts(classes=tuple(map(str, range(count))), class_counts=(max(1, (samples or 0) // max(1, count)),) * count)


class ExpectedSplit(Split):
    """The training split of data that is not there: without a sample where nobody knows how many there are."""

    def __init__(self, expected: Expected) -> None:
        self.expected = expected

    def __len__(self) -> int:
        return self.expected.samples or 0

    def longest_rows(self) -> tuple[int, ...]:
        """As long as the context."""
        return self.expected.longest


class ExpectedData(DataSet):
    """Data that is not there."""

    def __init__(self, expected: Expected) -> None:
        splits: dict[str, Split] = dict.fromkeys(("train", "val"), ExpectedSplit(expected))
        super().__init__(expected.facts, "", splits, {}, {}, "", False)
        self.expected = expected

    def names(self) -> frozenset[str]:
        """The names in a batch."""
        return self.expected.names
