"""The grid of all heads, layers down, heads across: a letter and a colour for each class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from bigmodel_cli.attend import colours
from bigmodel_cli.attend.classes import CLASSES
from bigmodel_cli.attend.look import Layer, Look
from bigmodel_cli.attend.terminal.style import BOLD, Line, Span, Style, beside, width_of_line
from bigmodel_cli.attend.terminal.words import label

NO_CLASS = "?"
OTHERS = "  (no others)"
GAP = 3
LEAST_LEGEND = 20
TITLE = 20
PREFERRED = 13
"""Rows; more layers go into columns beside one another where these fit."""
KINDS = {"self": "{0}", "cross": "{0} reads {1}", "mixing": "{0}, mixed without attention"}


@dataclass(frozen=True)
class Panel:
    """Layers of one kind: a title, and of each layer its number and the letters of its heads."""

    title: str
    rows: list[tuple[int, str]]

    @property
    def heads(self) -> int:
        """The most of a layer."""
        return max(len(letters) for _, letters in self.rows)


def panels(look: Look) -> list[Panel]:
    """Layers that look from the same side at the same side, in the order of the first of each."""
    groups: dict[tuple[str, str, str], list[tuple[int, str]]] = {}
    for number, layer in enumerate(look.layers):
        key = (layer.kind, layer.queries.name, layer.keys.name)
        groups.setdefault(key, []).append((number_of(look, number), letters_of(layer)))
    return [
        Panel(KINDS[kind].format(one, other), rows) for (kind, one, other), rows in groups.items()
    ]


def number_of(look: Look, place: int) -> int:
    """The number of the layer at a place of the look, as --layers and --heads count them."""
    own = look.layers[place].number
    return place if own is None else own


def letters_of(layer: Layer) -> str:
    """A letter for each head, `NO_CLASS` where none was given."""
    return (layer.letters + NO_CLASS * layer.heads)[: layer.heads]


def grid(
    look: Look, columns: int, lines: int, style: Style, found_alone: bool = False
) -> list[Line]:
    """The grid with its legend, at most that large; empty where nothing fits.

    Where there are too many heads a letter stands for several, and a line says how many. With
    `found_alone` the legend has the classes that there are heads of, and no others.
    """
    found = panels(look)
    shown_classes = _classes(look, found_alone)
    if not found or lines < 1:
        return []
    note: list[Line] = []
    whole = _least_side(look, lines) + GAP
    for factor in (1, 2, 4, 8, 16, 32, 64):
        shown = [_coarser(panel, factor) for panel in found] if factor > 1 else found
        if factor > 1:
            what = f"each letter: the commonest class of up to {factor} x {factor} heads"
            note = [[Span(what)]]
        room = lines - len(note)
        cells = _laid_out(shown, columns, room, style, factor, whole)
        if cells is None:
            continue
        side = columns - max(map(width_of_line, cells)) - GAP
        if not any(layer.letters for layer in look.layers):
            return [*note, *cells]
        compact = _compact(look, columns, style, shown_classes)
        if side >= LEAST_LEGEND and room >= len(shown_classes):
            if side < _least_side(look, len(cells)) and len(cells) + len(compact) <= room:
                return [*note, *cells, *compact]
            most = max(len(cells), min(room, len(shown_classes) + 1))
            own = legend(look, side, most, style, shown_classes)
            return [*note, *beside([cells, own], GAP)]
        if len(cells) + len(compact) <= room:
            return [*note, *cells, *compact]
    return []


def _classes(look: Look, found_alone: bool) -> dict[str, tuple[str, str]]:
    """Letter -> name and threshold of the classes that the legend has."""
    there = {letter for layer in look.layers for letter in letters_of(layer)}
    return {one: said for one, said in CLASSES.items() if one in there or not found_alone}


def _coarser(panel: Panel, factor: int) -> Panel:
    rows = []
    for begin in range(0, len(panel.rows), factor):
        several = panel.rows[begin : begin + factor]
        count = max(len(letters) for _, letters in several)
        letters = "".join(
            Counter("".join(own[k : k + factor] for _, own in several)).most_common(1)[0][0]
            for k in range(0, count, factor)
        )
        rows.append((several[0][0], letters))
    return Panel(panel.title, rows)


def _laid_out(
    shown: Sequence[Panel], columns: int, lines: int, style: Style, factor: int, whole: int
) -> list[Line] | None:
    """The panels in blocks beside one another, in as few lines as look well, with `whole` columns
    beside them if need be by narrow cells; None where they do not fit.
    """
    titles = len(shown) > 1
    tallest = min(max(len(panel.rows) for panel in shown), lines - 1 - titles)
    beside_it = LEAST_LEGEND + 12 + GAP
    for most in (PREFERRED, tallest):
        for cell, side in ((2, whole), (1, whole), (2, beside_it), (1, beside_it), (2, 0), (1, 0)):
            height = min(most, tallest)
            if height < 1:
                return None
            blocks = list(_blocks(shown, height, cell, style, titles, factor))
            wide = sum(max(map(width_of_line, block)) for block in blocks) + GAP * (len(blocks) - 1)
            if wide + side <= columns:
                return beside(blocks, GAP)
    return None


def _blocks(
    shown: Sequence[Panel], height: int, cell: int, style: Style, titles: bool, factor: int
) -> Iterator[list[Line]]:
    for panel in shown:
        for begin in range(0, len(panel.rows), height):
            rows = panel.rows[begin : begin + height]
            digits = max(2, len(str(rows[-1][0])))
            block = [_ruler(panel.heads, cell, digits, factor)]
            for number, letters in rows:
                block.append([Span(f"{number:>{digits}} "), *_letters(letters, cell, style)])
            if titles:
                wide = max(map(width_of_line, block))
                text = panel.title if not begin else ""
                block.insert(0, [Span(label(text, max(wide, TITLE), style.unicode), stress=BOLD)])
            yield block


def _ruler(heads: int, cell: int, digits: int, factor: int) -> Line:
    """Numbers above every fifth head."""
    text = ""
    for head in range(0, heads, 5):
        number = str(head * factor)
        place = head * cell + cell - 1
        if place >= len(text) and place + len(number) <= max(heads * cell, 1):
            text += " " * (place - len(text)) + number
    return [Span(" " * (digits + 1) + text)]


def _letters(letters: str, cell: int, style: Style) -> Iterator[Span]:
    for letter in letters:
        yield letter_of(letter, style, letter.rjust(cell))


def letter_of(letter: str, style: Style, text: str | None = None) -> Span:
    """A letter on the colour of its class."""
    ground = colours.CLASSES.get(letter)
    if not style.colours or ground is None:
        return Span(text or letter)
    return Span(text or letter, colours.ink_on(ground), ground)


def legend(
    look: Look, columns: int, lines: int, style: Style, classes: Mapping[str, tuple[str, str]]
) -> list[Line]:
    """Each class: its letter, name, how many heads are of it, and from where on; on two lines each
    where the columns are few and the lines are not.
    """
    counts = Counter(letter for layer in look.layers for letter in letters_of(layer))
    digits = max(5, len(str(sum(counts.values()))))
    two = columns < _least_side(look, 0) and lines > 2 * len(CLASSES)
    title = f"class        {'heads':>{digits}}{'' if len(classes) == len(CLASSES) else OTHERS}"
    rows: list[Line] = [[Span(label(title, columns, style.unicode))]]
    for letter, (name, rule) in classes.items():
        text = f" {name:<9} {counts[letter]:>{digits}}{'' if two else '  ' + rule}"
        shown = Span(label(text, columns - 3, style.unicode))
        rows.append([letter_of(letter, style, f" {letter} "), shown])
        if two:
            rows.append([Span(label(f"    {rule}", columns, style.unicode))])
    return rows[-lines:] if len(rows) > lines else rows


def _least_side(look: Look, lines: int) -> int:
    """Columns that the legend needs beside so many lines of the grid, to be whole."""
    longest = max(len(rule) for _, rule in CLASSES.values())
    if lines > 2 * len(CLASSES):
        return longest + 4
    digits = max(5, len(str(sum(layer.heads for layer in look.layers))))
    return 15 + digits + longest


def _compact(
    look: Look, columns: int, style: Style, classes: Mapping[str, tuple[str, str]]
) -> list[Line]:
    """The same in as few lines as hold it."""
    counts = Counter(letter for layer in look.layers for letter in letters_of(layer))
    lines: list[Line] = [[]]
    for letter, (name, rule) in classes.items():
        what = rule if rule.startswith(name) else f"{name}, {rule}"
        piece = [letter_of(letter, style), Span(f" {what}: {counts[letter]}")]
        if lines[-1] and width_of_line(lines[-1]) + 2 + width_of_line(piece) > columns:
            lines.append([])
        lines[-1] += [Span("  ")] * bool(lines[-1]) + piece
    return lines
