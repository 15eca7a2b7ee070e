"""A map over an image, beside the image itself."""

from __future__ import annotations

from bigmodel_cli.attend.heat import Heat
from bigmodel_cli.attend.terminal.maps import cells_of, half
from bigmodel_cli.attend.terminal.style import BOLD, RGB, Line, Span, Style, beside
from bigmodel_cli.attend.terminal.words import label, width_of
from bigmodel_cli.lazy import F, Tensor

CAUTION = (
    "A map shows where one layer's part of the answer lies, not why the model answers so; how far"
    " it is to be trusted is what the test says"
)
GAP = 2


def heat_map(heat: Heat, columns: int, lines: int, style: Style) -> list[Line]:
    """The image and the map of the same size; only the image where there is no map.

    Rows of a spectrogram go upwards.
    """
    pictures = [("image", heat.image)]
    if heat.heat is not None:
        pictures.insert(0, (heat.method, heat.heat[None]))
    wide, tall = (columns - GAP * (len(pictures) - 1)) // len(pictures), lines - 1
    size = _size(heat.image.shape[-2:], wide, tall, style)
    if size is None:
        return []
    blocks: list[list[Line]] = []
    together = _together([name for name, _ in pictures], wide, columns)
    for name, picture in pictures:
        whole = picture.detach().float().cpu()
        small = F.interpolate(whole[None], size=size, mode="area")[0]
        if heat.axes:
            small = small.flip(1)
        body = cells_of(small[0], style) if name != "image" else _image(small, style)
        caption: list[Line] = [[Span(label(name, wide, style.unicode), stress=BOLD)]]
        blocks.append([*([] if together else caption), *body])
    if together:
        above = [Span(label(together, columns, style.unicode), stress=BOLD)]
        return [above, *beside(blocks, GAP)]
    return beside(blocks, GAP)


def _together(names: list[str], wide: int, columns: int) -> str:
    """One caption for pictures beside one another, where one of their own is wider than it."""
    if all(width_of(name) <= wide for name in names):
        return ""
    said = ", ".join(names)
    return said if width_of(said) <= columns else said.removeprefix("attention ")


def _size(shape: tuple[int, ...], wide: int, lines: int, style: Style) -> tuple[int, int] | None:
    """Rows and columns of the picture that fits, with the image's own proportions."""
    rows, across = shape
    tall = lines * style.per_line
    aspect = 3 - style.per_line
    scale = min(wide / (across * aspect), tall / rows)
    size = int(rows * scale), int(across * aspect * scale)
    return size if min(size) >= 1 else None


def _image(picture: Tensor, style: Style) -> list[Line]:
    """An image (C, H, W) of 0 to 1 in its own colours, or as characters by its brightness."""
    if not style.colours:
        return cells_of(picture.mean(0), style)
    channels = picture[:3] if len(picture) >= 3 else picture[:1].expand(3, -1, -1)
    pixels = (255 * channels.clamp(0, 1)).round().int().permute(1, 2, 0).tolist()
    rows: list[list[RGB | None]] = [[(r, g, b) for r, g, b in row] for row in pixels]
    if style.per_line == 1:
        return [[Span(" ", None, colour) for colour in row] for row in rows]
    if len(rows) % 2:
        rows.append([None] * len(rows[0]))
    pairs = zip(rows[::2], rows[1::2], strict=True)
    return [[half(a, b) for a, b in zip(*pair, strict=True)] for pair in pairs]
