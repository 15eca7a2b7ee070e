"""Which columns of a table are read, and what stands between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator, Field

SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars", ",": "commas"}
Column = str | int


def _one_character(delimiter: str | None) -> str | None:
    if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n'):
        raise ValueError('one character, and no quote or newline; a tab is "\\t" in double quotes')
    return delimiter


Delimiter = Annotated[
    str | None,
    AfterValidator(_one_character),
    Field(
        examples=[";"],
        description=(
            "what stands between columns, such as ';'; values may then be in quotes, as in .csv."
            " Left out: commas in .csv; tabs in .tsv, where quotes are characters like others"
        ),
    ),
]


@dataclass(frozen=True)
class Columns:
    """Which columns are read: by name (a.b for b in the object a), or by number from 0.

    `header` None: the first row has names where one column is given by name. `delimiter` None: by
    the file's ending. Rows have a label, a set of labels where a `separator` is given, or numbers
    in the columns of `targets`.
    """

    text: tuple[Column, ...]
    label: Column | None
    header: bool | None = None
    options: tuple[str, ...] = ("data.text", "data.text")  # that give the columns of text
    delimiter: str | None = None
    separator: str | None = None
    targets: tuple[Column, ...] = ()

    @property
    def wanted(self) -> list[tuple[str, Column]]:
        """Each column with the option that gives it."""
        labels = [] if self.label is None else [("data.label", self.label)]
        numbers = [("data.targets", column) for column in self.targets]
        return [*zip(self.options, self.text, strict=False), *labels, *numbers]

    @property
    def target_names(self) -> list[str]:
        """The names of the columns of numbers."""
        return [c if isinstance(c, str) else f"column {c}" for c in self.targets]

    @property
    def named(self) -> bool:
        """Whether the first row of a file with separators is a header."""
        return (
            any(isinstance(c, str) for _, c in self.wanted) if self.header is None else self.header
        )
