"""Pictures: figures without a display, names drawn literally, and one way to write them."""

from __future__ import annotations

import contextlib
import functools
import io
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from bigmodel_cli.console import escape, one_line, say
from bigmodel_cli.errors import SpecError
from bigmodel_cli.outputs import check_output, write_output

FORMATS = ("png", "pdf", "svg", "jpg", "jpeg", "webp", "tif", "tiff")

MARKED = 30
"""A line with fewer points has each of them marked."""


def new_figure(
    size: tuple[float, float], layout: Literal["constrained"] | None = "constrained"
) -> Any:
    """A matplotlib figure of that size in inches, without a window.

    Without a `layout` its parts stay where they are put, and it is drawn once.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout=layout)
    FigureCanvasAgg(figure)
    return figure


def plain(text: str) -> str:
    """A name that matplotlib draws literally: see `plain_names`."""
    return plain_names([text])[0]


def plain_names(texts: Sequence[str]) -> list[str]:
    """Names that matplotlib draws literally: control characters as escapes, no dollar that begins a
    formula.

    Characters that no installed font has become code points too, which is reported on stderr.
    """
    lines = [one_line(text) for text in texts]
    drawable = fonts_for(lines)
    missing = list(dict.fromkeys(c for line in lines for c in line if c not in drawable))
    if missing:
        more = f" ... ({len(missing):,} characters)" if missing[8:] else ""
        say(
            f"no installed font has {' '.join(missing[:8])}{more}: the picture shows code points"
            " instead; install a font that has them, such as one of Noto's"
        )
    shown = str.maketrans({"$": r"\$", **{c: escape(c) for c in missing}})
    return [line.translate(shown) for line in lines]


def fonts_for(texts: Iterable[str]) -> dict[str, str]:
    """For each character the family of a font that has it, matplotlib's own before others; those
    without one are left out.
    """
    wanted, families = set().union(*texts), dict[str, str]()
    for family, file in _fonts():
        families.update(dict.fromkeys((wanted & _characters(file)) - families.keys(), family))
        if len(families) == len(wanted):
            break
    return families


def _fonts() -> Iterator[tuple[str, str]]:
    """Family and file of every font, including those installed since matplotlib listed them."""
    from matplotlib.font_manager import findfont, findSystemFonts, fontManager

    yield "DejaVu Sans", str(findfont("DejaVu Sans"))
    for file in sorted(set(findSystemFonts()) - {font.fname for font in fontManager.ttflist}):
        with contextlib.suppress(Exception):  # damaged, or of an unsupported format
            fontManager.addfont(file)
    others = [font for font in fontManager.ttflist if font.style == "normal"]
    # A font with a box for everything, and those whose codes are not Unicode's.
    yield from sorted(
        {(f.name, f.fname) for f in others if not f.name.startswith(("Last Resort", "cm"))}
    )


@functools.cache
def _characters(file: str) -> frozenset[str]:
    """The characters that a font has; none where it has no outlines, such as one of coloured
    emoji.
    """
    from matplotlib.ft2font import FT2Font

    with contextlib.suppress(Exception):
        font = FT2Font(file)
        codes = font.get_charmap()
        if any(font.load_char(code).width for code in list(codes)[:: len(codes) // 8 or 1]):
            return frozenset(map(chr, codes))
    return frozenset()


def written_out(value: float, place: int | None = None) -> str:
    """Write the numbers of an axis in full, without an offset or a common factor."""
    return f"{value:.6g}"


def tidy(axes: Any, *, right: bool = False) -> None:
    """A light grid and no frame but the axes; numbers in full.

    The y axis may be on the right.
    """
    axes.spines[["top"] if right else ["top", "right"]].set_visible(False)
    axes.yaxis.set_major_formatter(written_out)
    if not right:
        axes.grid(alpha=0.25)


def whole_steps(axes: Any, steps: Collection[int]) -> None:
    """An x axis of whole steps, which a single step does not shrink to nothing."""
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlim(*((min(steps) - 1, min(steps) + 1) if len(set(steps)) == 1 else (None, None)))
    axes.set_xlabel("step")


def metric_axis(axes: Any, values: Sequence[float], percent: bool) -> None:
    """A y axis for a metric: the range of its values, but not so small that noise looks like
    progress.
    """
    low, high = min(values), max(values)
    span = max(high - low, 0.04 if percent else 0.02 * max(abs(low), abs(high)) or 1.0)
    middle, half = (low + high) / 2, 0.55 * span
    if percent:
        from matplotlib.ticker import PercentFormatter

        # a marker at 0 or 100 % is not clipped
        middle = min(max(middle, 0.94 * half), max(1 - 0.94 * half, 0.5))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_ylim(middle - half, middle + half)


def log_where_wide(axes: Any, values: Sequence[float]) -> None:
    """A logarithmic y axis where the values span two decades or more, with the numbers in full."""
    if values and min(values) > 0 and max(values) >= 100 * min(values):
        from matplotlib.ticker import LogLocator

        axes.set_yscale("log")
        axes.yaxis.set_major_locator(
            LogLocator(subs=(1.0, 3.0) if max(values) < 1e4 * min(values) else (1.0,))
        )
        axes.yaxis.set_major_formatter(written_out)
        axes.yaxis.set_minor_formatter("")


def check_picture(path: Path, option: str) -> None:
    """Raise where a picture could not be written there.

    `SpecError` for an unknown format, else `ResourceError`.
    """
    ending = path.suffix.lower().removeprefix(".")
    if ending and ending not in FORMATS and (os.path.isfile(path) or not os.path.exists(path)):
        raise SpecError(
            f"{option}: {path}: pictures are {', '.join(FORMATS)}; let its name end in .png"
        )
    check_output(path, option)


def save_figure(figure: Any, path: Path, dpi: int, *, tight: bool = False) -> None:
    """Write a figure in the format of its file's ending, else as PNG; `tight` trims its margins.

    The same figure gives the same bytes: without a date, with names that are not random. PDF has
    its fonts inside, as outlines that are text. Raises `ResourceError`.
    """
    from matplotlib import rc_context
    from matplotlib.text import Text

    texts = figure.findobj(Text)
    others = dict.fromkeys(fonts_for(text.get_text() for text in texts).values())
    for text in texts:
        text.set_fontfamily([*text.get_fontfamily(), *others])
    ending = path.suffix.lower().removeprefix(".")
    dates = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}
    picture = io.BytesIO()
    with rc_context(
        {
            "pdf.fonttype": 42,
            "svg.hashsalt": "bigmodel",
            "image.composite_image": False,  # joining many images takes long
        }
    ):
        figure.savefig(
            picture,
            dpi=dpi,
            format=ending if ending in FORMATS else "png",
            bbox_inches="tight" if tight else None,
            metadata=dates.get(ending),
        )
    write_output(path, [picture.getvalue()])
