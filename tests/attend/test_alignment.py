"""Alignment of words: sums and means of shares, the choice of a reading, lines for a terminal."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
import torch
from looks import made as look_made
from test_terminal import ODD, STYLES, assert_fits

from bigmodel_cli.attend.alignment import (
    READS,
    WRITES,
    Alignment,
    Reading,
    agreement,
    aligned,
    by_source,
    by_target,
    shown,
)
from bigmodel_cli.attend.terminal import show
from bigmodel_cli.attend.words import Word

SOURCE = [Word("the", 0, 1), Word("cat", 1, 3), Word("<end>", 3, 4, special=True)]
TARGET = [Word("die", 0, 1), Word("Katze", 1, 3)]
RIGHT = torch.tensor([[0.7, 0.1, 0.1, 0.1], [0.1, 0.5, 0.2, 0.2], [0.0, 0.2, 0.4, 0.4]])
WRONG = torch.tensor([[0.0, 0.5, 0.5, 0.0], [0.9, 0.05, 0.05, 0.0], [1.0, 0.0, 0.0, 0.0]])
EFFECT = torch.tensor([[2.0, 0.1, math.nan], [0.0, 1.0, math.nan], [-0.3, 3.0, math.nan]])


def test_words_have_the_sum_of_keys_and_the_mean_of_queries() -> None:
    columns = by_source(RIGHT, SOURCE)
    assert by_target(columns, TARGET).tolist() == [
        pytest.approx([0.7, 0.2, 0.1]), pytest.approx([0.05, 0.65, 0.3]),
    ]  # fmt: skip
    weighted = by_target(columns, TARGET, torch.tensor([0.0, 1.0, 3.0]))
    assert weighted[1].tolist() == pytest.approx([0.025, 0.625, 0.35], abs=1e-5)
    assert weighted[0].tolist() == pytest.approx([0.7, 0.2, 0.1])  # a word that loses nothing


def test_the_reading_is_taken_that_lies_on_what_matters() -> None:
    readings = [
        Reading("decoder.0.cross", WRITES, WRONG),
        Reading("decoder.0.cross", READS, RIGHT),
        Reading("decoder.1.cross", WRITES, torch.full((3, 4), 0.25)),
    ]
    found = aligned(readings, SOURCE, TARGET, EFFECT)
    assert (found.layer, found.when) == ("decoder.0.cross", READS)
    # by hand: the gain of -0.3 is no loss
    share = (0.7 * 2 + 0.2 * 0.1 + 0.7 * 1 + 0.6 * 3) / (2 + 0.1 + 1 + 3)
    assert found.agreement == pytest.approx(share, abs=1e-6)
    assert agreement(by_source(RIGHT, SOURCE), EFFECT) == pytest.approx(share, abs=1e-6)
    katze = (0.7 * 1 + 0.6 * 3) / 4
    values = found.to_json()
    assert values["pairs"] == [
        {
            "target": "die",
            "source": [{"word": "the", "weight": 0.7, "nats": 2.0}],
            "needs": "the",
        },
        {
            "target": "Katze",
            "source": [{"word": "cat", "weight": pytest.approx(katze), "nats": 4.0}],
            "needs": "cat",
        },
    ]
    assert values["agreement"] == round(share, 4)
    head = "alignment as words are read again (decoder.0.cross)"
    assert shown(values)[0] == f"{head}, {100 * share:.0f} % of it on words that are needed"


def test_a_word_that_needs_another_says_so() -> None:
    found = aligned([Reading("a", WRITES, WRONG)], SOURCE, TARGET, EFFECT)
    said = shown(found.to_json())
    assert said[1] == "die   <- cat 1.00 (needs the)"
    none = aligned([Reading("a", WRITES, WRONG)], SOURCE, TARGET, EFFECT * 0.01)
    assert not any("needs" in pair for pair in none.pairs())  # hiding costs next to nothing


def test_without_a_measurement_the_sharpest_layer_is_taken() -> None:
    even = Reading("a", WRITES, torch.full((3, 4), 0.25))
    sharp = Reading("b", WRITES, RIGHT)
    sharper = Reading("b", READS, WRONG)
    found = aligned([even, sharp, sharper], SOURCE, TARGET, None)
    assert (found.layer, found.when, found.effect, found.agreement) == ("b", WRITES, None, None)
    assert "agreement" not in found.to_json()
    assert "nats" not in found.to_json()["pairs"][0]["source"][0]


def made(count: int) -> Alignment:
    weights = torch.eye(count)
    names = [f"word{n}" for n in range(count)]
    return Alignment(names, names, weights, "decoder.0.cross", WRITES, "", [True] * count)


@pytest.mark.parametrize(("count", "width"), [(1, 100), (12, 80), (13, 80), (40, 100), (90, 60)])
def test_the_table_keeps_to_its_lines_and_columns(count: int, width: int) -> None:
    lines = shown(made(count).to_json(), width, 12)
    assert len(lines) <= 14
    assert max(map(len, lines[1:])) <= width
    said = sum(line.count("<-") for line in lines)
    left = count - said
    assert (f"({left} more words: --json)" == lines[-1]) == (left > 0)
    assert lines[1].split("<-")[0].strip() == "word0"
    assert lines[1].split("<-")[1].split()[:2] == ["word0", "1.00"]


def test_hostile_words_are_shown_as_escapes() -> None:
    found = Alignment(
        ["\x1b]52;x", "b"], ["\u202eevil"], torch.tensor([[1.0, 0.0]]), "x", READS, "", [True] * 2
    )
    text = "\n".join(shown(found.to_json()))
    assert not {"\x1b", "\u202e"} & set(text)
    assert "\\x1b" in text


def test_a_word_that_reads_special_tokens_alone_has_no_source() -> None:
    weights = torch.tensor([[0.0, 0.0, 1.0]])
    found = Alignment(["a", "b", "<end>"], ["x"], weights, "y", WRITES, "", [True, True, False])
    assert found.pairs() == [{"target": "x", "source": []}]
    assert shown(found.to_json())[1] == "x <- -"


@pytest.mark.parametrize("kind", STYLES)
def test_the_terminal_shows_the_words_and_still_fits(kind: str) -> None:
    draw, style = random.Random(2), STYLES[kind]
    words = [draw.choice(ODD)[:20] for _ in range(40)]
    weights = torch.rand(40, 40, generator=torch.Generator().manual_seed(0)).softmax(-1)
    found = Alignment(words, words, weights, "decoder.0.cross", WRITES, "", [True] * 40)
    said = [{"word": word, "start": n / 2, "end": n / 2 + 0.4} for n, word in enumerate(words)]
    spoken = {"rule": "the most monotone heads", "words": said}
    for extra in ({"alignment": found.to_json()}, {"times": spoken}):
        look = replace(look_made(), extra=extra)
        for size in ((100, 40), (80, 24), (60, 30), (30, 12), (200, 60)):
            assert_fits(show(look, *size, style), *size, style)
        text = show(look, 100, 40, style)
        assert ("alignment as words" in text) == ("alignment" in extra)
        assert ("words and their seconds" in text) == ("times" in extra)
