"""What `--over` found: statistics of heads at each step, as small lines and as plain values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from bigmodel_cli.attend.look import Layer, Look
from bigmodel_cli.console import columns_of_stdout, counted, one_line, sentence, table
from bigmodel_cli.lazy import Tensor, torch

FIGURES = ("induction", "previous", "sink", "entropy")
"""Statistics that are followed; others are in the values."""
ALL = (*FIGURES, "own", "distance", "duplicate", "column", "uniform")
LEAST = 0.1
"""The smallest jump of the best head's induction score that counts as its appearance."""
STEPS, HEADS = 15, 20
"""Most points of a small line, and most heads in the table."""
FEWEST = 4
"""Least points of a small line, where a terminal is narrow."""
BESIDE = len("  1.00 ")
"""Columns of the last value beside a small line, and of what is before that."""
BARS, PLAIN = "▁▂▃▄▅▆▇█", ".:-=+*#@"


@dataclass(frozen=True)
class Onset:
    """Between the checkpoints of steps `before` and `step` the best head's induction score made its
    largest jump, from `low` to `high`; `head` has it then.

    The loss on what repeats fell most between `fell_before` and `fell`; None where it is not known.
    `apart` is how many checkpoints lie between the two.
    """

    before: int
    step: int
    low: float
    high: float
    head: str
    fell_before: int | None
    fell: int | None
    apart: int | None


@dataclass
class Course:
    """A run on one input: at each of its `steps` the loss, the loss on what `repeats`, and the
    statistics of each layer's heads, by name (steps x layers, (H) each).
    """

    model: str
    title: str
    steps: list[int] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    repeats: list[float] = field(default_factory=list)
    layers: list[str] = field(default_factory=list)
    letters: list[str] = field(default_factory=list)  # of the last step
    figures: dict[str, list[list[Tensor]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    checkpoints: list[str] = field(default_factory=list)  # their paths, step by step
    last: Look | None = None
    """The look at the last step."""
    given: bool = True
    """Whether `title` is the beginning of an input, and not what was made in its place."""

    def named(self, look: Look) -> Look:
        """A look with what the run was looked at on: what is no one's words is no quotation."""
        title, part = (self.title, look.part) if self.given else ("", self.title)
        return replace(look, title=title, part=part)

    def add(self, step: int, layers: Sequence[Layer], loss: float, repeats: float) -> None:
        """A checkpoint's."""
        self.steps.append(step)
        self.loss.append(loss)
        self.repeats.append(repeats)
        self.layers = [layer.name for layer in layers]
        self.letters = [layer.letters for layer in layers]
        for name in ALL:
            found = [getattr(layer.statistics, name) for layer in layers]
            self.figures.setdefault(name, []).append(found)

    def heads(self) -> list[tuple[int, int]]:
        """(layer, head) of all."""
        first = self.figures[ALL[0]][0]
        return [(layer, head) for layer, own in enumerate(first) for head in range(len(own))]

    def of(self, name: str, layer: int, head: int) -> list[float]:
        """A statistic of a head at each step."""
        return [float(found[layer][head]) for found in self.figures[name]]

    def best(self, name: str) -> list[tuple[float, str]]:
        """The largest value of a statistic at each step, and the head that has it."""
        found = []
        for by_layer in self.figures[name]:
            values = [
                (float(value), f"{layer}.{head}")
                for layer, own in enumerate(by_layer)
                for head, value in enumerate(own)
                if not math.isnan(value)
            ]
            found.append(max(values, default=(math.nan, "")))
        return found

    def onset(self) -> Onset | None:
        """When induction appeared; None where no jump of the score is large enough (`LEAST`)."""
        scores = self.best("induction")
        jumps = [b[0] - a[0] for a, b in pairwise(scores)]
        place = _largest(jumps)
        if place is None or jumps[place] < LEAST:
            return None
        falls = [a - b for a, b in pairwise(self.repeats)]
        fall = _largest(falls)
        before, after = scores[place], scores[place + 1]
        return Onset(
            self.steps[place],
            self.steps[place + 1],
            before[0],
            after[0],
            after[1],
            None if fall is None else self.steps[fall],
            None if fall is None else self.steps[fall + 1],
            None if fall is None else abs(fall - place),
        )

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        onset = self.onset()
        return {
            "model": self.model,
            "input": self.title,
            "steps": self.steps,
            "checkpoints": self.checkpoints,
            "loss": self.loss,
            "loss_on_repeats": self.repeats,
            "induction_appears": None if onset is None else vars(onset),
            "layers": [
                {
                    "name": name,
                    **{
                        n: [at[number].tolist() for at in found]
                        for n, found in self.figures.items()
                    },
                }
                for number, name in enumerate(self.layers)
            ],
            "notes": self.notes,
        }

    def to_text(self, ascii_only: bool = False) -> str:
        """Small lines over the steps, of the heads that changed most; on a terminal within its
        width.
        """
        shown = self._shown()
        figures = [n for n in FIGURES if any(not math.isnan(v) for v, _ in self.best(n))]
        columns = ["head", *(["class"] if any(self.letters) else []), *figures]
        names = [f"{layer}.{head}" for layer, head in shown]
        others = [max(map(len, ["head", *names])), *map(len, columns[1 : -len(figures) or None])]
        rows, points = [], _points(sum(others) + 2 * len(others), len(figures))
        for layer, head in shown:
            cells = [f"{layer}.{head}"]
            if any(self.letters):
                cells.append(self.letters[layer][head])
            rows.append(
                [*cells, *(self._line(n, layer, head, points, ascii_only) for n in figures)]
            )
        more = len(self.heads()) - len(shown)
        rest = [f"and {counted(more, 'head')} that changed less (all with --json)"] if more else []
        losses = [
            f"{name}: {_spark(values, _range(values), STEPS, ascii_only)} {_shown(values[0])} to"
            f" {_shown(values[-1])}"
            for name, values in (("loss", self.loss), ("loss on repeats", self.repeats))
            if not all(map(math.isnan, values))
        ]
        above = [
            f"{one_line(self.model)}: {counted(len(self.steps), 'checkpoint')}, steps"
            f" {self.steps[0]:,} to {self.steps[-1]:,}",
            f"input: {one_line(self.title)[:90]}",
            "",
        ]
        below = [
            *rest,
            "",
            *losses,
            *filter(None, [self.said()]),
            "shares from 0 to 1, entropy in nats from 0 to its largest; the last value beside",
            *self.notes,
        ]
        lines = [*map(sentence, above), table(columns, rows), *map(sentence, below)]
        return "\n".join(lines)

    def _shown(self) -> list[tuple[int, int]]:
        """The heads whose followed shares changed most, in their order."""
        changes = []
        for layer, head in self.heads():
            spans = [_range(self.of(name, layer, head)) for name in FIGURES[:3]]
            changes.append((max(high - low for low, high in spans), layer, head))
        largest = sorted(changes, key=lambda row: -row[0])[:HEADS]
        return sorted((layer, head) for _, layer, head in largest)

    def _line(self, name: str, layer: int, head: int, points: int, ascii_only: bool) -> str:
        values = self.of(name, layer, head)
        if all(map(math.isnan, values)):
            return ""
        every = [float(x) for at in self.figures[name] for own in at for x in own]
        limits = (0.0, _range(every)[1]) if name == "entropy" else (0.0, 1.0)
        return f"{_spark(values, limits, points, ascii_only)} {_shown(values[-1])}"

    def said(self) -> str:
        """When induction appeared, in words, and by which rule; "" where nothing repeats."""
        onset = self.onset()
        if all(math.isnan(score) for score, _ in self.best("induction")):
            return ""
        if onset is None:
            return (
                "induction does not appear: between no two checkpoints does the best head's score"
                f" rise by {LEAST}"
            )
        fell = (
            ""
            if onset.fell is None
            else (
                f"; the loss on repeats falls most between {onset.fell_before:,} and {onset.fell:,}"
            )
        )
        return (
            f"induction appears between steps {onset.before:,} and {onset.step:,} (largest jump of"
            f" the best head's score: {onset.low:.2f} to {onset.high:.2f}, head {onset.head}){fell}"
        )


def _largest(values: Sequence[float]) -> int | None:
    """The place of the largest number; None where there is none."""
    known = [(value, -place) for place, value in enumerate(values) if not math.isnan(value)]
    return -max(known)[1] if known else None


def _range(values: Sequence[float]) -> tuple[float, float]:
    known = [value for value in values if math.isfinite(value)]
    return (min(known), max(known)) if known else (0.0, 0.0)


def _shown(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:z.2f}"


def _points(others: int, figures: int) -> int:
    """How many points a small line of each of so many `figures` has room for, beside others."""
    room = columns_of_stdout()
    if room is None or not figures:
        return STEPS
    # the first needs no gap, which is in `others`; an entropy may be 10
    return max(FEWEST, min(STEPS, (room - others + 2 - len("1")) // figures - BESIDE))


def _spark(
    values: Sequence[float], limits: tuple[float, float], points: int, ascii_only: bool
) -> str:
    """A character for each value, or for the largest of as many in a row, at most `points`."""
    bars, (low, high) = PLAIN if ascii_only else BARS, limits
    count = min(len(values), points)
    edges = torch.linspace(0, len(values), count + 1).round().long().tolist()
    line = ""
    for start, stop in pairwise(edges):
        known = [value for value in values[start:stop] if math.isfinite(value)]
        if not known:
            line += " "
            continue
        share = (max(known) - low) / (high - low) if high > low else 0.0
        line += bars[min(len(bars) - 1, max(0, int(share * len(bars))))]
    return line
