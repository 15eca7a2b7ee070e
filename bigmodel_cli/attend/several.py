"""Several inputs: what cannot be read is left out, and named at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from bigmodel_cli.attend.runs import titled
from bigmodel_cli.console import say
from bigmodel_cli.errors import DataError

T = TypeVar("T")
MOST_SAID = 10
"""Inputs that are named each."""


class Inputs:
    """What is given, in order; `word` is what one is called.

    `failed` are faults by the input's number, from 1.
    """

    def __init__(self, given: Sequence[str], word: str = "input") -> None:
        self.given, self.word = given, word
        self.failed: dict[int, DataError] = {}

    def place(self, number: int) -> str:
        """What the input of this number is called in a message."""
        return f"the {self.word}" if len(self.given) == 1 else f"{self.word} {number}"

    def each(self, work: Callable[[str, str], T]) -> Iterator[tuple[int | None, T]]:
        """(the input's number where there are several, what `work` makes of it and its place)."""
        for number, given in enumerate(self.given, 1):
            try:
                found = work(given, self.place(number))
            except DataError as error:
                self.failed[number] = error
                continue
            yield (number if len(self.given) > 1 else None), found

    def check(self) -> None:
        """Raise `DataError` where one could not be read; of several each is named."""
        if not self.failed:
            return
        first, *others = self.failed.values()
        if len(self.given) == 1:
            raise first
        for error in others[: MOST_SAID - 1]:
            say(str(error))
        count = f"{len(self.failed):,} of {len(self.given):,} {self.word}s could not be read"
        raise DataError(f"{count}; the first: {first}")

    def failures(self) -> dict[str, Any]:
        """Those that could not be read, as plain values; nothing where all could."""
        if not self.failed:
            return {}
        failed = [
            {
                "number": number,
                "input": titled(self.given[number - 1]),
                "error": str(error),
            }
            for number, error in self.failed.items()
        ]
        return {"failed": failed}
