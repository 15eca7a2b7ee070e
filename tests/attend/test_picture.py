"""Pictures of looks: colours at chosen pixels, blank halves, ticks, labels, hostile names."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.font_manager
import numpy as np
import pytest
import torch
from looks import made
from PIL import Image

from bigmodel_cli import pictures
from bigmodel_cli.attend import colours
from bigmodel_cli.attend.alignment import Alignment
from bigmodel_cli.attend.apart import Apart, LayerApart
from bigmodel_cli.attend.course import Course
from bigmodel_cli.attend.heat import Heat, Trial
from bigmodel_cli.attend.look import CAUTION, Blocks, Look, Side
from bigmodel_cli.attend.picture import (
    PictureOptions,
    draw,
    draw_alignment,
    draw_apart,
    draw_course,
    draw_rows,
    rows,
    sheet,
)
from bigmodel_cli.attend.picture.labels import label
from bigmodel_cli.attend.picture.maps import Scale, outline, pooled
from bigmodel_cli.attend.picture.sheet import shortened, width_of
from bigmodel_cli.attend.runs import name_tokens
from bigmodel_cli.data.text.own_tokenizers import ByteTokenizer
from bigmodel_cli.errors import SpecError

Drawn = Callable[..., Any]


@pytest.fixture
def figure(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    """Calls a function that draws, and gives the figure that it would have written."""
    kept: list[Any] = []
    for module in (sheet, rows):
        monkeypatch.setattr(module, "save_figure", lambda drawn, path, dpi: kept.append(drawn))

    def drawn(draws: Callable[..., None], *arguments: Any) -> Any:
        draws(*arguments)
        return kept.pop()

    return drawn


def texts(drawn: Any) -> list[str]:
    return [text.get_text() for axes in drawn.axes for text in axes.texts]


def said(drawn: Any) -> str:
    """The caption, as one line."""
    return " ".join(texts(drawn))


def maps(drawn: Any) -> list[Any]:
    """(array, extent) of the images of a sheet: maps, and bars of one row."""
    return [(image.get_array(), image.get_extent()) for image in drawn.axes[0].images]


def nearest(colour: np.ndarray, name: str = "sequential") -> float:
    """Where on a scale a colour is."""
    table = 255 * np.array(colours.table(name))
    return float(np.abs(table - colour[:3]).sum(1).argmin() / (len(table) - 1))


@pytest.mark.parametrize("tokens", [1, 2, 8, 60])
def test_cells_have_the_colours_of_their_weights_and_what_is_not_seen_is_blank(
    tokens: int, figure: Drawn
) -> None:
    look = made(1, 2, tokens)
    drawn = figure(draw, look, Path("x.png"))
    found = [one for one, _ in maps(drawn) if one.shape[:2] == (tokens, tokens)]
    assert len(found) >= 2
    for head in range(2):
        weights = look.layers[0].blocks.most[head].numpy()
        seen = np.tril(np.ones((tokens, tokens), bool))
        assert (found[head][..., 3] == np.where(seen, 255, 0)).all()
        for i, j in {(0, 0), (tokens - 1, 0), (tokens // 2, tokens // 3), (tokens - 1, tokens - 1)}:
            place = colours.level(float(weights[i, j]), tokens)
            assert nearest(found[head][i, j]) == pytest.approx(place, abs=3 / 255)
    labels = [
        text for text in texts(drawn) if text in {label(t, 14) for t in look.layers[0].keys.labels}
    ]
    assert len(labels) == 2 * 2 * tokens  # every token of both axes of both heads
    assert {"query: text", "key: text", "layer 0, head 1: previous"} <= set(texts(drawn))


def test_cells_are_whole_pixels_so_that_no_line_is_lost(figure: Drawn) -> None:
    drawn = figure(draw, made(3, 4, 97), Path("x.png"))
    square = [(one, extent) for one, extent in maps(drawn) if one.shape[0] > 1]
    assert len(square) == 12
    for one, (left, right, bottom, top) in square:
        wide, high = (right - left) / one.shape[1], (bottom - top) / one.shape[0]
        assert wide == high == int(wide) >= 2


def test_all_heads_have_the_letters_of_their_classes_and_ticks_are_at_round_weights(
    figure: Drawn,
) -> None:
    look = made(3, 5, 40)
    drawn = figure(draw, look, Path("x.png"))
    found = texts(drawn)
    letters = "".join(layer.letters for layer in look.layers)
    assert [text for text in found if text in colours.CLASSES] == [*letters, *"pslcu"]
    assert found.count("layer") == 1
    assert {"0", "1/T", "0.01", "0.1", "1"} <= set(found)
    assert any(text.startswith("attention weight; log scale, T = 40") for text in found)
    ticks = {name: value for value, name in Scale(40).ticks()}
    assert ticks == {"0": 0, "1": 1, "1/T": 1 / 40, "0.01": 0.01, "0.1": 0.1}
    assert CAUTION[:40] in said(drawn)
    assert "differ from what the kernel returned by at most 1.0e-07" in said(drawn)


def test_blocks_say_that_they_are_maxima_or_means(figure: Drawn) -> None:
    look = made(1, 6, 40)
    blocks = Blocks(torch.rand(6, 10, 10), torch.rand(6, 10, 10) / 9, 4, 4)
    look = replace(look, layers=[replace(look.layers[0], blocks=blocks)])
    drawn = figure(draw, look, Path("x.png"))
    assert "largest of each 4 × 4 block" in said(drawn)
    drawn = figure(draw, look, Path("x.png"), PictureOptions(measure="mean"))
    assert "mean of each 4 × 4 block" in said(drawn)
    assert nearest(maps(drawn)[0][0][3, 2]) == pytest.approx(
        colours.level(float(blocks.mean[0, 3, 2]), 40), abs=3 / 255
    )


def test_maps_finer_than_pixels_keep_their_largest_weights() -> None:
    values = np.full((7, 5), 0.01)
    values[6, 4] = 0.9
    values[0, 3:] = values[1, 3:] = np.nan
    found = pooled(values, 2, 2)
    assert found.shape == (4, 3)
    assert found[3, 2] == 0.9
    assert math.isnan(found[0, 2])
    assert found[0, 1] == 0.01  # half of it is not seen
    assert pooled(np.array([[0.2, -0.6]]), 1, 2)[0, 0] == -0.6
    assert pooled(values, 7, 5, "mean")[0, 0] == pytest.approx(np.nanmean(values))
    steps = outline(np.where(np.tril(np.ones((3, 3))) > 0, 1.0, np.nan))
    assert steps[0].tolist() == steps[-1].tolist() == [1, 0]
    assert {(3, 3), (3, 2), (2, 1), (0, 0), (0, 3)} <= set(map(tuple, steps.tolist()))
    assert len(outline(np.full((2, 2), np.nan))) == 0


def test_signed_weights_are_drawn_around_zero_and_not_as_shares(figure: Drawn) -> None:
    look = made(1, 2, 6)
    values = torch.linspace(-0.4, 0.2, 36).view(1, 6, 6).repeat(2, 1, 1)
    values[:, 2, 2] = 0
    layer = replace(look.layers[0], signed=True, blocks=Blocks(values, values, 1, 1), causal=False)
    drawn = figure(draw, replace(look, layers=[layer]), Path("x.png"))
    found = maps(drawn)[0][0]
    assert nearest(found[2, 2], "diverging") == pytest.approx(0.5, abs=0.005)
    assert nearest(found[0, 0], "diverging") == 0
    assert 0.5 < nearest(found[5, 5], "diverging") < 1  # 0.2 on a scale to 0.4
    assert {"-0.4", "0", "0.4"} <= set(texts(drawn))
    assert "signed weight" in said(drawn)
    assert "sink" not in " ".join(text for text in texts(drawn) if "%" in text)


def test_a_sink_is_left_out_with_its_share_as_a_number(figure: Drawn) -> None:
    look = made(2, 3, 12)
    drawn = figure(draw, look, Path("x.png"), PictureOptions(sink=False))
    share = float(look.layers[0].statistics.sink[0])
    assert f"sink {100 * share:.0f} %" in texts(drawn)
    assert (maps(drawn)[0][0][:, 0, 3] == 0).all()
    assert (maps(drawn)[1][0][:, 0, 3] == 255).all()


def cross(look: Look, queries: int, keys: int) -> Look:
    weights = torch.rand(4, queries, keys).softmax(-1)
    sides = (
        Side("target", [f"t{i}" for i in range(queries)]),
        Side("source", [f"s{i}" for i in range(keys)]),
    )
    layer = replace(
        look.layers[0], kind="cross", queries=sides[0], keys=sides[1], causal=False, number=3,
        blocks=Blocks(weights, weights, 1, 1), query=queries - 1, read=weights[:, -1], moved=None,
    )  # fmt: skip
    return replace(look, layers=[*look.layers, layer])


def test_cross_attention_is_a_rectangle_of_two_sides(figure: Drawn) -> None:
    look = cross(made(1, 4, 7), 30, 7)
    drawn = figure(draw, look, Path("x.png"))
    assert sum(one.shape[:2] == (30, 7) for one, _ in maps(drawn)) == 4
    assert {"text", "target reads source", "3"} <= set(texts(drawn))
    assert "target: 30 tokens" in said(drawn)
    drawn = figure(draw, look, Path("x.png"), PictureOptions(heads=[(1, 2)]))
    assert {"t29", "s6", "query: target", "key: source"} <= set(texts(drawn))
    assert any("layer 3, head 2" in text for text in texts(drawn))


def test_what_a_query_reads_is_a_row_for_each_head_and_a_shaded_text(figure: Drawn) -> None:
    look = cross(made(2, 4, 9), 5, 6)
    drawn = figure(draw, look, Path("x.png"), PictureOptions(query=True))
    shapes = [one.shape[:2] for one, _ in maps(drawn)]
    assert shapes.count((4, 9)) == 2
    assert shapes.count((4, 6)) == 1
    assert any(text.startswith("What position 8") for text in texts(drawn))
    assert any(text.startswith("What position 4 (t4) reads") for text in texts(drawn))
    assert any("heads" in text and "mean of" in text for text in texts(drawn))


@pytest.mark.parametrize(("tokens", "place"), [(11, 0), (11, 4), (40, 37), (4000, 2500)])
def test_a_row_ends_with_the_query_and_begins_with_the_key(
    tokens: int, place: int, figure: Drawn
) -> None:
    look = made(1, 2, 11)
    side = Side("text", [f"w{i}" for i in range(tokens)])
    shares = torch.rand(2, tokens).softmax(-1)
    layer = replace(
        look.layers[0], queries=side, keys=side, query=place, read=shares, moved=None, top=None,
        key=place, readers=shares, received=shares,
    )  # fmt: skip
    look = replace(look, layers=[layer])
    for options, first, last in (
        (PictureOptions(query=True), 0, place),
        (PictureOptions(key=True), place, tokens - 1),
    ):
        drawn = figure(draw, look, Path("x.png"), options)
        (found,) = [one for one, _ in maps(drawn) if len(one) == 2]
        by = math.ceil((last - first + 1) / 1900)
        assert found.shape[1] == math.ceil((last - first + 1) / by)
        assert (found[..., 3] == 255).all()
        below = [text for text in texts(drawn) if re.fullmatch(r"([\d,]+ )?w\d+", text)]
        places = {int(text.rpartition("w")[2]) for text in below}
        assert (min(places), first <= max(places) <= last) == (first, True)


def test_long_texts_have_every_nth_token_named_with_its_position(figure: Drawn) -> None:
    look = made(1, 1, 150)
    drawn = figure(draw, look, Path("x.png"))
    named = [text for text in texts(drawn) if re.match(r"\d+ \S", text)]
    assert 0 < len(named) < 2 * 80
    assert "Not every position is named" in said(drawn)
    drawn = figure(draw, made(1, 1, 500), Path("x.png"), PictureOptions(query=True))
    assert any("the last 400 of 500 tokens" in text for text in texts(drawn))


def patches(size: int = 3, registers: int = 2, query: int = 0) -> Look:
    count = 1 + size * size + registers
    weights = torch.rand(4, count, count).softmax(-1)
    names = ["class token", *(f"{i // size},{i % size}" for i in range(size * size))]
    side = Side(
        "image", [*names, *(f"register {i}" for i in range(registers))], first=1, grid=(size, size)
    )
    look = made(1, 4, count, causal=False)
    layer = replace(look.layers[0], queries=side, keys=side, query=query, read=weights[:, query])
    trial = Trial((0.5, 1.0), (0.4, 0.1), (0.6, 1.0), ((0.5, 0.5), (0.6, 0.4)))
    heat = Heat(
        torch.rand(3, 6, 6), torch.rand(6, 6), "cat", 0.7, (3, 3), "rollout", None, trial=trial
    )
    return replace(look, layers=[layer], heat=heat, answer="cat: 70.0 %")


def test_patches_are_drawn_as_an_image_with_class_token_and_registers_apart(figure: Drawn) -> None:
    look = patches()
    drawn = figure(draw, look, Path("x.png"))
    found = [one for one, _ in maps(drawn)]
    grids = [one for one in found if one.shape[:2] == (3, 3)]
    beside = [one for one in found if one.shape[:2] == (3, 1)]
    assert (len(grids), len(beside)) == (4, 4)
    read = look.layers[0].read[0]
    assert nearest(grids[0][0, 2]) == pytest.approx(colours.level(float(read[3]), 12), abs=3 / 255)
    assert nearest(beside[0][2, 0]) == pytest.approx(
        colours.level(float(read[11]), 12), abs=3 / 255
    )
    assert "What the class token reads" in texts(drawn)
    assert "class token, register 0, register 1" in said(drawn)
    assert {"what the network is given", "rollout from 3 × 3", "a test of the map"} <= set(
        texts(drawn)
    )
    drawn = figure(draw, patches(query=5), Path("x.png"))
    assert any("patch in row 1, column 1" in text for text in texts(drawn))


def test_a_map_over_an_image_and_over_a_spectrogram(figure: Drawn) -> None:
    look = replace(patches(), layers=[])
    drawn = figure(draw, look, Path("x.png"))
    image, over = (one for one, _ in maps(drawn)[:2])
    assert image.shape == over.shape == (6, 6, 4)
    heat = look.heat
    assert heat is not None
    assert (image[..., :3] == (255 * heat.image.permute(1, 2, 0)).round().numpy()).all()
    grey = (heat.image * torch.tensor([0.2126, 0.7152, 0.0722])[:, None, None]).sum(0)[2, 4]
    assert heat.heat is not None
    bright = np.array(colours.sequential(float(heat.heat[2, 4]), dark=True))
    assert np.abs(over[2, 4, :3] - (0.4 * 255 * float(grey) + 0.6 * bright)).max() < 3
    sound = replace(
        heat, image=torch.rand(1, 4, 5), heat=None, axes=("mel bands", "frames"), trial=None
    )
    drawn = figure(draw, replace(look, heat=sound), Path("x.png"))
    assert {"mel bands", "frames"} <= set(texts(drawn))
    ((image, _),) = maps(drawn)
    assert (image[0, :, 0] == (255 * sound.image[0, -1]).round().numpy()).all()  # low bands below
    with pytest.raises(SpecError, match="no attention to draw"):
        draw(replace(look, heat=None), Path("x.png"))


def test_a_run_is_drawn_as_lines_over_its_steps(figure: Drawn) -> None:
    layers = made(2, 3, 12).layers
    course = Course("run $1", "a text")
    for step, score in enumerate((0.0, 0.1, 0.8, 0.9)):
        grown = torch.tensor([score, 0.0, 0.0])
        found = [replace(x, statistics=replace(x.statistics, induction=grown)) for x in layers]
        course.add(10 * step, found, 3.0 - step, 3 - 3 * score)
    drawn = figure(draw_course, course, Path("x.png"))
    assert len(drawn.axes) == 1 + 6
    titles = {"loss in nats", "induction score", "share on the first key", "entropy in nats"}
    assert titles <= set(texts(drawn))
    induction = drawn.axes[2]
    assert len(induction.lines) == 6
    assert [text.get_text() for text in induction.get_legend().get_texts()][:2] == ["0.0", "1.0"]
    best = next(line for line in induction.lines if line.get_label() == "0.0")
    assert best.get_ydata().tolist() == pytest.approx([0, 0.1, 0.8, 0.9])
    assert "appears between steps 10 and 20" in said(drawn)
    assert "“a text”" in texts(drawn)
    assert 3.0 < drawn.axes[1].get_ylim()[1] < 3.3  # the line of the largest is whole
    course.given = False  # and what was made in the place of an input is in no quotes
    again = texts(figure(draw_course, course, Path("y.png")))
    assert "a text" in again
    assert "“a text”" not in again


def test_a_name_that_is_too_long_keeps_both_of_its_ends() -> None:
    name = "run-" + "a-very-long-name-of-" * 8 + "experiment-7"
    shown = shortened(name, 700, 9, bold=True)
    first, last = shown.split("…")
    assert name.startswith(first)
    assert name.endswith(last)
    assert len(last) > 8
    assert 650 < width_of(shown, 9, bold=True) <= 700
    assert shortened("run-7", 700, 9) == "run-7"


def test_differences_of_two_models(figure: Drawn) -> None:
    maps_of = torch.rand(3, 5, 5) - 0.5
    layer = LayerApart(
        "l",
        torch.tensor([0.0, 0.25, 0.9]),
        torch.rand(3),
        [0, 2, 1],
        Blocks(maps_of, maps_of, 2, 2),
    )
    apart = Apart("first", "second", [layer], {})
    drawn = figure(draw_apart, apart, Path("x.png"))
    assert {"second less first", "0.00", "0.25", "0.90", "→ 2", "→ 1"} <= set(texts(drawn))
    assert "largest of each 2 × 2 block" in said(drawn)
    drawn = figure(
        draw_apart, Apart("a", "b", [replace(layer, blocks=None, bits=None)], {}), Path("x")
    )
    assert not maps(drawn)


def test_an_alignment_has_its_links_framed(figure: Drawn) -> None:
    weights = torch.tensor([[0.9, 0.05, 0.05], [0.1, 0.5, 0.4]])
    one = Alignment(
        ["the", " cat", "."], ["die", " Katze"], weights, "cross 1", "read", "r", [True] * 3
    )
    assert one.links() == [(0, 0), (1, 1), (1, 2)]
    drawn = figure(draw_alignment, one, Path("x.png"), Look("mt", [], title="the cat."))
    assert {"die", "Katze", "the", "cat", "source", "target"} <= set(texts(drawn))
    assert maps(drawn)[0][0].shape == (2, 3, 4)
    frames = [c for c in drawn.axes[0].collections if len(c.get_segments()) == 3]
    assert len(frames) == 1


def test_rows_of_images(figure: Drawn) -> None:
    images = {"image": torch.rand(2, 1, 3, 3), "seen": torch.rand(2, 1, 3, 3)}
    drawn = figure(draw_rows, images, "run: rebuilt", Path("x.png"))
    named = [axes.get_ylabel() for axes in drawn.axes if axes.images]
    assert named == ["image", "", "seen", ""]


@pytest.mark.parametrize("ending", ["png", "pdf", "svg"])
def test_the_same_look_is_the_same_bytes(ending: str, tmp_path: Path) -> None:
    look = made(2, 3, 9)
    files = [tmp_path / f"{name}.{ending}" for name in ("a", "b")]
    for file in files:
        draw(look, file)
    one, other = (file.read_bytes() for file in files)
    assert one == other
    if ending == "pdf":
        assert b"/FontFile2" in one  # TrueType, whole text
        assert b"CreationDate" not in one
    elif ending == "png":
        image = Image.open(io.BytesIO(one))
        assert image.info["dpi"] == pytest.approx((300, 300), abs=0.1)
        corner = image.convert("RGB").getpixel((image.width - 3, image.height - 3))
        assert corner == (255, 255, 255)


def test_hostile_tokens_are_drawn_literally(figure: Drawn) -> None:
    names = ["$x^2$", "$", "\x1b[31m", "a\nb", "\u202eb", "\\frac", "x" * 99, "", "_{i}"]
    look = made(1, 1, len(names))
    side = replace(look.layers[0].keys, labels=names)
    layer = replace(look.layers[0], queries=side, keys=side)
    look = replace(look, layers=[layer], model="run $1 $2", title="$\\alpha$ \x07", answer="<b>")
    for options in (PictureOptions(), PictureOptions(query=True)):
        drawn = figure(draw, look, Path("x.png"), options)
        drawn.canvas.draw()  # no formula is read
        found = texts(drawn)
        assert r"\$x^2\$" in found
        assert not any("\x1b" in text or "\n" in text or "\u202e" in text for text in found)
        assert r"run \$1 \$2" in found


def test_a_character_of_several_tokens_labels_each_of_them() -> None:
    tokenizer = ByteTokenizer()
    assert name_tokens(tokenizer, [256, *tokenizer.encode("a漢\n"), 256]) == [
        "<start>", "a", "漢·1/3", "漢·2/3", "漢·3/3", "\n", "<end>",
    ]  # fmt: skip
    assert name_tokens(tokenizer, [0xE6, 0xBC]) == ["�", "�"]


def test_labels_are_visible_and_short() -> None:
    assert [label(token, 6) for token in (" a\n", "", "漢字漢字", "\x1b", "abcdef")] == [
        "␣a\\n", "␣", "漢字…", "\\x1b", "abcdef",
    ]  # fmt: skip


def test_characters_without_a_font_are_drawn_as_code_points_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """On a machine with matplotlib's own fonts alone."""
    own = Path(matplotlib.font_manager.findfont("DejaVu Sans")).parent
    listed = [
        font
        for font in matplotlib.font_manager.fontManager.ttflist
        if Path(font.fname).parent == own
    ]
    monkeypatch.setattr(matplotlib.font_manager.fontManager, "ttflist", listed)
    monkeypatch.setattr(matplotlib.font_manager, "findSystemFonts", list)
    assert pictures.plain_names(["é$مر", "漢a", "\x1b🙂"]) == [
        r"é\$مر",
        r"\u6f22a",
        r"\x1b\U0001f642",
    ]
    assert (
        "no installed font has 漢 🙂: the picture shows code points instead"
        in capfd.readouterr().err
    )
    assert pictures.plain("plain") == "plain"
    assert capfd.readouterr().err == ""
