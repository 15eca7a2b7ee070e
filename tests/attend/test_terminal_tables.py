"""Tables of the logit lens and of experts fit any terminal, and say what is in them."""

from __future__ import annotations

import math
import random

import pytest
from test_terminal import ODD, STYLES, assert_fits

from bigmodel_cli.attend.terminal.tables import lens, routing


@pytest.mark.parametrize("kind", STYLES)
def test_they_fit_any_terminal(kind: str) -> None:
    generator = random.Random(1)
    style = STYLES[kind]
    for _ in range(12):
        size = (generator.randrange(1, 130), generator.randrange(1, 50))
        layers = [generator.choice(ODD)[:30] for _ in range(generator.choice([1, 5, 60]))]
        words = [generator.choice(ODD) for _ in range(generator.choice([1, 4, 90]))]
        tokens = [[generator.choice(ODD) for _ in words] for _ in layers]
        sure = [[generator.random() for _ in words] for _ in layers]
        assert_fits(lens(layers, words, tokens, sure, size, style), *size, style)
        loads = [[generator.random() for _ in range(len(words))] for _ in layers]
        assert_fits(routing(layers, loads, size, style), *size, style)


def test_the_lens_shows_each_layers_guess_in_its_place() -> None:
    tokens = [["a", "b"], [" cat", " sat"], ["\n", "mat"]]
    sure = [[0.0, 1], [0.5, 0.2], [1, 0]]
    text = lens(["0", "1", "end"], ["the", " dog"], tokens, sure, (60, 20), STYLES["ascii"])
    lines = text.split("\n")
    assert lines[0].startswith("logit lens")
    assert lines[1].split() == ["the", "dog"]
    assert [line.split() for line in lines[2:]] == [
        ["0", "a", "b", "@"],
        ["1", "cat", "+", "sat", ":"],
        ["end", "\\n", "@", "mat"],
    ]


def test_the_lens_says_what_it_leaves_out() -> None:
    many = [f"w{k}" for k in range(50)]
    layers = [str(k) for k in range(40)]
    text = lens(layers, many, [many] * 40, [[0.5] * 50] * 40, (100, 20), STYLES["plain"])
    assert "of 50 positions" in text.split("\n")[0]
    assert "15 of 40 layers" in text.split("\n")[0]
    assert text.split("\n")[1].split()[-1] == "w49"
    assert text.split("\n")[-1].split()[0] == "39"


def test_the_load_of_experts_is_measured_against_an_even_one() -> None:
    loads = [[10.0, 10.0, 10.0, 10.0], [40.0, 0.0, 0.0, 0.0], [20, 10, 10, 0]]
    lines = routing(["0", "1", "2"], loads, (80, 20), STYLES["ascii"]).split("\n")
    assert "1.00 to 1.00 x even, 4.0 of 4 used" in lines[1]
    assert "0.00 to 4.00 x even, 1.0 of 4 used" in lines[2]
    used = math.exp(-sum(p * math.log(p) for p in (0.5, 0.25, 0.25)))
    assert f"{used:.1f} of 4 used" in lines[3]
    assert "@@" in lines[2]
    wide = routing(["0"], [[1.0] * 500], (80, 20), STYLES["plain"])
    assert "the largest of" in wide
