"""Which words of a source each word of a target comes from, by cross-attention.

Of each layer there are two readings, which the literature knows: what a target token reads while it
is written, and what it reads once it is the input, one position later (Chen et al. 2020). Which
layer and which reading align is measured: each source word in turn is hidden from cross-attention,
and the reading is taken whose weights lie most where hiding costs the target's words probability.
Weights are those of |weight| x |v W_O| (Kobayashi et al. 2020), as shares, heads together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bigmodel_cli.attend.words import Word
from bigmodel_cli.console import columns_of, cut, one_line, padded
from bigmodel_cli.lazy import Tensor, torch

WRITES, READS = "while it is written", "once it is read"
SECOND = 0.5
"""Further source words are named from this part of the heaviest one's weight on."""
MOST_NAMED = 3


@dataclass(frozen=True)
class Reading:
    """weights (T, S): how much of the source's tokens each target token reads in a layer, as
    shares; `when` is `WRITES` or `READS`.
    """

    layer: str
    when: str
    weights: Tensor


@dataclass(frozen=True)
class Alignment:
    """weights (Wt, Ws) are shares of what each target word reads on each source word.

    `effect` (Wt, Ws) is how many nats of log-probability a target word loses where a source word is
    hidden, NaN for special tokens; None where it was not measured. `agreement` is the share of all
    that is lost which the weights lie on. `rule` says in words how the reading was chosen.
    """

    source: list[str]
    target: list[str]
    weights: Tensor
    layer: str
    when: str
    rule: str
    real: list[bool]  # (Ws) which source words are text
    effect: Tensor | None = None
    agreement: float | None = None

    def links(self) -> list[tuple[int, int]]:
        """(target word, source word) of all that are named, the heaviest first of each word."""
        return [(row, column) for row in range(len(self.target)) for column in self._named(row)]

    def _named(self, number: int) -> list[int]:
        """The source words that are named of a target word."""
        row = self.weights[number].masked_fill(~torch.tensor(self.real), 0.0)
        order = row.argsort(descending=True, stable=True)[:MOST_NAMED].tolist()
        return [n for n in order if row[n] > 0 and row[n] >= SECOND * row[order[0]]]

    def pairs(self) -> list[tuple[str, list[tuple[str, float, float | None]]]]:
        """Each target word with its source words, the heaviest first: (word, weight, nats lost)."""
        found = []
        for number, word in enumerate(self.target):
            row = self.weights[number]
            lost = None if self.effect is None else self.effect[number]
            sources = [
                (self.source[n], float(row[n]), None if lost is None else float(lost[n]))
                for n in self._named(number)
            ]
            found.append((word, sources))
        return found

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        pairs = [
            {
                "target": target,
                "source": [
                    {"word": w, "weight": round(share, 4)}
                    | ({} if lost is None else {"nats": round(lost, 4)})
                    for w, share, lost in sources
                ],
            }
            for target, sources in self.pairs()
        ]
        measured = self.agreement is not None and self.effect is not None
        return {
            "layer": self.layer,
            "reading": self.when,
            "rule": self.rule,
            "source": self.source,
            "target": self.target,
            "weights": [[round(v, 5) for v in row] for row in self.weights.tolist()],
            **({"agreement": round(self.agreement or 0.0, 4)} if measured else {}),
            "pairs": pairs,
        }


def aligned(
    readings: Sequence[Reading],
    source: Sequence[Word],
    target: Sequence[Word],
    effect: Tensor | None,
) -> Alignment:
    """The alignment by the best of the readings.

    `effect` (T, Ws) is what each target token loses in nats where a source word is hidden. Without
    it the sharpest layer is taken, as it reads while it writes.
    """
    sums = columns_summed(target, effect) if effect is not None else None
    best, highest = None, -float("inf")
    for reading in readings:
        weights = by_words(reading.weights, target, source)
        if sums is None and reading.when != WRITES:
            continue
        score = _sharpness(weights) if sums is None else agreement(weights, sums)
        if score > highest:
            best, highest = (reading, weights), score
    assert best is not None, "there is no cross-attention"
    reading, weights = best
    named = ([w.text for w in source], [w.text for w in target])
    measured = (None, None) if sums is None else (sums, highest)
    rule = (
        "the layer whose weights are sharpest"
        if sums is None
        else "the layer and reading whose weights lie most on the words that matter when hidden"
    )
    real = [not w.special for w in source]
    return Alignment(*named, weights, reading.layer, reading.when, rule, real, *measured)


def by_words(weights: Tensor, target: Sequence[Word], source: Sequence[Word]) -> Tensor:
    """Shares (T, S) of tokens -> (Wt, Ws): sums over a source word's tokens, means over a target
    word's.
    """
    columns = torch.stack([weights[:, w.first : w.stop].sum(1) for w in source], 1)
    return torch.stack([columns[w.first : w.stop].mean(0) for w in target])


def columns_summed(target: Sequence[Word], effect: Tensor) -> Tensor:
    """(T, Ws) -> (Wt, Ws)   nats that each target word loses: the sum over its tokens."""
    return torch.stack([effect[w.first : w.stop].sum(0) for w in target])


def agreement(weights: Tensor, effect: Tensor) -> float:
    """Shares and nats lost, both (Wt, Ws) -> the mean share, by the nats that are lost."""
    lost = effect.nan_to_num(0.0).clamp(min=0).to(weights)
    return float((weights * lost).sum() / lost.sum().clamp(min=1e-12))


def _sharpness(weights: Tensor) -> float:
    """Minus the mean entropy of the rows."""
    return float(torch.special.xlogy(weights, weights).sum(1).mean())


def shown(table: Mapping[str, Any], width: int = 100, most: int = 12) -> list[str]:
    """Lines for a terminal of what `Alignment.to_json` gives: `target <- source weight, ...`.

    Rows go down, in as many columns as fit and are needed for at most so many rows.
    """
    rows = []
    for pair in table["pairs"]:
        named = ", ".join(f"{one_line(s['word'])} {s['weight']:.2f}" for s in pair["source"])
        rows.append((one_line(pair["target"]), named or "-"))
    left = min(16, max((columns_of(word) for word, _ in rows), default=0))
    texts = [f"{padded(word, left, right=False)} <- {named}" for word, named in rows]
    wide = max(map(columns_of, texts), default=0)
    columns = max(1, min((width + 3) // (wide + 3), -(-len(texts) // max(1, most))))
    height = min(most, -(-len(texts) // columns))
    lines = [f"alignment: what each word reads {table['reading']}, in {table['layer']}"]
    for line in range(height):
        parts = [texts[n] for n in range(line, min(len(texts), columns * height), height)]
        row = "   ".join(padded(text, wide, right=False) for text in parts)
        lines.append(cut(row, width).rstrip())
    if (left_out := len(texts) - columns * height) > 0:
        lines.append(f"({left_out} more words: --json)")
    return lines
