"""What --ablate, --diff and --over found keeps to a terminal's width, and breaks at blanks.

`python tests/attend/test_measured_views.py` writes the golden files anew; look at them before they
are committed.
"""

from __future__ import annotations

import io
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from looks import made

from bigmodel_cli.attend.apart import Apart, LayerApart
from bigmodel_cli.attend.course import Course
from bigmodel_cli.attend.look import Layer
from bigmodel_cli.attend.worth import Ablation, Expert, Head, Worth

GOLDEN = Path(__file__).parent / "golden"
WIDTHS = (80, 100)


class Terminal(io.TextIOWrapper):
    """A stream that says it is one."""

    def isatty(self) -> bool:
        return True


def worth_of_answers() -> str:
    """Of heads, over several inputs with an answer each: the table with most columns."""
    figures = {"sink": 0.91, "previous": 0.02, "induction": 0.0, "own": 0.1, "entropy": 1.25}
    heads = [
        Worth(
            (Head(n // 4, n % 4),), 0.1 / (n + 1), 0.01, 0.2 - n / 40, 0.5, "spix"[n % 4], figures
        )
        for n in range(8)
    ]
    together = Worth(tuple(one.heads[0] for one in heads), 0.4, 0.1, 0.9, 0.2)
    text = Ablation(
        "reviews", "nats per sample", 0.4321, 0.71, ["", ""], 2, "zeros", heads, together
    )
    return text.to_text()


def worth_of_experts() -> str:
    """Of experts of a decoder, on one text that repeats."""
    experts = [
        Worth((Expert(0, n),), 0.2 - n / 10, None, 0.2 - n / 10, repeats=0.1, figures={"load": 0.5})
        for n in range(3)
    ]
    return Ablation(
        "dec", "nats per token", 1.2222, None, [""], 1, "zeros", experts, repeats=1.9476
    ).to_text()


def apart() -> str:
    """Two models whose names are long, one layer of which has signed weights."""
    layers = [
        LayerApart(
            f"encoder.layers.{n}.attention.self",
            torch.tensor([0.5, 0.1]) / (n + 1) if n else None,
            torch.tensor([0.25, 0.75]),
            [1, 0] if n == 1 else None,
        )
        for n in range(3)
    ]
    parts = {f"encoder.layers.{n}.ffn": torch.tensor(0.1 * n) for n in range(11)}
    title = "It was the best of times, it was the worst of times, it was the age of wisdom"
    return Apart("a run of the summer", "a run of the winter", layers, parts, title=title).to_text()


def course() -> str:
    """A run of forty checkpoints."""
    found = Course("run", "24 tokens: random ones, and the same again (seed 0)")
    layer = made(layers=1, heads=3).layers[0]
    for step in range(40):
        score = torch.tensor([0.02, 0.9 / (1 + math.exp(20 - step)), math.nan])
        changed = type(layer.statistics)(**{**vars(layer.statistics), "induction": score})
        values = {**vars(layer), "statistics": changed, "letters": "spx"}
        found.add(50 * (step + 1), [Layer(**values)], 5 - step / 20, 4 - step / 15)
    found.notes.append("a sentence on what was left out, which is longer than any line that " * 2)
    return found.to_text()


VIEWS: dict[str, Callable[[], str]] = {
    "worth": worth_of_answers,
    "experts": worth_of_experts,
    "apart": apart,
    "course": course,
}


def on_terminal(view: str, width: int, patch: pytest.MonkeyPatch) -> str:
    """The view as a terminal of that width has it."""
    with patch.context() as here:
        here.setenv("COLUMNS", str(width))
        here.setenv("TERM", "xterm-256color")
        here.setattr(sys, "stdout", Terminal(io.BytesIO(), encoding="utf-8"))
        return VIEWS[view]()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("view", VIEWS)
def test_they_are_those_that_were_looked_at(
    view: str, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    golden = (GOLDEN / f"{view}-{width}.txt").read_text(encoding="utf-8")
    assert on_terminal(view, width, monkeypatch) + "\n" == golden


@pytest.mark.parametrize("view", VIEWS)
def test_none_is_wider_than_its_terminal_and_no_word_is_cut(
    view: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    piped = {word for word in VIEWS[view]().split() if word.isalpha()}
    for width in (200, 130, 99, 80, 61, 50):
        text = on_terminal(view, width, monkeypatch)
        assert max(map(len, text.splitlines())) <= width
        missing = piped - set(text.split())
        assert not missing - {"own", "entropy", "induction", "previous", "sink"}
        for word in missing:  # a column that has no room
            assert word in text.partition("no room for ")[2]


def test_piped_they_have_a_line_for_a_sentence() -> None:
    assert "own  entropy" in worth_of_answers()
    assert "parts of its length\n" in apart()
    assert "head 0.1)" in next(line for line in course().splitlines() if "appears" in line)


if __name__ == "__main__":
    os.environ["TERM"] = "xterm-256color"
    for name in VIEWS:
        for columns in WIDTHS:
            with pytest.MonkeyPatch.context() as changed:
                shown = on_terminal(name, columns, changed)
            (GOLDEN / f"{name}-{columns}.txt").write_text(shown + "\n", encoding="utf-8")
