"""Tables and other text for stdout, wrapped to the width of a terminal."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import sys
from collections.abc import Sequence

from bigmodel_cli.console.aliases import with_names
from bigmodel_cli.console.text import one_line

NUMBER = re.compile(
    r"[-+]?[\d,:]*\.?\d+(e[-+]?\d+)?( ± [\d,.]+(e[-+]?\d+)?)?( ?%| [a-zA-Zµ][\w/]*)?", re.ASCII
)
"""A number such as '-1,234.5', '93.3 kB', '12 tokens/s', '0.91 ± 0.02', '1:02:03'."""
FEWEST = 20
"""Least width in columns that a longer text is wrapped to; a shorter one is wrapped at blanks."""


def table(columns: list[str], rows: list[list[str]]) -> str:
    """A table for stdout, numbers right-aligned, columns aligned by blanks; on a terminal within
    its width, with a rule below the names.

    Where a terminal is too narrow for the columns, each row is a paragraph of names and values.
    """
    cells = [[one_line(cell) for cell in row] for row in (columns, *rows)]
    by_column = list(zip(*cells, strict=True))
    right = [bool(rows) and all(map(_is_number, column[1:])) for column in by_column]
    widths = [max(map(columns_of, column)) for column in by_column]
    room, gaps = columns_of_stdout(), 2 * (len(columns) - 1)
    if room is not None:
        words = [max(columns_of(w) for c in column for w in c.split(" ")) for column in by_column]
        least = [
            width if number else FEWEST if width > FEWEST else word
            for width, word, number in zip(widths, words, right, strict=True)
        ]
        if sum(least) + gaps > room:
            pairs = [list(zip(cells[0], row, strict=True)) for row in cells[1:]]
            return "\n\n".join(map(named_values, pairs))
        widths = _between(least, widths, room - gaps)
    names, *others = [_row(row, widths, right) for row in cells]
    rule = [] if room is None else [_rule() * (sum(widths) + gaps)]
    return "\n".join([*names, *rule, *(line for lines in others for line in lines)])


def narrowed(
    columns: Sequence[str], rows: Sequence[Sequence[str]], keep: int
) -> tuple[list[str], list[list[str]], list[str]]:
    """A table for `table` without as many of its last columns as the terminal is too narrow for,
    and the names of those; its first `keep` stay.
    """
    room, count = columns_of_stdout(), len(columns)
    by_column = zip(columns, *rows, strict=True)
    widths = [max(columns_of(one_line(cell)) for cell in column) for column in by_column]
    while room is not None and count > keep and sum(widths[:count]) + 2 * (count - 1) > room:
        count -= 1
    return list(columns[:count]), [list(row[:count]) for row in rows], list(columns[count:])


def _between(least: list[int], wanted: list[int], room: int) -> list[int]:
    """Widths from the least to those wanted, `room` in all; the narrowest grow first."""
    widths = list(least)
    for _ in range(room - sum(least)):
        growing = [i for i, width in enumerate(widths) if width < wanted[i]]
        if growing:
            widths[min(growing, key=widths.__getitem__)] += 1
    return widths


def _row(cells: list[str], widths: list[int], right: list[bool]) -> list[str]:
    """The lines of a row, whose texts are wrapped."""
    texts = [_wrapped(cell, width) for cell, width in zip(cells, widths, strict=True)]
    return [
        "  ".join(map(padded, line, widths, right)).rstrip()
        for line in itertools.zip_longest(*texts, fillvalue="")
    ]


def _rule() -> str:
    """What a horizontal rule on the terminal is made of."""
    utf = (sys.stdout.encoding or "").lower().startswith("utf")
    return "─" if utf and os.environ.get("TERM", "dumb") != "dumb" else "-"


def named_values(pairs: Sequence[tuple[str, str]]) -> str:
    """Names and their values, a line each; on a terminal a long value is wrapped below itself."""
    room, width = columns_of_stdout(), max(columns_of(name) for name, _ in pairs) + 2
    lines = []
    for name, value in pairs:
        parts = [value] if room is None else _wrapped(value, max(FEWEST // 2, room - width))
        lines += [
            padded(name if not k else "", width, right=False) + part for k, part in enumerate(parts)
        ]
    return "\n".join(line.rstrip() for line in lines)


def sentence(text: str) -> str:
    """A line of text for stdout, wrapped on a terminal."""
    room, text = columns_of_stdout(), with_names(text)
    return text if room is None else "\n".join(_wrapped(text, room))


def _wrapped(text: str, columns: int) -> list[str]:
    if columns_of(text) <= columns:
        return [text]
    from rich.console import Console
    from rich.text import Text

    return [line.plain.rstrip() for line in Text(text).wrap(Console(), columns)]


def columns_of_stdout() -> int | None:
    """Width of the terminal that stdout writes to; None where it is not a terminal."""
    if sys.stdout is None or not sys.stdout.isatty():
        return None
    return max(FEWEST, shutil.get_terminal_size().columns)


def columns_of(text: str) -> int:
    """Display width of a text: some characters take two columns, some none."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def cut(text: str, columns: int) -> str:
    """The longest beginning of a text that fits into that many columns."""
    from rich.cells import set_cell_size

    return text if columns_of(text) <= columns else set_cell_size(text, columns).rstrip()


def padded(text: str, columns: int, right: bool = True) -> str:
    """A text padded with blanks to that many columns."""
    blanks = " " * (columns - columns_of(text))
    return blanks + text if right else text + blanks


def _is_number(text: str) -> bool:
    """Whether a cell is a number with its unit, or marks a missing one."""
    return text.strip() in ("", "-", "not known") or NUMBER.fullmatch(text.strip()) is not None
