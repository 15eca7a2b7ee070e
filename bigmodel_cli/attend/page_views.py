"""Further views of a page: what was found beside the weights of heads, each as a tab of its own.

A view is a list of sections (see page_sections.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bigmodel_cli.attend.heat import Trial
from bigmodel_cli.attend.look import Look
from bigmodel_cli.attend.page_sections import (
    Section,
    column,
    lines,
    panel,
    sentences,
    shades,
    table,
)
from bigmodel_cli.console import counted, one_line


@dataclass(frozen=True)
class View:
    """A tab. `of_heads` tells that the chosen head matters in it: its row or its line is marked."""

    name: str
    title: str
    sections: list[Section]
    of_heads: bool = False

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "name": self.name,
            "title": self.title,
            "sections": self.sections,
            "ofHeads": self.of_heads,
        }


def views_of(look: Look) -> list[View]:
    """The views of all that a look has beside its heads, in the order of `TABLES`."""
    there = [(make, look.extra[name]) for name, make in TABLES.items() if look.extra.get(name)]
    found = [make(given, look) for make, given in there]
    if look.heat is not None and look.heat.trial is not None:
        found.append(_trial(look.heat.trial))
    return found


def _lens(found: Mapping[str, Any], look: Look) -> View:
    layers = found["layers"]
    positions = found.get("tokens") or ["the label"]
    last = [
        [
            layer["name"],
            list(zip(layer["names"][-1], layer["probabilities"][-1], strict=True)),
            layer["answer"][-1],
            layer["rank"][-1],
            layer["kl"][-1],
        ]
        for layer in layers
    ]
    columns = [
        column("After", "text"),
        column("Likeliest", "pairs"),
        column("Answer", meaning="probability here of what the last layer would answer"),
        column("Rank", meaning="its place here; 1: the likeliest"),
        column("Distance", meaning="Kullback-Leibler divergence of the last layer's, in nats"),
    ]
    said = "what the model would answer from its stream (logit lens)"
    return View(
        "lens",
        "Lens",
        [
            sentences(str(found.get("remark", ""))),
            shades(
                f"By layer and position, {said}; the colour is its probability",
                "After",
                [layer["name"] for layer in layers],
                positions,
                [[own[0] for own in layer["probabilities"]] for layer in layers],
                [[own[0] for own in layer["names"]] for layer in layers],
            ),
            table(f"The likeliest answers {found.get('label', '')}", columns, last),
        ],
    )


def _experts(records: Sequence[Mapping[str, Any]], look: Look) -> View:
    columns = [
        column("Layer", "text"),
        column("Experts"),
        column("Chosen", meaning="experts that a token takes"),
        column("Balance", meaning="entropy of the load as a part of the largest; 1: even"),
        column("Busiest", meaning="the largest load over the even one"),
        column("Idle", meaning="experts that no token took"),
        column("Dropped", meaning="tokens that found no room"),
    ]
    names = ("layer", "experts", "top_k", "balance", "busiest", "idle", "dropped")
    rows = [[record[name] for name in names] for record in records]
    most = max(record["experts"] for record in records)
    loads = [[*record["load"], *[math.nan] * (most - record["experts"])] for record in records]
    layers = [str(record["layer"]) for record in records]
    return View(
        "experts",
        "Experts",
        [
            shades(
                "Each expert's load, its share of all choices; the colour is of the largest one",
                "Layer", layers, [str(n) for n in range(most)], loads, None,
                max(max(record["load"]) for record in records) or 1.0,
            ),
            table("How even the load is", columns, rows),
            _by_token(records, layers, look),
        ],
    )  # fmt: skip


def _by_token(records: Sequence[Mapping[str, Any]], layers: Sequence[str], look: Look) -> Section:
    """Which experts each token took, by its name where the look has a side of as many."""
    count = max(record["tokens"] for record in records)
    sides = (side for layer in look.layers for side in (layer.queries, layer.keys))
    labels = next((side.labels for side in sides if len(side) == count), None)
    rows: list[list[Any]] = []
    for token in range(count):
        cells: list[Any] = [token, None if labels is None else labels[token]]
        for record in records:
            there = token < record["tokens"]
            chosen, weights = (record[n][token] if there else [] for n in ("chosen", "weights"))
            cells.append([(str(e), w) for e, w in zip(chosen, weights, strict=True)])
        rows.append(cells)
    columns = [column("Position"), column("Token", "text")]
    columns += [column(layer, "pairs") for layer in layers]
    return table("The experts that each token took, and their weights", columns, rows)


def _alignment(found: Mapping[str, Any], look: Look) -> View:
    rows = [
        [
            pair["target"],
            [(source["word"], source["weight"]) for source in pair["source"]],
            pair.get("needs"),
        ]
        for pair in found["pairs"]
    ]
    columns = [
        column("Word", "text"),
        column("Comes from", "pairs"),
        column("Needs", "text", "the word whose hiding costs it most"),
    ]
    agreement = found.get("agreement")
    share = "" if agreement is None else f"; {100 * agreement:.0f} % lies on words it needs"
    return View(
        "alignment",
        "Alignment",
        [
            sentences(f"{found['layer']}, {found['reading']}: {found['rule']}{share}."),
            shades(
                "Target words down, source words across; the colour is the share that is read",
                "Word", found["target"], found["source"], found["weights"],
            ),
            table("Which words of the source each word comes from", columns, rows),
        ],
    )  # fmt: skip


def _times(found: Mapping[str, Any], look: Look) -> View:
    words = found["words"]
    if not words:
        return View("times", "Times", [sentences("no word was written of this recording")])
    heads = f": {', '.join(found['heads'])}" if found["heads"] else ""
    columns = [column("Word", "text"), column("From", meaning="seconds"),
               column("To", meaning="seconds"), column("Long", meaning="seconds")]  # fmt: skip
    rows = [[w["word"], w["start"], w["end"], w["end"] - w["start"]] for w in words]
    return View(
        "times",
        "Times",
        [
            sentences(
                f"By {found['rule']}{heads}; a position lasts"
                f" {found['seconds_per_position']:.3g} seconds."
            ),
            {
                "form": "timeline",
                "caption": "When each word is said, in seconds",
                "words": [[one_line(w["word"]), w["start"], w["end"]] for w in words],
            },
            table("Words and their seconds", columns, rows),
        ],
    )


def _trial(trial: Trial) -> View:
    by_share = [
        panel("Most important pixels replaced", [("kept", None, trial.deleted)]),
        panel("Most important pixels alone", [("kept", None, trial.inserted)]),
    ]
    for each in by_share:
        each["high"] = max(1.0, each["high"])
    deletion, insertion = trial.areas
    rows = [
        ["this map", deletion, insertion],
        *([f"random map {n}", *pair] for n, pair in enumerate(trial.at_random, 1)),
    ]
    columns = [column("Map", "text"), column("Deletion", meaning="lower is better"),
               column("Insertion", meaning="higher is better")]  # fmt: skip
    caption = "What the class keeps of its probability, by the share of the pixels"
    return View(
        "test",
        "Test",
        [
            sentences(trial.sentence[0].upper() + trial.sentence[1:] + "."),
            lines(caption, "Share of the pixels", trial.shares, by_share),
            table(
                f"Areas under the curves, beside {counted(len(trial.at_random), 'random map')}",
                columns,
                rows,
            ),
        ],
    )


FOLLOWED = 50
"""Positions that a rollout's table lists."""


def _rollout(found: Mapping[str, Any], look: Look) -> View:
    side, shares = look.layers[-1].keys, found["shares"]
    heaviest = sorted(range(len(shares)), key=lambda place: -shares[place])[:FOLLOWED]
    rows = [[place, side.labels[place], shares[place]] for place in heaviest if shares[place] > 0]
    columns = [column("Position"), column("Token", "text"), column("Share")]
    names = [[f"{100 * share:.1f} %" for share in shares]]
    return View(
        "rollout",
        "Rollout",
        [
            sentences(f"{found['remark'][0].upper()}{found['remark'][1:]}."),
            shades(
                f"What position {found['query']:,} reads through all layers; the darkest is the"
                " largest share",
                "",
                ["share"],
                list(side.labels),
                [shares],
                names,
                most=max(*shares, 1e-30),
            ),
            table("The positions of the largest shares", columns, rows),
        ],
    )


TABLES: dict[str, Callable[[Any, Look], View]] = {
    "lens": _lens,
    "rollout": _rollout,
    "alignment": _alignment,
    "times": _times,
    "routing": _experts,
}
"""Tables of a look, by the names that `Look.extra` gives them."""
