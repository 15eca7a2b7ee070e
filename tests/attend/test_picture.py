"""Pictures: their axes and limits, and that no character is lost silently."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.font_manager
import pytest
import torch

from bigmodel_cli import pictures
from bigmodel_cli.attend.heads import Heads, label
from bigmodel_cli.attend.heat import Heat
from bigmodel_cli.attend.picture import plain_maps
from bigmodel_cli.attend.picture.plain_maps import draw_heads, draw_heat, draw_rows
from bigmodel_cli.attend.runs import name_tokens
from bigmodel_cli.data.text.own_tokenizers import ByteTokenizer


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are drawn, in the place of files."""
    drawn: list[Any] = []
    monkeypatch.setattr(plain_maps, "save_figure", lambda figure, path, dpi: drawn.append(figure))
    return drawn


def heads(tokens: int, counts: tuple[int, ...]) -> Heads:
    weights = [torch.rand(count, tokens, tokens).tril().softmax(-1) for count in counts]
    return Heads(
        [f" t{i}" for i in range(tokens)], [f"layer {i}" for i in range(len(counts))], weights
    )


def maps(figure: Any) -> list[Any]:
    return [axes for axes in figure.axes if axes.images]


def labels(axis: Any) -> list[str]:
    return [text.get_text() for text in axis.get_ticklabels()]


@pytest.mark.parametrize("tokens", [1, 5, 30, 120])
def test_maps_of_all_heads_share_a_scale_and_show_as_many_token_labels_as_fit(
    tokens: int, figures: list[Any]
) -> None:
    found = heads(tokens, (3, 2))
    draw_heads(found, [0, 1], None, "run (decoder), attention in: a $ b", Path("x.png"))
    figure = figures[0]
    drawn = maps(figure)
    assert len(drawn) == 5
    peak = max(float(w.max()) for w in found.weights)
    assert all(axes.images[0].get_clim() == (0, pytest.approx(peak)) for axes in drawn)
    assert [axes.get_title() for axes in drawn] == ["head 0", "head 1", "head 2", "", ""]
    assert [axes.get_ylabel() for axes in drawn] == ["layer 0", "", "", "layer 1", ""]
    named = labels(drawn[0].yaxis)
    step = -(-tokens // len(named))
    assert named == [f"␣t{i}" for i in range(0, tokens, step)]
    assert labels(drawn[4].xaxis) == named
    assert labels(drawn[1].yaxis) == labels(drawn[1].xaxis) == []
    assert step == (3 if tokens == 120 else 1)
    assert ("one in 3 is named" in figure.get_supxlabel()) == (step == 3)
    assert figure.axes[-1].get_ylabel() == "attention weight"
    assert figure.get_suptitle() == r"run (decoder), attention in: a \$ b"


def test_the_map_of_one_head_labels_every_token(figures: list[Any]) -> None:
    draw_heads(heads(120, (2, 3)), [1], 2, "title", Path("x.png"))
    (axes,) = maps(figures[0])
    assert axes.get_title() == "head 2"
    assert len(labels(axes.xaxis)) == len(labels(axes.yaxis)) == 120


def test_weights_below_zero_are_marked(figures: list[Any]) -> None:
    found = heads(3, (1,))
    found.weights[0][0, 2, 0] = -0.2
    draw_heads(found, [0], None, "title", Path("x.png"))
    assert "below 0: orange" in figures[0].axes[-1].get_ylabel()


def test_grad_cam_is_drawn_over_the_image_and_spectrograms_with_low_bands_below(
    figures: list[Any],
) -> None:
    image, heat = torch.rand(3, 4, 6), torch.rand(4, 6)
    draw_heat(Heat(image, heat, "a", 0.5, (2, 3), "Grad-CAM", None), "run: a", Path("x.png"))
    left, right = maps(figures[0])
    assert [len(left.images), len(right.images)] == [1, 2]
    assert right.get_title() == "Grad-CAM, from 2 x 3"
    assert left.yaxis_inverted()
    sound = Heat(image[:1], None, "a", 0.5, (1, 1), "Grad-CAM", ("mel bands", "frames"))
    draw_heat(sound, "run: a", Path("x.png"))
    left, right = maps(figures[1])
    assert (left.get_ylabel(), left.get_xlabel()) == ("mel bands", "frames")
    assert not left.yaxis_inverted()
    assert "nothing to show" in right.get_title()
    draw_rows(
        {"image": torch.rand(2, 1, 3, 3), "seen": torch.rand(2, 1, 3, 3)},
        "run: rebuilt",
        Path("x.png"),
    )
    assert [axes.get_ylabel() for axes in maps(figures[2])] == ["image", "", "seen", ""]


def test_a_character_of_several_tokens_labels_each_of_them() -> None:
    tokenizer = ByteTokenizer()
    text = "a漢\n"
    assert name_tokens(tokenizer, [256, *tokenizer.encode(text), 256]) == [
        "<start>", "a", "漢·1/3", "漢·2/3", "漢·3/3", "\n", "<end>",
    ]  # fmt: skip
    assert name_tokens(tokenizer, [0xE6, 0xBC]) == ["�", "�"]
    assert [label(token, 6) for token in (" a\n", "", "漢字漢字", "\x1b", "abcdef")] == [
        "␣a\\n", "␣", "漢字…", "\\x1b", "abcdef",
    ]  # fmt: skip


def test_characters_without_a_font_are_drawn_as_code_points_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
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
    draw_heads(
        Heads(["漢", "$x$"], ["l"], [torch.rand(1, 2, 2)]), [0], None, "漢", tmp_path / "x.svg"
    )
    assert b"<svg" in (tmp_path / "x.svg").read_bytes()[:300]
