"""Nothing of a picture is outside of its page, and no text on another, at many sizes."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from looks import made
from PIL import Image

from bigmodel_cli.attend.alignment import Alignment
from bigmodel_cli.attend.apart import Apart, LayerApart
from bigmodel_cli.attend.heat import Heat, Trial
from bigmodel_cli.attend.look import Blocks, Look, Side
from bigmodel_cli.attend.picture import (
    PictureOptions,
    draw,
    draw_alignment,
    draw_apart,
    sheet,
)
from bigmodel_cli.pictures import fonts_for

LABELS = {
    "words": [],
    "long": ["internationalisation", "Donaudampfschifffahrt", "x" * 60],
    "without a font": ["漢字仮名交じり文章長い漢字"],
    "from the right": ["مرحبا بالعالم الجميل", "שלום"],
    "escapes": ["\x1b\x00\u202e" * 5],
}


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Draws, and gives what is outside of the page, or on something else."""
    kept: list[Any] = []
    monkeypatch.setattr(sheet, "save_figure", lambda drawn, path, dpi: kept.append(drawn))

    def found(draws: Callable[..., None], *arguments: Any) -> list[str]:
        draws(*arguments)
        drawn = kept.pop()
        drawn.set_dpi(sheet.DPI)
        width, height = drawn.get_size_inches() * sheet.DPI
        renderer = drawn.canvas.get_renderer()
        wrong, boxes = [], []
        for text in drawn.axes[0].texts:
            others = dict.fromkeys(fonts_for([text.get_text()]).values())  # as when it is saved
            text.set_fontfamily([*text.get_fontfamily(), *others])
            box = text.get_window_extent(renderer)
            boxes.append((text.get_text(), box.x0, box.y0, box.x1, box.y1))
        for name, left, low, right, high in boxes:
            if min(left, low) < 2 or right > width - 2 or high > height - 2:
                wrong.append(f"{name[:30]!r} is cut")
        for one, other in itertools.combinations(boxes, 2):
            across = min(one[3], other[3]) - max(one[1], other[1])
            down = min(one[4], other[4]) - max(one[2], other[2])
            if across > 2 and down > 4:
                wrong.append(f"{one[0][:30]!r} is on {other[0][:30]!r}")
        for image in drawn.axes[0].images:
            left, right, low, high = image.get_extent()
            if left < 0 or high < 0 or right > width or low > height:
                wrong.append("an image is cut")
        return wrong

    return found


def dressed(look: Look, names: list[str]) -> Look:
    """With other tokens, title and answer."""
    if not names:
        return look
    layers = []
    for layer in look.layers:
        tokens = [names[i % len(names)] for i in range(len(layer.queries))]
        side = replace(layer.queries, labels=tokens)
        layers.append(replace(layer, queries=side, keys=side))
    title = " ".join(names) * 6
    return replace(look, layers=layers, title=title, answer=title, model=f"run {title}")


@pytest.mark.parametrize("options", [{}, {"query": True}, {"heads": [(0, 0)]}, {"sink": False}])
@pytest.mark.parametrize(
    ("size", "names"),
    [((1, 1, 1), "words"), ((1, 16, 3), "long"), ((12, 1, 61), "from the right"),
     ((12, 16, 2), "escapes"), ((3, 5, 9), "without a font")],
)  # fmt: skip
def test_heads_and_queries(
    size: tuple[int, int, int], names: str, options: dict[str, Any], faults: Any
) -> None:
    look = dressed(made(*size), LABELS[names])
    assert not faults(draw, look, Path("x.png"), PictureOptions(**options))


def image_look(
    size: tuple[int, int], grid: tuple[int, int], name: str, heads: int = 0, registers: int = 0
) -> Look:
    """An image with a map, a test, and heads that look at patches."""
    rows, columns = grid
    labels = ["[class]", *(f"{i // columns},{i % columns}" for i in range(rows * columns))]
    labels += [f"[register {i + 1}]" for i in range(registers)]
    side = Side("patches", labels, first=1, grid=grid)
    look = made(3, max(1, heads), len(labels), causal=False)
    layers = [replace(layer, queries=side, keys=side) for layer in look.layers]
    trial = Trial((0.5, 1.0), (0.4, 0.1), (0.6, 1.0), ((0.5, 0.5), (0.6, 0.4)))
    method = "attention rollout (a heuristic)"
    heat = Heat(
        torch.rand(3, *size), torch.rand(size), name, 0.7, (14, 14), method, None, trial=trial
    )
    found = layers if heads else []
    return replace(look, layers=found, heat=heat, answer=name, title=name, model=name)


@pytest.mark.parametrize(
    ("size", "grid", "heads", "registers"),
    [((8, 8), (7, 7), 4, 2), ((8, 8), (1, 1), 1, 0), ((4, 60), (2, 40), 16, 4),
     ((60, 6), (9, 3), 12, 0), ((300, 2), (1, 1), 0, 0), ((2, 300), (1, 1), 0, 0)],
)  # fmt: skip
def test_images_and_their_patches(
    size: tuple[int, int], grid: tuple[int, int], heads: int, registers: int, faults: Any
) -> None:
    for name in ("cat", "international " * 12):
        assert not faults(draw, image_look(size, grid, name, heads, registers), Path("x.png"))


def test_spectrograms(faults: Any) -> None:
    look = image_look((40, 99), (1, 1), "yes")
    assert look.heat is not None
    hertz = [(2.0, "100 Hz"), (3.0, "200 Hz"), (12.0, "1,000 Hz"), (39.0, "20,000 Hz")]
    seconds = [(0.5, "0 s"), (50.5, "0.5 s"), (98.5, "0.98 s")]
    axes = ("mel bands, 20 to 20000 Hz", "frames of 10 ms")
    for ticks in (None, (hertz, seconds)):
        heat = replace(look.heat, image=torch.rand(1, 40, 99), axes=axes, ticks=ticks)
        for one in (heat, replace(heat, trial=None), replace(heat, heat=None, trial=None)):
            assert not faults(draw, replace(look, heat=one), Path("x.png"))


@pytest.mark.parametrize(("layers", "heads", "keys"), [(1, 1, 1), (2, 16, 7), (12, 3, 40)])
def test_differences_of_two_models(layers: int, heads: int, keys: int, faults: Any) -> None:
    maps = torch.rand(heads, keys, keys) - 0.5
    found = [
        LayerApart(
            f"l{i}",
            torch.rand(heads),
            torch.rand(heads),
            [(7 * j + 3) % heads for j in range(heads)],
            Blocks(maps, maps, 1, 1),
        )
        for i in range(layers)
    ]
    assert not faults(draw_apart, Apart("a longer name " * 20, "b", found, {}), Path("x.png"))


@pytest.mark.parametrize(
    ("rows", "columns", "names"), [(1, 1, "long"), (25, 2, "from the right"), (2, 25, "escapes")]
)
def test_alignments(rows: int, columns: int, names: str, faults: Any) -> None:
    target, source = (
        [LABELS[names][i % len(LABELS[names])] for i in range(n)] for n in (rows, columns)
    )
    weights = torch.rand(rows, columns).softmax(-1)
    one = Alignment(source, target, weights, "decoder.1.cross", "read", "a rule", [True] * columns)
    look = Look("mt " * 60, [], title=" ".join(source), answer=" ".join(target))
    assert not faults(draw_alignment, one, Path("x.png"), look)


@pytest.mark.parametrize("query", [False, True])
def test_the_edge_of_the_file_is_blank(query: bool, tmp_path: Path) -> None:
    """Without asking matplotlib: what is cut would have ink at the edge."""
    look = dressed(made(2, 3, 12), ["internationalisation " * 3, "W" * 40])
    draw(look, tmp_path / "x.png", PictureOptions(query=query))
    pixels = np.asarray(Image.open(tmp_path / "x.png").convert("L"))
    inner = pixels[12:-12, 12:-12]
    assert (inner < 100).any()
    for edge in (pixels[:12], pixels[-12:], pixels[:, :12], pixels[:, -12:]):
        assert (edge == 255).all()
