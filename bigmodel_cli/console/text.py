"""Texts for people: with control characters made visible, cut, named, and numbers with units."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path


def visible(text: str, kept: str = "\n\t") -> str:
    """`text` with control and direction-changing characters (but newline and tab) written as
    escapes.

    Data may contain sequences that control a terminal (ESC ]52 writes the clipboard, U+202E
    reverses the line).
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in kept else escape(c) for c in text)


def one_line(text: str) -> str:
    """As `visible`, for a name within a line or a picture: newlines and tabs are escapes too."""
    return visible(text, kept="")


def escape(character: str) -> str:
    """A character as its code point: '\x1b', '\u202e'."""
    code = ord(character)
    return (
        f"\\x{code:02x}"
        if code < 0x100
        else f"\\u{code:04x}"
        if code < 0x10000
        else f"\\U{code:08x}"
    )


def quantity(value: float, unit: str = "") -> str:
    """A number for people: 93322 -> '93.3 k', 24e9 with unit 'B' -> '24.0 GB'. Steps of 1,000."""
    for factor, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:.1f} {prefix}{unit}"
    return f"{value:.0f} {unit}".rstrip()


def counted(count: int, one: str, many: str = "") -> str:
    """How many of something: '1 file', '1,234 files'.

    `one` and `many` may go on with the verb: (1, 'file is left out', 'files are left out').
    Without `many` it is `one` and an s.
    """
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def rate(value: float, unit: str) -> str:
    """A rate for people: '12,345 tokens/s', '0.42 samples/s'."""
    return f"{value:,.0f} {unit}/s" if value >= 100 else f"{value:.3g} {unit}/s"


def seconds_of(value: float) -> str:
    """A short time for people: '12.34 ms', '1.23 s'."""
    return f"{1e3 * value:.2f} ms" if value < 1 else f"{value:.2f} s"


def listed(items: Sequence[str], most: int) -> str:
    """The items with commas between them; of more than `most` the first, and how many there are
    besides.
    """
    more = f" and {len(items) - most:,} more" if len(items) > most else ""
    return f"{', '.join(items[:most])}{more}"


def short_names(paths: Sequence[Sequence[Path]]) -> list[str]:
    """A name for each of several things: the shortest end of its path that no other path ends with.

    Each has one path or several; a later one is used where an earlier one is also another thing's.
    Things with the same paths are numbered.
    """
    ends = [
        [Path(*path.parts[-n:]).as_posix() for path in own for n in range(1, len(path.parts) + 1)]
        for own in paths
    ]
    counts = Counter(end for own in ends for end in set(own))
    names = [next((end for end in own if counts[end] == 1), own[0]) for own in ends]
    return [
        f"{n} ({names[:i].count(n) + 1})" if names.count(n) > 1 else n for i, n in enumerate(names)
    ]
