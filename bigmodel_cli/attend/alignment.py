"""Which words of a source each word of a target comes from, by cross-attention.

Of each layer there are two readings, which the literature knows: what a target token reads while it
is written, and what it reads once it is the input, one position later (Chen et al. 2020). Which
layer and which reading align is measured: each source word in turn is hidden from cross-attention,
and the reading is taken whose weights lie most where hiding costs the target's tokens probability.
Weights are those of |weight| x |v W_O| (Kobayashi et al. 2020), as shares, heads together: a single
head may fit the words that matter better, and misses more of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bigmodel_cli.attend.words import Word
from bigmodel_cli.console import columns_of, counted, cut, one_line, padded
from bigmodel_cli.lazy import Tensor, torch

WRITES, READS = "as words are written", "as words are read again"
SECOND = 0.5
"""Further source words are named from this part of the heaviest one's weight on."""
MOST_NAMED = 3
LITTLE = 0.1
"""Nats below which hiding a word costs next to nothing."""


@dataclass(frozen=True)
class Reading:
    """weights (T, S): how much of the source's tokens each target token reads in a layer, as
    shares, by all its heads; `when` is `WRITES` or `READS`.
    """

    layer: str
    when: str
    weights: Tensor


@dataclass(frozen=True)
class Alignment:
    """weights (Wt, Ws) are shares of what each target word reads on each source word.

    `layer` is the one whose reading it is. `effect` (Wt, Ws) is how many nats of
    log-probability a target word loses where a source word is hidden, NaN for special tokens; None
    where it was not measured. `agreement` is the share of all that is lost which the weights lie
    on. `rule` says in words how the reading was chosen.
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

    def pairs(self) -> list[dict[str, Any]]:
        """Each target word with the source words that it reads most, and what hiding them costs.

        Keys are "target", "source": [{"word", "weight", "nats" lost where measured}], and "needs":
        the word whose hiding costs most, where hiding any costs something.
        """
        found: list[dict[str, Any]] = []
        for number, word in enumerate(self.target):
            row, chosen = self.weights[number], self._named(number)
            sources = [{"word": self.source[n], "weight": round(float(row[n]), 4)} for n in chosen]
            pair: dict[str, Any] = {"target": word, "source": sources}
            if self.effect is not None:
                lost = self.effect[number].nan_to_num(0.0)
                for source, n in zip(sources, chosen, strict=True):
                    source["nats"] = round(float(lost[n]), 4)
                if float(lost.max()) >= LITTLE:
                    pair["needs"] = self.source[int(lost.argmax())]
            found.append(pair)
        return found

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        measured = self.agreement is not None
        return {
            "layer": self.layer,
            "reading": self.when,
            "rule": self.rule,
            "source": self.source,
            "target": self.target,
            "weights": [[round(v, 5) for v in row] for row in self.weights.tolist()],
            **({"agreement": round(self.agreement or 0.0, 4)} if measured else {}),
            "pairs": self.pairs(),
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
    best, highest = None, -float("inf")
    for reading in readings:
        if effect is None and reading.when != WRITES:
            continue
        columns = by_source(reading.weights, source)
        score = _sharpness(columns) if effect is None else agreement(columns, effect)
        if score > highest:
            best, highest = (reading, columns), score
    assert best is not None, "there is no cross-attention"
    reading, columns = best
    named = ([w.text for w in source], [w.text for w in target])
    real = [not w.special for w in source]
    if effect is None:
        weights = by_target(columns, target)
        rule = "the layer whose weights are sharpest"
        return Alignment(*named, weights, reading.layer, reading.when, rule, real)
    weights = by_target(columns, target, effect.nan_to_num(0.0).clamp(min=0).sum(1))
    lost = torch.stack([effect[w.first : w.stop].sum(0) for w in target])
    rule = "the reading that lies most on the words that matter when hidden"
    return Alignment(
        *named, weights, reading.layer, reading.when, rule, real, lost, agreement=highest
    )


def by_source(weights: Tensor, source: Sequence[Word]) -> Tensor:
    """(T, S) -> (T, Ws)   sums over the tokens of each source word."""
    return torch.stack([weights[:, w.first : w.stop].sum(1) for w in source], 1)


def by_target(columns: Tensor, target: Sequence[Word], lost: Tensor | None = None) -> Tensor:
    """(T, Ws) -> (Wt, Ws)   means over the tokens of each target word.

    Tokens count by what they lose in all, `lost` (T), where it is given: the blank between two
    words, and the last letter of a long one, need nothing of the source, and may read anything.
    """
    rows = []
    for word in target:
        own = columns[word.first : word.stop]
        counts = torch.ones(len(own)) if lost is None else lost[word.first : word.stop] + 1e-6
        rows.append((own * (counts / counts.sum()).to(own)[:, None]).sum(0))
    return torch.stack(rows)


def agreement(weights: Tensor, effect: Tensor) -> float:
    """Shares and nats lost, both (T, Ws) -> the mean share, by the nats that are lost."""
    lost = effect.nan_to_num(0.0).clamp(min=0).to(weights)
    return float((weights * lost).sum() / lost.sum().clamp(min=1e-12))


def _sharpness(weights: Tensor) -> float:
    """Minus the mean entropy of the rows."""
    return float(torch.special.xlogy(weights, weights).sum(1).mean())


def shown(table: Mapping[str, Any], width: int = 100, most: int = 12) -> list[str]:
    """Lines for a terminal of what `Alignment.to_json` gives: `target <- source weight, ...`.

    Where another word's hiding costs most, that is the word which it `needs`.
    Rows go down, in as many columns as fit and are needed for at most so many rows.
    """
    rows = []
    for pair in table["pairs"]:
        named = ", ".join(f"{one_line(s['word'])} {s['weight']:.2f}" for s in pair["source"])
        needs = pair.get("needs")
        if needs is not None and needs not in [s["word"] for s in pair["source"]]:
            named += f" (needs {one_line(needs)})"
        rows.append((one_line(pair["target"]), named or "-"))
    left = min(16, max((columns_of(word) for word, _ in rows), default=0))
    texts = [f"{padded(word, left, right=False)} <- {named}" for word, named in rows]
    wide = max(map(columns_of, texts), default=0)
    columns = max(1, min((width + 3) // (wide + 3), -(-len(texts) // max(1, most))))
    height = min(most, -(-len(texts) // columns))
    head = f"alignment {table['reading']} ({table['layer']})"
    heads = [head]
    if "agreement" in table:
        share = f"{100 * table['agreement']:.0f} %"
        heads = [f"{head}, {share} of it on words that are needed", f"{head}, {share} on needed"]
    lines = [next((one for one in heads if columns_of(one) <= width), cut(heads[-1], width))]
    for line in range(height):
        parts = [texts[n] for n in range(line, min(len(texts), columns * height), height)]
        row = "   ".join(padded(text, wide, right=False) for text in parts)
        lines.append(cut(row, width).rstrip())
    if (left_out := len(texts) - columns * height) > 0:
        lines.append(f"({counted(left_out, 'more word')}: --json)")
    return lines
