"""What a terminal can show, and lines of coloured text that are never wider than it is."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TextIO

from bigmodel_cli.attend import colours
from bigmodel_cli.attend.perceived import lab_of
from bigmodel_cli.attend.terminal.words import cut_to, width_of
from bigmodel_cli.console import has_colour

RGB = tuple[int, int, int]
TRUE, MANY, NONE = 2**24, 256, 0
"""Colours of a terminal: any, the 256 of xterm, or none (characters of rising density instead)."""
DIRECT = ("xterm-kitty", "xterm-ghostty", "alacritty", "foot", "wezterm", "contour")
"""Terminals that show any colour without saying so in COLORTERM."""
LIGHT = ("7", "15")
"""Grounds in COLORFGBG, which some terminals set, that are light."""
LIGHTNESS = 3
"""What a difference of lightness counts more than one of colour where only 256 colours are: so that
a scale keeps its order.
"""
STEPS = (0, 95, 135, 175, 215, 255)
"""Levels of each of red, green, blue among the 256 colours."""


@dataclass(frozen=True)
class Style:
    """How a view is drawn: with how many colours, and with which characters."""

    colours: int = NONE
    unicode: bool = True
    dark: bool = True
    """Whether the terminal's ground is dark: nothing is then dark too, and all is light."""

    @property
    def shades(self) -> str:
        """Characters of rising density; the first is for nothing at all."""
        return " ·░▒▓█" if self.unicode else " .:-=+*#%@"

    @property
    def tones(self) -> tuple[str, str]:
        """Characters for what is below and above zero, by rising size; the first is zero."""
        return (" ,-=m", " .+x#")

    @property
    def per_line(self) -> int:
        """Rows of a map that a line of text holds: two where half blocks are coloured."""
        return 2 if self.colours and self.unicode else 1

    def sign(self, wide: str, narrow: str) -> str:
        """The first where the terminal has all characters, else the second, which is ASCII."""
        return wide if self.unicode else narrow


def style_of(stream: TextIO, only_ascii: bool = False) -> Style:
    """The style for a stream: colours on a terminal alone, and never with NO_COLOR or TERM=dumb;
    characters beyond ASCII where its encoding has them.

    `only_ascii` means neither.
    """
    unicode = (stream.encoding or "").lower().replace("-", "") in ("utf8", "utf8sig")
    term = os.environ.get("TERM", "dumb")
    if only_ascii or not has_colour(stream):
        dumb = stream.isatty() and term == "dumb"
        return Style(NONE, unicode and not only_ascii and not dumb)
    direct = os.environ.get("COLORTERM", "") in ("truecolor", "24bit")
    dark = os.environ.get("COLORFGBG", "").split(";")[-1] not in LIGHT
    if direct or term.endswith("-direct") or term in DIRECT:
        return Style(TRUE, unicode, dark)
    return Style(MANY if "256" in term else NONE, unicode, dark)


@dataclass(frozen=True)
class Span:
    """A piece of a line: its text, made safe already, and its colours (None: the terminal's)."""

    text: str
    ink: RGB | None = None
    ground: RGB | None = None
    stress: str = ""


BOLD, MARKED = "1", "1;4"
"""Codes of `Span.stress`: of a heading, and of the token that asks."""
Line = list[Span]


def width_of_line(line: Line) -> int:
    """The columns of a line."""
    return sum(width_of(span.text) for span in line)


def clipped(line: Line, columns: int) -> Line:
    """The beginning of a line that fits."""
    kept, room = [], columns
    for span in line:
        size = width_of(span.text)
        if size > room:
            kept.append(Span(cut_to(span.text, room), span.ink, span.ground, span.stress))
            break
        kept.append(span)
        room -= size
    return kept


def beside(blocks: Sequence[Sequence[Line]], gap: int) -> list[Line]:
    """Blocks of lines next to each other, each as wide as its widest line."""
    wide = [max(map(width_of_line, block), default=0) for block in blocks]
    lines = []
    for row in range(max(map(len, blocks), default=0)):
        line: Line = []
        for block, size in zip(blocks, wide, strict=True):
            piece = list(block[row]) if row < len(block) else []
            line += [*piece, Span(" " * (size - width_of_line(piece) + gap))]
        lines.append(line)
    return lines


def rendered(lines: Iterable[Line], columns: int, style: Style) -> str:
    """Lines as text, cut at the width; without colours, blanks at the end are left out."""
    return "\n".join(_line(clipped(line, columns), style) for line in lines)


def _line(line: Line, style: Style) -> str:
    if not style.colours:
        return "".join(span.text for span in line).rstrip()
    while line and not line[-1].ground and not line[-1].text.strip(" "):
        line = line[:-1]
    pieces, state = [], ""
    for span in line:
        code = _code(span, style.colours)
        if code != state:
            pieces.append("\x1b[0m" + code if state else code)
            state = code
        pieces.append(span.text)
    return "".join(pieces) + ("\x1b[0m" if state else "")


def _code(span: Span, colours_: int) -> str:
    parts = [span.stress] if span.stress else []
    for kind, colour in (("38", span.ink), ("48", span.ground)):
        if colour is not None:
            many = ";".join(map(str, colour)) if colours_ == TRUE else str(nearest(colour))
            parts.append(f"{kind};{2 if colours_ == TRUE else 5};{many}")
    return f"\x1b[{';'.join(parts)}m" if parts else ""


@functools.cache
def nearest(colour: RGB) -> int:
    """The number of the closest of xterm's 256 colours in CIELAB (the first 16 depend on the user's
    theme, and are not used).
    """
    own = _lab(colour)

    def far(other: tuple[float, float, float]) -> float:
        return math.hypot(LIGHTNESS * (own[0] - other[0]), own[1] - other[1], own[2] - other[2])

    return min(_palette(), key=lambda k: far(_palette()[k]))


@functools.cache
def _palette() -> dict[int, tuple[float, float, float]]:
    """The colours in CIELAB by number: a cube of 6 x 6 x 6, and 24 greys."""
    cube = [(red, green, blue) for red in STEPS for green in STEPS for blue in STEPS]
    greys = [(8 + 10 * k,) * 3 for k in range(24)]
    return {16 + k: _lab(colour) for k, colour in enumerate((*cube, *greys))}


def _lab(colour: RGB) -> tuple[float, float, float]:
    red, green, blue = (part / 255 for part in colour)
    return lab_of((red, green, blue))


def ramp(style: Style, columns: int = 10, signed: bool = False) -> Line:
    """The colours or characters from nothing (signed: from -1) to 1."""
    where = [k / max(1, columns - 1) for k in range(columns)]
    return [shade(2 * x - 1 if signed else x, style, signed) for x in where]


def shade(x: float, style: Style, signed: bool = False, text: str = " ") -> Span:
    """A cell for x in 0 to 1 (signed: -1 to 1), clamped; where there are colours, `text` on it."""
    x = min(1.0, max(-1.0 if signed else 0.0, x))
    if style.colours:
        ground = colours.diverging(x, style.dark) if signed else colours.sequential(x, style.dark)
        return Span(text, colours.ink_on(ground), ground)
    return Span(mark(x, style, signed) * width_of(text))


def mark(x: float, style: Style, signed: bool = False) -> str:
    """The character that stands for x where there are no colours; only nothing is a blank."""
    of = style.tones[x > 0] if signed else style.shades
    steps = len(of) - 1
    return of[0] if x == 0 else of[min(steps, 1 + int(abs(x) * steps))]
