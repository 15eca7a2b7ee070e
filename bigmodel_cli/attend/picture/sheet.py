"""A sheet on which a picture is laid out by places in pixels, from the top left corner.

All of it is in one pair of axes that fills the figure, so that a map's cells are whole pixels, and
hundreds of maps cost no more than their pixels.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bigmodel_cli.attend.colours import RGB, hexadecimal, ink_on, table
from bigmodel_cli.lazy import Tensor
from bigmodel_cli.pictures import fonts_for, new_figure, save_figure

DPI = 300
POINT = DPI / 72
"""Pixels of a point, in which sizes of text are given."""
MARGIN = 30
VECTORS = (".pdf", ".svg")
INK, GREY, LINE = "#1a1a1a", "#5c5c5c", "#a8a8a8"
MONO, SANS = "DejaVu Sans Mono", "DejaVu Sans"

Pixels = NDArray[np.uint8]


class Sheet:
    """Text, images and lines at places in pixels; x to the right, y downwards."""

    def __init__(self) -> None:
        self.figure = new_figure((1, 1), layout=None)
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set_axis_off()
        self.axes.set_autoscale_on(False)
        self.insets: list[tuple[Any, tuple[float, float, float, float]]] = []
        # lines and boxes of one kind are drawn at once: hundreds of collections take long
        self._lines: dict[tuple[str, float], list[Any]] = {}
        self._boxes: dict[str, tuple[list[Any], list[str]]] = {}

    def text(
        self,
        x: float,
        y: float,
        text: str,
        size: float = 7,
        *,
        ha: str = "left",
        color: str = INK,
        family: str = SANS,
        weight: str = "normal",
        upwards: bool = False,
    ) -> None:
        """A text, by default from x to the right and with y in the middle of its height.

        `upwards` turns it, with x in the middle.
        """
        drop = 0.36 * size * POINT  # from the middle of a capital to its baseline
        style: dict[str, Any] = {
            "ha": ha,
            "va": "baseline",
            "color": color,
            "family": family,
            "weight": weight,
        }
        if upwards:
            style |= {"rotation": 90, "rotation_mode": "anchor"}
            x, y = x + drop, y - drop
        self.axes.text(x, y + drop, text, fontsize=size, **style)

    def image(self, x: float, y: float, pixels: Pixels, width: float, height: float) -> None:
        """Pixels (R, C, 4) as equal cells, without blending neighbours."""
        place = (x, x + width, y + height, y)
        options = {"interpolation": "none", "zorder": 2}
        self.axes.imshow(pixels, extent=place, aspect="auto", **options)

    def lines(self, paths: Sequence[Any], colour: str = LINE, width: float = 0.5) -> None:
        """Lines through points (N, 2), each of them."""
        self._lines.setdefault((colour, width), []).extend(paths)

    def boxes(
        self,
        places: Sequence[tuple[float, float, float, float]],
        colours: Sequence[str],
        edge: str = "none",
    ) -> None:
        """Filled rectangles (x, y, width, height), below lines and images."""
        corners, fills = self._boxes.setdefault(edge, ([], []))
        corners += [[(x, y), (x + w, y), (x + w, y + h), (x, y + h)] for x, y, w, h in places]
        fills += colours

    def chip(self, x: float, y: float, size: float, letter: str, colour: RGB) -> None:
        """A letter on a square of its class's colour; y is its top."""
        self.boxes([(x, y, size, size)], [hexadecimal(colour)])
        self.text(
            x + size / 2,
            y + 0.54 * size,
            letter,
            0.72 * size / POINT,
            ha="center",
            color=hexadecimal(ink_on(colour)),
            weight="bold",
        )

    def inset(self, x: float, y: float, width: float, height: float) -> Any:
        """Axes of matplotlib's own at a place, for lines and bars."""
        axes = self.figure.add_axes((0, 0, 1, 1))
        self.insets.append((axes, (x, y, width, height)))
        return axes

    def paragraph(
        self, x: float, y: float, text: str, width: float, size: float, color: str = INK
    ) -> float:
        """A text in lines of at most that width; returns where the next may begin."""
        for line in broken(text, width, size):
            self.text(x, y + 0.5 * size * POINT, line, size, color=color)
            y += 1.45 * size * POINT
        return y

    def save(self, path: Path, width: float, height: float) -> None:
        """Write the sheet, which is that large."""
        width, height = round(width), round(height)
        self._collect()
        self.figure.set_size_inches(width / DPI, height / DPI)
        self.axes.set_xlim(0, width)
        self.axes.set_ylim(height, 0)
        for axes, (x, y, wide, high) in self.insets:
            axes.set_position((x / width, 1 - (y + high) / height, wide / width, high / height))
        if path.suffix.lower() in VECTORS:
            self._enlarge()
        save_figure(self.figure, path, DPI)

    def _collect(self) -> None:
        """Put lines and boxes into the axes."""
        from matplotlib.collections import LineCollection, PolyCollection

        for edge, (corners, colours) in self._boxes.items():
            boxes = PolyCollection(corners, facecolors=colours, edgecolors=edge, linewidths=0.4)
            boxes.set_zorder(1)
            self.axes.add_collection(boxes, autolim=False)
        for (colour, size), paths in self._lines.items():
            lines = LineCollection(paths, colors=colour, linewidths=size, zorder=3)
            lines.set_capstyle("projecting")
            self.axes.add_collection(lines, autolim=False)

    def _enlarge(self) -> None:
        """Give images the sheet's own pixels: viewers blur small ones, and matplotlib takes long to
        bring hundreds to their size.
        """
        for image in self.axes.images:
            left, right, bottom, top = image.get_extent()
            cells = image.get_array()
            across, down = (
                max(1, round(abs(size) / count))
                for size, count in ((right - left, cells.shape[1]), (bottom - top, cells.shape[0]))
            )
            image.set_data(cells.repeat(down, 0).repeat(across, 1))


@functools.cache
def width_of(text: str, size: float, family: str = SANS, bold: bool = False) -> float:
    """Pixels that a text is wide, as it is drawn in PNG: there its letters are fitted to pixels."""
    from matplotlib.font_manager import FontProperties

    if not text:
        return 0.0
    shown = text.replace(r"\$", "$")
    others = [] if text.isascii() else dict.fromkeys(fonts_for([text]).values())
    weight = "bold" if bold else "normal"
    font = FontProperties(family=[family, *others], size=size, weight=weight)
    width, _, _ = _measure().get_text_width_height_descent(shown, font, False)
    return float(width)


@functools.cache
def _measure() -> Any:
    from matplotlib.backends import backend_agg

    made: Any = backend_agg.RendererAgg
    return made(1, 1, DPI)


def broken(text: str, width: float, size: float) -> list[str]:
    """A text in lines of at most that many pixels, broken at blanks; what is longer is cut."""
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if width_of(longer, size) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return [cut_to(line, width, size) for line in lines if line]


def cut_to(text: str, width: float, size: float, family: str = SANS, bold: bool = False) -> str:
    """A text of at most that many pixels, with a mark where it is cut."""
    if width_of(text, size, family, bold) <= width:
        return text
    low, high = 0, len(text)
    while high - low > 1:
        middle = (low + high) // 2
        fits = width_of(text[:middle] + "…", size, family, bold) <= width
        low, high = (middle, high) if fits else (low, middle)
    return text[:low].rstrip("\\ ") + "…"


def shortened(text: str, width: float, size: float, family: str = SANS, bold: bool = False) -> str:
    """A text of at most that many pixels, without its middle where it is longer: of names both the
    beginning and the end tell them apart.
    """
    if width_of(text, size, family, bold) <= width:
        return text
    low, high = 0, len(text)
    while high - low > 1:  # characters that are kept
        middle = (low + high) // 2
        fits = width_of(_ends(text, middle), size, family, bold) <= width
        low, high = (middle, high) if fits else (low, middle)
    return _ends(text, low)


def _ends(text: str, kept: int) -> str:
    first = kept - kept // 2
    return text[:first].rstrip("\\ ") + "…" + text[len(text) - kept // 2 :].lstrip("$ ")


@functools.cache
def pixels_of(name: str, dark: bool = False) -> Pixels:
    """A scale's colours (N, 4), opaque."""
    colours = np.round(255 * np.array(table(name, dark))).astype(np.uint8)
    return np.concatenate([colours, np.full((len(colours), 1), 255, np.uint8)], 1)


def array_of(values: Tensor) -> NDArray[np.float64]:
    """As numpy has it."""
    return np.asarray(values.detach().cpu().double().numpy())
