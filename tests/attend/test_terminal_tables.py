"""Tables of the logit lens and of experts: they fit, and say what is in them."""

from __future__ import annotations

import dataclasses
import random

import pytest
import torch
from looks import made
from test_terminal import ODD, STYLES, assert_fits

from bigmodel_cli.attend.routing import routing_table
from bigmodel_cli.attend.terminal import show
from bigmodel_cli.attend.terminal.style import rendered
from bigmodel_cli.attend.terminal.tables import lens
from bigmodel_cli.parts.watched import RoutingCall


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
        lines = lens(layers, words, tokens, sure, *size, style)
        assert_fits(rendered(lines, size[0], style), size[0], size[1] + 1, style)


def test_the_lens_shows_each_layers_guess_in_its_place() -> None:
    tokens = [["a", "b"], [" cat", " sat"], ["\n", "mat"]]
    sure = [[0.0, 1], [0.5, 0.2], [1, 0]]
    text = lens(["0", "1", "end"], ["the", " dog"], tokens, sure, 60, 20, STYLES["ascii"])
    lines = rendered(text, 60, STYLES["ascii"]).split("\n")
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
    table = lens(layers, many, [many] * 40, [[0.5] * 50] * 40, 100, 17, STYLES["plain"])
    text = rendered(table, 100, STYLES["plain"])
    assert "of 50 positions" in text.split("\n")[0]
    assert "15 of 40 layers" in text.split("\n")[0]
    assert text.split("\n")[1].split()[-1] == "w49"
    assert text.split("\n")[-1].split()[0] == "39"


def test_the_view_has_the_lens_and_the_experts_where_they_were_looked_at() -> None:
    look = made(3, 4, 6)
    row = {"names": [[" cat", "x"], [" mat", "y"]], "probabilities": [[0.9, 0.1], [0.4, 0.2]]}
    layers = [{"name": f"block {k}", **row} for k in range(2)]
    found = {"of": "positions", "positions": [4, 5], "tokens": ["on", "the"], "layers": layers}
    for kind, style in STYLES.items():
        for size in ((100, 40), (80, 24), (30, 12)):
            with_lens = dataclasses.replace(look, extra={"lens": found})
            text = show(with_lens, *size, style)
            assert_fits(text, *size, style)
            if size[1] > 12:
                assert "logit lens" in text, kind
                assert "block 1" in text
                assert "mat" in text
    load = torch.zeros(5, 1, dtype=torch.long)
    call = RoutingCall(load[None], torch.ones(1, 5, 1), 4)
    experts = dataclasses.replace(look, extra=routing_table([("blocks.0.ffn", call)]))
    text = show(experts, 100, 40, STYLES["ascii"])
    assert_fits(text, 100, 40, STYLES["ascii"])
    assert "3 idle" in text
