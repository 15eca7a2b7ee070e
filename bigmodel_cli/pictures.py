"""Pictures: figures without a display, names in them as they stand, and one way to write them."""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path
from typing import Any

from bigmodel_cli.console import one_line
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
    """A name that matplotlib draws as it stands: control characters as escapes, and no dollar that begins a formula."""
    return one_line(text).replace("$", r"\$")


def check_picture(path: Path, option: str) -> None:
    """Raise where a picture could not be written there: `SpecError` for a format that is not known, `ResourceError` else."""
    ending = path.suffix.lower().removeprefix(".")
    if ending and ending not in FORMATS and (os.path.isfile(path) or not os.path.exists(path)):
        raise SpecError(f"{option}: {path}: pictures are {', '.join(FORMATS)}; let its name end in .png")
    check_output(path, option)


def save_figure(figure: Any, path: Path, dpi: int, **options: Any) -> None:
    """Write a figure in the format that its file's name ends in, else as PNG. Raises `ResourceError`."""
    ending = path.suffix.lower().removeprefix(".")
    picture = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a box stands for a character that the font lacks
        figure.savefig(picture, dpi=dpi, format=ending if ending in FORMATS else "png", **options)
    write_output(path, [picture.getvalue()])
