"""Tokens as pieces of text whose width is known, whatever is in them."""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Sequence

from bigmodel_cli.console import columns_of, escape, one_line

MOST_MARKS = 2
"""Combining marks that a letter keeps; more would be drawn over the lines above and below."""
FLAGS = 0x1F1E6
"""The first of the letters that two by two make a flag: how wide they are differs by terminal."""
BREAKS = {"\n": ("↵", "\\n"), "\t": ("⇥", "\\t")}
"""Breaks that are common in texts, as one sign each."""
MODIFIERS = range(0x1F3FB, 0x1F400)
SELECTORS = (range(0xFE00, 0xFE10), range(0xE0100, 0xE01F0))


def width_of(text: str) -> int:
    """Columns of a text made by `safe`: the sum of those of its characters."""
    return len(text) if text.isascii() else sum(map(_columns, text))


@functools.lru_cache(4096)
def _columns(character: str) -> int:
    """Columns of a character; those of marks that have a place of their own differ by terminal, and
    are reckoned as one, so that nothing becomes too wide.
    """
    return 1 if unicodedata.category(character) == "Mc" else columns_of(character)


def safe(text: str, unicode: bool = True) -> str:
    """A text on one line, with controls as escapes, and without what terminals measure differently:
    skin tones and variants of emoji, flags (their letters are kept), heaps of combining marks.

    Without `unicode` everything beyond ASCII is an escape.
    """
    for character, (wide, narrow) in BREAKS.items():
        if character in text:
            text = text.replace(character, wide if unicode else narrow)
    shown = one_line(text)
    if shown.isascii():
        return shown
    if not unicode:
        return "".join(c if c.isascii() else escape(c) for c in shown)
    kept: list[str] = []
    marks = MOST_MARKS
    for character in shown:
        code = ord(character)
        if code in MODIFIERS or any(code in span for span in SELECTORS):
            continue
        if FLAGS <= code < FLAGS + 26:
            character = chr(ord("A") + code - FLAGS)  # the letter of a flag
        if unicodedata.category(character) in ("Mn", "Me", "Mc") or not _columns(character):
            if not kept:
                kept.append("◌")
                marks = 0
            marks += 1
            if marks > MOST_MARKS:
                continue
        else:
            marks = 0
        kept.append(character)
    return "".join(kept)


def in_ascii(text: str) -> str:
    """A text of several lines in ASCII, what is beyond as escapes."""
    return "\n".join(safe(line.replace("±", "+-"), False) for line in text.split("\n"))


def cut_to(text: str, columns: int) -> str:
    """The longest beginning of a safe text that fits into that many columns."""
    if text.isascii():
        return text[: max(0, columns)]
    used = 0
    for place, character in enumerate(text):
        used += _columns(character)
        if used > columns:
            return text[:place]
    return text


def label(text: str, columns: int, unicode: bool = True) -> str:
    """A safe text of at most that many columns, with a mark where it is cut."""
    # what is far beyond the columns is not even read
    shown = safe(text[: 4 * columns + 64], unicode)
    if width_of(shown) <= columns:
        return shown
    dots = "…" if unicode else "~"
    return cut_to(shown, columns - 1) + dots if columns > 0 else ""


def fitted(text: str, columns: int, unicode: bool = True) -> str:
    """The same, filled with blanks to exactly that many."""
    shown = label(text, columns, unicode)
    return shown + " " * (columns - width_of(shown))


def named(text: str, columns: int, unicode: bool = True) -> str:
    """A token as a name: without the blanks around it, and in quotes where it is nothing else."""
    shown = text.strip(" ")
    return label(shown or f"'{text}'", columns, unicode)


def joint(labels: Sequence[str]) -> str:
    """What is put between tokens: a blank where none of them brings its own."""
    some = labels[:2000]
    own = any(text[:1].isspace() or text[-1:].isspace() for text in some)
    return "" if own or all(len(text) <= 1 for text in some) else " "


def wrapped(text: str, columns: int) -> list[str]:
    """A safe text in lines, broken at blanks where there are any; a word that is longer than a line
    begins where the words before it end.
    """
    lines, line = [], ""
    for word in text.split(" "):
        joined = f"{line} {word}" if line else word
        if width_of(joined) <= columns:
            line = joined
            continue
        if line and width_of(word) > columns and width_of(line) <= columns // 2:
            piece = cut_to(word, columns - width_of(line) - 1)
            line, word = f"{line} {piece}", word[len(piece) :]
        if line:
            lines.append(line)
        while width_of(word) > columns:
            piece = cut_to(word, columns) or word[0]
            lines.append(piece)
            word = word[len(piece) :]  # what is left of it
        line = word
    return [*lines, line] if line else lines
