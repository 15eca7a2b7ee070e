"""What `attend` shows by default: one screen for any model and any length.

From the top: facts, the grid of all heads, the text (or image) shaded by what one query reads, the
heads that tell most as small maps, and a sentence of caution. Everything takes plain data and a
`Style`, and gives text.
"""

from __future__ import annotations

from collections.abc import Sequence

from bigmodel_cli.attend import alignment, routing, spoken
from bigmodel_cli.attend.look import CAUTION, Look, Side
from bigmodel_cli.attend.telling import RULE, Head, Reading, readings, telling
from bigmodel_cli.attend.terminal.grid import grid
from bigmodel_cli.attend.terminal.heat_map import CAUTION as OF_MAPS
from bigmodel_cli.attend.terminal.heat_map import heat_map
from bigmodel_cli.attend.terminal.maps import CAPTIONS, scale_line, small_maps
from bigmodel_cli.attend.terminal.reading import apart, heading, patches, shaded
from bigmodel_cli.attend.terminal.style import (
    BOLD,
    Line,
    Span,
    Style,
    beside,
    rendered,
    style_of,
    width_of_line,
)
from bigmodel_cli.attend.terminal.tables import lens_of
from bigmodel_cli.attend.terminal.words import in_ascii, label, safe, width_of, wrapped
from bigmodel_cli.console.text import counted

__all__ = ["Style", "in_ascii", "show", "style_of"]
NARROW, FEW = 90, 12
"""Columns below which a scale is short, and lines below which a view has no maps."""
MOST_MAP, MOST_NOTES = 16, 4
LEAST_TABLE, MOST_TABLE, MOST_TOLD = 3, 8, 14
"""Lines of a table of words, and the most of one that tells what such a model is looked at for."""
TOLD = ("alignment", "times")
"""Tables that come before the maps of heads, and before what else the last token reads."""
TIGHT = 24
"""Lines for the grid and all below it that are too few for classes of which there is no head."""
GAP, PATCH_MAPS = 2, 5
"""Columns between maps of an image's patches, and how many are beside one another."""
TEXT_PART = 0.4
"""Of the lines below the grid: those of the text, where it is long."""
FULL = 4
"""Lines from which on a reading has a heading of two lines."""
LEAST_MAP = CAPTIONS + 1 + 3
"""Lines of the maps of heads: a heading, the captions, and some of the map itself."""


def show(look: Look, width: int, height: int, style: Style) -> str:
    """The view for a terminal of that many columns and lines, without a newline at the end.

    It leaves the last line to the prompt, and nothing of it is wider than the terminal.
    """
    columns, lines = max(1, width), max(1, height - 1)
    above = _facts(look, columns, lines, style)
    said = CAUTION if look.layers or look.heat is None else OF_MAPS
    caution = [[Span(line)] for line in wrapped(said, columns)]
    if lines < FEW:
        caution = caution[: max(0, lines - len(above) - 2)]
    room = lines - len(above) - len(caution)
    body: list[Line] = []
    if look.layers:
        body = _body(look, columns, room, style)
    elif look.heat is not None:
        body = heat_map(look.heat, columns, room, style)
    return rendered([*above, *body, *caution][:lines], columns, style)


def _facts(look: Look, columns: int, lines: int, style: Style) -> list[Line]:
    """What was looked at, what came out, and what is to be known about it."""
    parts = [safe(look.model, style.unicode), *_sizes(look, style)]
    sinks = [layer.statistics.sink for layer in look.layers if not layer.signed]
    shares = [float(x) for values in sinks for x in values if float(x) == float(x)]
    if shares:
        parts.append(f"sinks {100 * sum(shares) / len(shares):.0f} %")
    if look.layers:
        rounded = f" ({look.rounded})" if look.rounded else ""
        parts.append(f"P v = kernel to {look.difference:.0e}{rounded}")
    dot = style.sign(" · ", ", ")
    most = 2 if lines >= FEW else 1
    texts = wrapped(dot.join(parts), columns)[:most]
    if look.answer:
        texts += wrapped(f"answer: {safe(look.answer, style.unicode)}", columns)[:most]
    notes = [line for note in look.notes for line in wrapped(safe(note, style.unicode), columns)]
    room = max(0, min(MOST_NOTES if look.layers else 2 * MOST_NOTES, lines // 4))
    if len(notes) > room:
        left = len(notes) - max(0, room - 1)
        notes = [*notes[: max(0, room - 1)], f"({left} more lines of notes: --json)"][:room]
    return [[Span(text)] for text in [*texts, *notes]][:lines]


def _sizes(look: Look, style: Style) -> list[str]:
    """The lengths of the sides, and how many layers and heads there are."""
    sides: dict[tuple[str, int], Side] = {}
    for layer in look.layers:
        for side in (layer.keys, layer.queries):
            sides.setdefault((side.name, len(side)), side)
    parts = [_size(side, style) for side in list(sides.values())[:3]]
    counts = [layer.heads for layer in look.layers]
    if len(set(counts)) == 1:
        parts.append(f"{counted(len(counts), 'layer')} x {counted(counts[0], 'head')}")
    elif counts:
        parts.append(f"{len(counts)} layers, {sum(counts)} heads")
    return parts


def _size(side: Side, style: Style) -> str:
    name = label(side.name, 16, style.unicode)
    if side.grid is None:
        return f"{name} {counted(len(side), 'position' if side.seconds else 'token')}"
    others = len(side) - side.grid[0] * side.grid[1]
    also = f" + {others}" if others else ""
    return f"{name} {side.grid[0]} x {side.grid[1]}{also}"


def _body(look: Look, columns: int, room: int, style: Style) -> list[Line]:
    """The grid, the reading and the maps, in so many lines."""
    found = readings(look)
    images = bool(found) and all(reading.keys.grid is not None for reading in found)
    told = any(name in look.extra for name in TOLD)
    if told and room < TIGHT:
        found = [one for one in found if one.read or one.query != len(one.asking) - 1]
    least = len(found) * (2 if style.colours else 3)
    wanted = room - least - LEAST_MAP if room >= FEW else room - least
    tight = room < TIGHT
    heads = grid(look, columns, wanted, style, tight) or grid(look, columns, room, style, tight)
    left = room - len(heads)
    gaps = left >= LEAST_MAP + least + 6
    space: list[Line] = [[]] if gaps else []
    left -= 3 * len(space)
    first = told or "lens" in look.extra  # for which maps make room
    table = _words(look, columns, left - least - (0 if first else LEAST_MAP), style)
    left -= len(table)
    if images:
        return [*heads, *space, *table, *_image(look, found[-1], columns, left, style), *space]
    small = left < least + LEAST_MAP
    text_room = left if small else min(max(least, round(TEXT_PART * left)), left - LEAST_MAP)
    text = _texts(look, found, columns, text_room, style)
    maps = _maps(look, columns, left - len(text), style)
    return [*heads, *space, *table, *text, *space, *maps, *space]


def _words(look: Look, columns: int, room: int, style: Style) -> list[Line]:
    """What each layer would answer, which words of a source or of a recording's seconds the words
    written come from, or the experts' loads.
    """
    lines: list[str] = []
    if "lens" in look.extra:
        return lens_of(look.extra["lens"], columns, room, style)
    if room > LEAST_TABLE and "alignment" in look.extra:
        lines = alignment.shown(look.extra["alignment"], columns, min(room, MOST_TOLD) - 2)
    elif room > LEAST_TABLE and "times" in look.extra:
        lines = spoken.shown(look.extra["times"], columns, min(room, MOST_TOLD) - 2)
    elif room > LEAST_TABLE and "routing" in look.extra:
        labels = look.layers[-1].queries.labels[-1:]
        most = min(room, MOST_TABLE)
        lines = routing.shown(look.extra["routing"], labels, columns, most, not style.unicode)
    return [[Span(safe(line, style.unicode))] for line in lines]


def _texts(
    look: Look, found: Sequence[Reading], columns: int, room: int, style: Style
) -> list[Line]:
    """What is read of each side; of too many for the room the last ones, which were asked for."""
    lines: list[Line] = []
    found = found[-max(1, room // (2 if style.colours else 3)) :]
    for number, reading in enumerate(found):
        each = (room - len(lines)) // (len(found) - number)
        several = len({one.keys.name for one in found if one.read == reading.read}) > 1
        head = heading(reading, _query(reading, style), columns, style, several, each < FULL)
        text = shaded(reading, columns, each - len(head), style)
        if text:
            lines += [*head, *text]
    return lines


def _query(reading: Reading, style: Style) -> str:
    """The query, or the key that is read, in words."""
    side = reading.asking
    token = side.labels[reading.query]
    text = f"'{label(token.strip(' ') or token, 20, style.unicode)}'"  # escaped before
    if side.grid is not None:
        row, column = divmod(reading.query - side.first, side.grid[1])
        return f"patch {row},{column}" if 0 <= row < side.grid[0] else text
    last = reading.query == len(side) - 1 and len(side) > 1 and not reading.read
    return f"the last token {text}" if last else f"{text} (position {reading.query:,})"


def _maps(look: Look, columns: int, room: int, style: Style) -> list[Line]:
    if room < LEAST_MAP:
        return []
    heads = telling(look)
    body = small_maps(look, heads, columns, min(room, MOST_MAP) - 1, style)
    return [_telling(look, heads, columns, style), *body] if body else []


def _telling(look: Look, heads: Sequence[Head], columns: int, style: Style) -> Line:
    """How the maps were chosen and what their colours mean."""
    scale = scale_line(look, heads, style, 2 if columns > NARROW else 1)
    blocks = [look.layers[head.layer].blocks for head in heads]
    what = "block maximum" if any(b.rows > 1 or b.columns > 1 for b in blocks) else "weight"
    count = sum(len(layer.chosen) for layer in look.layers)
    short = "telling heads"
    if count:
        short = "chosen heads" if count <= len(heads) else f"{len(heads)} of {count} chosen heads"
    text = short if count else f"{short} by {RULE}"
    for words in (f"{text}, query down, {what}:", f"{text}, {what}:", text, short):
        if width_of(words) + width_of_line(scale) <= columns:
            return [Span(words, stress=BOLD), *scale]
    return [Span(label(text, columns, style.unicode))]


def _image(look: Look, reading: Reading, columns: int, room: int, style: Style) -> list[Line]:
    """The patches that the query reads, over all heads and of those that tell most."""
    head = heading(reading, _query(reading, style), columns, style)
    special = apart(reading, columns, style)
    above = [*head, *([special] if special else [])]
    lines = min(room - len(above), MOST_MAP + 4)
    if lines < 2:
        return above[:room]
    wide = (columns - GAP * (PATCH_MAPS - 1)) // PATCH_MAPS
    own = patches(reading, wide, lines - CAPTIONS, style)
    heads, rest = telling(look), columns - wide - GAP
    title: list[Line] = [[Span(label("all of them", wide, style.unicode))], []]
    blocks = [[*title, *own], small_maps(look, heads, rest, lines, style)]
    below = room - len(above) - max(map(len, blocks))
    if look.heat is None:
        return [*above, *beside(blocks, GAP)]
    if below >= FEW:
        return [*above, *beside(blocks, GAP), [], *heat_map(look.heat, columns, below - 1, style)]
    over = heat_map(look.heat, 2 * wide + GAP, lines, style)  # in the place of two heads
    if over:
        blocks = [over, blocks[0], small_maps(look, heads[:2], 2 * wide + GAP, lines, style)]
    return [*above, *beside(blocks, GAP)]
