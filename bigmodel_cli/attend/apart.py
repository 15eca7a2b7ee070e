"""What `--diff` found, as a table and as plain values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bigmodel_cli.attend.look import Blocks, within
from bigmodel_cli.console import columns_of, columns_of_stdout, counted, one_line, sentence, table
from bigmodel_cli.lazy import Tensor

MOST_COLUMNS = 100
SHOWN = 16
"""Rows of the table of heads, and half as many of the table of parts."""


@dataclass(frozen=True)
class LayerApart:
    """The heads (H) of a layer in two models.

    `bits` are Jensen-Shannon divergences of the weights, the mean over queries: 0 where they are
    the same, 1 where none is on the same key; None where weights are no shares (differential
    attention, mixers in its place). `outputs` are the changes of what heads give (weights times
    values), as parts of the mean of both lengths. `partners` are, for each head of the first, the
    head of the second that looks most like it; a head is its own partner unless others match
    clearly better. `blocks` are the second's weights less the first's, where they are wanted.
    """

    name: str
    bits: Tensor | None
    outputs: Tensor
    partners: list[int] | None
    blocks: Blocks | None = None

    @property
    def moved(self) -> dict[int, int]:
        """Head of the first -> where the second has it, of those that are not at their place."""
        return {i: j for i, j in enumerate(self.partners or []) if i != j}


@dataclass(frozen=True)
class Apart:
    """Two models: their layers that attend, and the change of what each part of a block gives."""

    first: str
    second: str
    layers: list[LayerApart]
    parts: dict[str, Tensor]
    checkpoints: tuple[str, str] = ("", "")
    """Their paths."""
    title: str = ""
    """What both looked at, in a few words."""

    @property
    def which(self) -> list[str]:
        """Which checkpoints of their runs the two are, where their names do not say it."""
        named = zip((self.first, self.second), map(within, self.checkpoints), strict=True)
        return [f"{name}: {which}" for name, which in named if which and which not in name]

    def ranked(self) -> list[tuple[int, int, float | None, float]]:
        """(layer, head, bits, change of the output) of each head, those furthest apart first: by
        bits, and where weights are no shares by half the change, which is 1 of opposite outputs.
        """
        rows = [
            (number, head, None if layer.bits is None else float(layer.bits[head]), float(change))
            for number, layer in enumerate(self.layers)
            for head, change in enumerate(layer.outputs)
        ]
        return sorted(rows, key=lambda row: (-row[3] / 2 if row[2] is None else -row[2], -row[3]))

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "first": self.first,
            "second": self.second,
            "checkpoints": list(self.checkpoints),
            "input": self.title,
            "layers": [
                {
                    "name": layer.name,
                    "bits": None if layer.bits is None else layer.bits.tolist(),
                    "outputs": layer.outputs.tolist(),
                    "partners": layer.partners,
                }
                for layer in self.layers
            ],
            "parts": {name: float(change) for name, change in self.parts.items()},
        }

    def heading(self) -> list[str]:
        """Which two, and on what: a line, or two where one is too long."""
        read = f"“{self.title}”" if self.title else "the same input"
        against = f"{one_line(self.second)} against {one_line(self.first)}"
        one = f"{against}, on {read}"
        room = columns_of_stdout() or MOST_COLUMNS
        return [one] if columns_of(one) <= room else [f"{against},", f"on {read}"]

    def to_text(self) -> str:
        """Tables of heads, and of parts of blocks, by how far they are apart; on a terminal within
        its width.
        """
        lines = [*map(sentence, self.heading()), ""]
        if ranked := self.ranked():
            rows = [
                [
                    f"{layer}.{head}",
                    self.layers[layer].name,
                    "" if bits is None else f"{bits:.4f}",
                    f"{change:.4f}",
                    _partner(layer, self.layers[layer], head),
                ]
                for layer, head, bits, change in ranked[:SHOWN]
            ]
            columns = ["head", "layer", "bits", "output", "is now"]
            used = [i for i in range(5) if i != 4 or any(row[4] for row in rows)]
            lines += [table([columns[i] for i in used], [[r[i] for i in used] for r in rows])]
            lines += _rest(len(ranked) - SHOWN, "head")
            said = [
                "",
                "bits: Jensen-Shannon divergence of a query's weights, mean over queries (0 the"
                " same, 1 apart)",
                "output: change of what the head, or the part, gives, in parts of its length",
            ]
            if any(layer.bits is None for layer in self.layers):
                said += [
                    "heads of signed weights have no bits; half the output's change ranks them"
                ]
            lines += map(sentence, said)
        if self.parts:
            parts = sorted(self.parts.items(), key=lambda pair: -float(pair[1]))
            few = SHOWN // 2
            lines += [*([""] if lines[-1] else []), table(["part", "output"], _named(parts[:few]))]
            lines += _rest(len(parts) - few, "part")
        return "\n".join(lines)


def _partner(number: int, layer: LayerApart, head: int) -> str:
    """Where the second model has what this head did."""
    return f"{number}.{layer.moved[head]}" if head in layer.moved else ""


def _named(parts: Sequence[tuple[str, Tensor]]) -> list[list[str]]:
    return [[name, f"{float(change):.4f}"] for name, change in parts]


def _rest(count: int, what: str) -> list[str]:
    more = counted(count, f"{what} that is", f"{what}s that are")
    return [f"and {more} less apart (all with --json)"] if count > 0 else []
