"""Who reads a key, and pictures of alignments, words' times and the logit lens: made by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from looks import WORDS, layer_of, random_weights

from bigmodel_cli.attend.alignment import Alignment
from bigmodel_cli.attend.look import Look, Side, Told
from bigmodel_cli.attend.picture import PictureOptions, draw, sheet
from bigmodel_cli.attend.telling import readings
from bigmodel_cli.attend.terminal import Style, show
from bigmodel_cli.attend.times import Heard, Timed, Times
from bigmodel_cli.config import DatasetInfo, MelConfig
from bigmodel_cli.data import input_of

KEY = 2


@pytest.fixture
def figure(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Draws a look with options, and gives the figure that it would have written."""
    kept: list[Any] = []
    monkeypatch.setattr(sheet, "save_figure", lambda drawn, path, dpi: kept.append(drawn))

    def drawn(look: Look, **options: Any) -> Any:
        draw(look, Path("x.png"), PictureOptions(**options))
        return kept.pop()

    return drawn


def texts(drawn: Any) -> list[str]:
    return [text.get_text() for axes in drawn.axes for text in axes.texts]


def asked() -> tuple[Look, torch.Tensor]:
    """A look at which a key was asked for, and its weights (layers, H, T, T)."""
    generator, side = torch.Generator().manual_seed(3), Side("text", [*WORDS[:7]], [*range(7)])
    weights = [random_weights(2, 7, True, generator, first=n) for n in range(2)]
    layers = [layer_of(f"blocks.{n}.mixer", w, side, True) for n, w in enumerate(weights)]
    asked = [
        replace(x, key=KEY, readers=w[:, :, KEY]) for x, w in zip(layers, weights, strict=True)
    ]
    return Look("made", asked), torch.stack(weights)


def test_the_terminal_says_who_reads_a_key(figure: Callable[..., Any]) -> None:
    look, weights = asked()
    query, key = readings(look)
    assert (query.read, key.read, key.query) == (False, True, KEY)
    expected = [weights[:, :, row, KEY].double().mean() for row in range(7)]
    assert key.weights.tolist() == pytest.approx([float(mean) for mean in expected])
    shown = show(look, 100, 40, Style())
    assert "who reads 'sat' (position 2) (mean of 4 heads)" in shown
    assert "the last token '.' reads" in shown


def test_the_picture_of_a_key_has_a_row_for_each_head_and_begins_with_it(
    figure: Callable[..., Any],
) -> None:
    look, weights = asked()
    drawn = figure(look, key=True)
    assert "Who reads position 2 (␣sat) — text" in texts(drawn)
    assert not any("What position" in text for text in texts(drawn))
    rows = [image.get_array() for image in drawn.axes[0].images if image.get_array().shape[0] == 2]
    assert len(rows) == 2
    for layer, row in enumerate(rows):
        assert row.shape[1] == weights.shape[-1] - KEY
        assert (row[..., 3] == 255).all()
        order = row[0, :, :3].astype(int).sum(-1).argsort()  # the darkest is read by most
        own = weights[layer, 0, KEY:, KEY]
        assert float(own[order[0]]) == pytest.approx(float(own.max()), abs=0.02)
    both = texts(figure(look, key=True, query=True))
    assert {"Who reads position 2 (␣sat) — text", "What position 6 (.) reads — text"} <= set(both)


def test_what_is_told_is_drawn_unless_heads_are_chosen(figure: Callable[..., Any]) -> None:
    look, _ = asked()
    weights = torch.tensor([[0.8, 0.2], [0.3, 0.7]])
    alignment = Alignment(["ein", "Hund"], ["a", "dog"], weights, "c", "w", "r", [True, True])
    told = replace(look, told=Told(alignment))
    assert {"Hund", "dog", "source"} <= set(texts(figure(told, told=True)))
    assert "source" not in texts(figure(told))


def test_words_stand_above_their_seconds_and_bands_have_their_hertz(
    figure: Callable[..., Any],
) -> None:
    sound = MelConfig(rate=16000, window=400, hop=160, mels=40, low=20.0, high=8000.0)
    info = DatasetInfo(sound=sound, frame_width=40)
    ticks = input_of(info).ticks(200)
    assert ticks is not None
    words = [Timed("one", 0.1, 0.5), Timed("two", 0.9, 1.3)]
    heard = Heard(torch.rand(40, 200), 0.01, ticks)
    told = Told(times=Times(words, "made", 0.02, []), heard=heard)
    drawn = figure(replace(asked()[0], told=told), told=True)
    found = {text.get_text(): text for text in drawn.axes[0].texts}
    assert {"one", "two", "0 s", "0.5 s", "1,000 Hz"} <= found.keys()
    (spectrogram,) = [i for i in drawn.axes[0].images if i.get_array().shape[:2] == (40, 200)]
    left, right, bottom, top = spectrogram.get_extent()
    drop = 0.36 * 7 * 300 / 72
    for word in words:
        middle = left + (right - left) * (word.start + word.end) / 2 / 2.0
        assert found[word.text].get_position()[0] == pytest.approx(middle + drop, abs=1)
    mel = 2595 * np.log10(1 + np.array([20, 1000, 8000]) / 700)
    place = 41 * (mel[1] - mel[0]) / (mel[2] - mel[0]) - 0.5  # bands are evenly on the mel scale
    at = bottom - (bottom - top) * place / 40
    assert found["1,000 Hz"].get_position()[1] == pytest.approx(at + 0.36 * 6 * 300 / 72, abs=6)


def test_the_lens_is_a_table_of_layers_and_positions(figure: Callable[..., Any]) -> None:
    layers = [
        {"name": name, "names": [["cat", "dog"], ["sat", "ran"]], "probabilities": [p, [0.9, 0.1]]}
        for name, p in (("embedding", [0.6, 0.4]), ("block 0", [0.51, 0.49]))
    ]
    lens = {"of": "positions", "positions": [3, 4], "tokens": ["the", " cat"], "layers": layers}
    found = texts(figure(replace(asked()[0], extra={"lens": lens}), lens=True))
    assert {"the", "␣cat", "embedding", "block 0", "60 %", "51 %", "90 %"} <= set(found)
    assert found.count("sat") == 2
    assert "dog" not in found
    label = {"of": "labels", "positions": [0], "tokens": [], "layers": [
        {"name": "block 0", "names": [["cat", "dog"]], "probabilities": [[0.75, 0.25]]}
    ]}  # fmt: skip
    found = texts(figure(replace(asked()[0], extra={"lens": label}), lens=True))
    assert {"choice 1", "choice 2", "cat", "dog", "75 %", "25 %"} <= set(found)
