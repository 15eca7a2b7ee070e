"""What stands around a picture: title and facts above, scales, classes and a caption below."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bigmodel_cli.attend import classes
from bigmodel_cli.attend.colours import CLASSES
from bigmodel_cli.attend.look import CAUTION, Layer, Look, within
from bigmodel_cli.attend.picture.maps import Scale, bar_title, draw_bar, scale_of, signed
from bigmodel_cli.attend.picture.sheet import (
    GREY,
    MARGIN,
    POINT,
    Sheet,
    cut_to,
    shortened,
    width_of,
)
from bigmodel_cli.pictures import plain, plain_names

LEAST_WIDTH = 1100
BAR = 640
CHIP = 30
LESS = " less "
"""Between the names of two models, of which the second one's weights are taken from the first's."""


@dataclass(frozen=True)
class PictureOptions:
    """What is drawn: `heads` are places (layer, head) in the look; None leaves it to the picture.

    `query` draws what the look's query reads, in the place of maps, and `key` who reads the key.
    `told` draws which words come from which, or when they are said, where the look tells it, and
    `lens` what each layer would answer. `measure` is what blocks show,
    "most" or "mean". Without `sink` the first keys are blank where they are sinks, with their share
    as a number.
    """

    heads: Sequence[tuple[int, int]] | None = None
    query: bool = False
    key: bool = False
    told: bool = False
    lens: bool = False
    measure: str = "most"
    sink: bool = True


def draw_header(sheet: Sheet, look: Look, width: float, facts: Sequence[str]) -> float:
    """The model, what it looked at, its answer, and facts; returns where the body may begin."""
    y = float(MARGIN)
    for line in _titles(look.model, width):
        sheet.text(MARGIN, y + 18, line, 9, weight="bold")
        y += 50
    titled, which = look.title and f"“{look.title}”", within(look.checkpoint)
    facts = [*facts, *([f"checkpoint {which}"] if which else [])]
    said = [titled, look.part, look.answer and f"answer: {look.answer}"]
    dot = " · "
    first = [dot.join(facts)] if width_of(dot.join(facts), 6.5) <= width else facts
    lines = [*first, *plain_names([text for text in said if text])]
    for line in filter(None, lines):
        sheet.text(MARGIN, y + 14, cut_to(line, width, 6.5), 6.5, color=GREY)
        y += 1.4 * 6.5 * POINT
    return y + 24


def _titles(model: str, width: float) -> list[str]:
    """The title: of two models that do not fit beside one another a line each."""
    name, between, other = plain(model).partition(LESS)
    if not between or width_of(plain(model), 9, bold=True) <= width:
        return [shortened(plain(model), width, 9, bold=True)]
    return [shortened(line, width, 9, bold=True) for line in (name, between.lstrip() + other)]


def facts_of(look: Look, layers: Sequence[Layer]) -> list[str]:
    """The sizes of what is drawn."""
    counts = {layer.heads for layer in layers}
    heads = f"{min(counts)}" if len(counts) == 1 else f"{min(counts)} to {max(counts)}"
    sides = {(side.name, len(side)): side for one in layers for side in (one.queries, one.keys)}
    sizes = []
    for (name, length), side in sides.items():
        kind = "positions" if side.seconds or side.grid else "tokens"
        sizes.append(f"{plain(name)}: {length:,} {kind if length != 1 else kind[:-1]}")
    layer = "layer" if len(layers) == 1 else "layers"
    return [f"{len(layers)} {layer} × {heads} head{'' if heads == '1' else 's'}", *sizes]


def draw_scales(
    sheet: Sheet,
    y: float,
    layers: Sequence[Layer],
    measure: str,
    width: float,
    pooled_by: int = 1,
    classes: bool = True,
) -> float:
    """A bar for shares and one for signed weights, where there are any, and the classes drawn,
    where asked for.
    """
    bottom, x = y, float(MARGIN)
    for kind in (False, True):
        own = [layer for layer in layers if signed(layer) == kind]
        if not own:
            continue
        scale = scale_of(own, measure)
        title = bar_title(own, scale, measure, pooled_by)
        wide = max(BAR, width_of(title, 6) + 30)
        if x > MARGIN and x + wide > width:
            x, y = float(MARGIN), bottom + 20
        bottom = max(bottom, draw_bar(sheet, x, y, scale, BAR, title))
        x += wide + 40
    return draw_classes(sheet, x, y, bottom, layers, width) if classes else bottom


def draw_classes(
    sheet: Sheet, x: float, y: float, bottom: float, layers: Sequence[Layer], width: float
) -> float:
    """The classes of heads, with how many there are of each; returns the lowest edge."""
    counts = Counter(letter for layer in layers for letter in layer.letters)
    found = [
        (letter, f"{name} {counts[letter]} ({rule})")
        for letter, (name, rule) in classes.CLASSES.items()
        if counts[letter]
    ]
    if not found:
        return bottom
    entry = CHIP + 12 + max(width_of(text, 6) for _, text in found) + 26
    columns = int((width + MARGIN - x) // entry)
    if columns < min(2, len(found)):
        x, y = float(MARGIN), bottom + 24
        columns = max(1, int(width // entry))
    rows = -(-len(found) // columns)
    columns = -(-len(found) // rows)
    sheet.text(x, y + 14, "class of each head, and how many", 6, color=GREY)
    for place, (letter, text) in enumerate(found):
        left, top = x + place % columns * entry, y + 36 + place // columns * (CHIP + 8)
        sheet.chip(left, top, CHIP, letter, CLASSES[letter])
        sheet.text(left + CHIP + 12, top + CHIP / 2, text, 6)
    return max(bottom, y + 36 + rows * (CHIP + 8))


def draw_caption(
    sheet: Sheet, y: float, look: Look, width: float, how: str, checked: bool = True
) -> float:
    """How to read it, how far it is exact, and the caution, in small type; returns its end."""
    sentences = [how]
    if checked and look.layers:
        sentences.append(
            "Weights times values differ from what the kernel returned by at most"
            f" {look.difference:.1e} of the largest output."
        )
    sampled = [layer for layer in look.layers if layer.sampled is not None]
    if sampled:
        count, whole = len(sampled[0].sampled), len(sampled[0].queries)  # type: ignore[arg-type]
        sentences.append(f"Statistics are of {count:,} of {whole:,} queries.")
    sentences += [_ended(note) for note in look.notes]
    if checked:
        sentences.append(CAUTION + ".")
    text = " ".join(plain_names([sentence for sentence in sentences if sentence]))
    return sheet.paragraph(MARGIN, y + 10, text, width, 5.5, color=GREY)


def finish(sheet: Sheet, path: Path, width: float, bottom: float) -> None:
    """Write the sheet, whose content has that width and ends there."""
    sheet.save(path, width + 2 * MARGIN, bottom + MARGIN)


def scales(layers: Sequence[Layer], measure: str) -> list[Scale]:
    """The scale of each layer: one for all shares, one for all signed weights."""
    found = {}
    for kind in {signed(layer) for layer in layers}:
        found[kind] = scale_of([one for one in layers if signed(one) == kind], measure)
    return [found[signed(layer)] for layer in layers]


def _ended(note: str) -> str:
    return note[:1].upper() + note[1:] + ("" if note.endswith((".", "?", "!")) else ".")
