"""Pictures: figures without a display, names in them as they stand, and one way to write them."""

from __future__ import annotations

import contextlib
import functools
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bigmodel_cli.console import escape, one_line, say
from bigmodel_cli.errors import SpecError
from bigmodel_cli.outputs import check_output, write_output

FORMATS = ("png", "pdf", "svg", "jpg", "jpeg", "webp", "tif", "tiff")


def new_figure(size: tuple[float, float]) -> Any:
    """A matplotlib figure of that size in inches, which no window shows."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def plain(text: str) -> str:
    """A name that matplotlib draws as it stands: see `plain_names`."""
    return plain_names([text])[0]


def plain_names(texts: Sequence[str]) -> list[str]:
    """Names that matplotlib draws as they stand: control characters as escapes, no dollar that begins a formula.

    Characters that no installed font has are code points too, which stderr is told.
    """
    lines = [one_line(text) for text in texts]
    drawable = fonts_for(lines)
    missing = list(dict.fromkeys(c for line in lines for c in line if c not in drawable))
    if missing:
        more = f" ... ({len(missing):,} characters)" if missing[8:] else ""
        say(
            f"no installed font has {' '.join(missing[:8])}{more}: the picture shows code points instead; install a font that has "
            "them, such as one of Noto's"
        )
    shown = str.maketrans({"$": r"\$", **{c: escape(c) for c in missing}})
    return [line.translate(shown) for line in lines]


def fonts_for(texts: Iterable[str]) -> dict[str, str]:
    """Of each character the family of a font that draws it, matplotlib's own before others; those without one are left out."""
    wanted, families = set().union(*texts), dict[str, str]()
    for family, file in _fonts():
        families.update(dict.fromkeys((wanted & _characters(file)) - families.keys(), family))
        if len(families) == len(wanted):
            break
    return families


def _fonts() -> Iterator[tuple[str, str]]:
    """Family and file of every font, those included that were installed since matplotlib listed them."""
    from matplotlib.font_manager import findfont, findSystemFonts, fontManager

    yield "DejaVu Sans", str(findfont("DejaVu Sans"))
    for file in sorted(set(findSystemFonts()) - {font.fname for font in fontManager.ttflist}):
        with contextlib.suppress(Exception):  # it is damaged, or of a form that is not drawn
            fontManager.addfont(file)
    others = [font for font in fontManager.ttflist if font.style == "normal"]
    # One that has a box for everything, and those whose codes are not Unicode's.
    yield from sorted({(f.name, f.fname) for f in others if not f.name.startswith(("Last Resort", "cm"))})


@functools.cache
def _characters(file: str) -> frozenset[str]:
    """What a font can draw; nothing where it has no outlines, as one of coloured emoji."""
    from matplotlib.ft2font import FT2Font

    with contextlib.suppress(Exception):
        font = FT2Font(file)
        codes = font.get_charmap()
        if any(font.load_char(code).width for code in list(codes)[:: len(codes) // 8 or 1]):
            return frozenset(map(chr, codes))
    return frozenset()


def check_picture(path: Path, option: str) -> None:
    """Raise where a picture could not be written there: `SpecError` for a format that is not known, `ResourceError` else."""
    ending = path.suffix.lower().removeprefix(".")
    if ending and ending not in FORMATS and (os.path.isfile(path) or not os.path.exists(path)):
        raise SpecError(f"{option}: {path}: pictures are {', '.join(FORMATS)}; let its name end in .png")
    check_output(path, option)


def save_figure(figure: Any, path: Path, dpi: int, **options: Any) -> None:
    """Write a figure in the format that its file's name ends in, else as PNG. Raises `ResourceError`."""
    from matplotlib.text import Text

    texts = figure.findobj(Text)
    others = dict.fromkeys(fonts_for(text.get_text() for text in texts).values())
    for text in texts:
        text.set_fontfamily([*text.get_fontfamily(), *others])
    ending = path.suffix.lower().removeprefix(".")
    picture = io.BytesIO()
    figure.savefig(picture, dpi=dpi, format=ending if ending in FORMATS else "png", **options)
    write_output(path, [picture.getvalue()])
