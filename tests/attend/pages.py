"""Pages with every view, of results made by hand whose texts are given."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from looks import made
from torch import Tensor

from bigmodel_cli.attend.apart import Apart, LayerApart
from bigmodel_cli.attend.course import ALL, Course
from bigmodel_cli.attend.details import Details
from bigmodel_cli.attend.heat import Heat, Trial
from bigmodel_cli.attend.look import Blocks, Look, Side
from bigmodel_cli.attend.page import PageOptions, page
from bigmodel_cli.attend.page_measured import page_of_apart, page_of_course, page_of_worth
from bigmodel_cli.attend.worth import Ablation, Head, Worth

TOKENS, LAYERS, HEADS = 12, 2, 3


def every_page(labels: Sequence[str]) -> dict[str, str]:
    """Name -> page, which together have every view; `labels` are the words, names and notes."""
    words = itertools.cycle(labels)
    look = named(words)
    heat = Heat(torch.rand(3, 8, 8), torch.rand(8, 8), next(words), 0.7, (4, 4), next(words), None)
    trial = Trial((0.5, 1.0), (0.6, 0.1), (0.5, 0.9), ((0.4, 0.5), (0.3, 0.6)))
    tables = {
        "lens": lens(words),
        "alignment": alignment(words),
        "times": times(words),
        "routing": [routed(words), routed(words)],
    }
    side = Side(next(words), [next(words) for _ in range(TOKENS)], None, 0, (3, 4))
    patches = [replace(layer, queries=side, keys=side) for layer in look.layers]
    return {
        "heads": page(replace(look, extra=tables), filled(look)),
        "tables alone": page(Look(next(words), [], extra=tables)),
        "image": page(Look(next(words), [], heat=replace(heat, trial=trial), notes=[next(words)])),
        "patches": page(replace(look, layers=patches), filled(look), PageOptions(view="image")),
        "worth": page_of_worth(ablation(words), look),
        "course": page_of_course(course(words, look)),
        "apart": page_of_apart(apart(words, look), look),
    }


def named(words: itertools.cycle[str]) -> Look:
    """A look whose every text is one of the words."""
    look = made(layers=LAYERS, heads=HEADS, tokens=TOKENS)
    side = Side(next(words), [next(words) for _ in range(TOKENS)])
    layers = [
        replace(layer, name=f"{number} {next(words)}", queries=side, keys=side)
        for number, layer in enumerate(look.layers)
    ]
    return Look(next(words), layers, answer=next(words), notes=[next(words), next(words)])


def filled(look: Look) -> Details:
    """All weights of it."""
    details = Details()
    for layer in look.layers:
        for head, matrix in enumerate(layer.blocks.most):
            details.add_matrix(layer.name, head, matrix, layer.causal)
    return details


def lens(words: itertools.cycle[str]) -> dict[str, object]:
    rows = [
        {
            "name": f"block {number}",
            "names": [[next(words) for _ in range(3)] for _ in range(4)],
            "probabilities": [[0.5, 0.2, 0.1]] * 4,
            "answer": [0.1] * 4,
            "rank": [2] * 4,
            "kl": [0.25] * 4,
        }
        for number in range(3)
    ]
    tokens = [next(words) for _ in range(4)]
    return {"of": "positions", "positions": [8, 9, 10, 11], "tokens": tokens, "layers": rows,
            "label": next(words), "remark": next(words)}  # fmt: skip


def alignment(words: itertools.cycle[str]) -> dict[str, object]:
    source, target = ([next(words) for _ in range(3)] for _ in range(2))
    pairs = [
        {"target": word, "source": [{"word": source[0], "weight": 0.6}], "needs": source[1]}
        for word in target
    ]
    weights = [[0.6, 0.3, 0.1]] * 3
    return {"layer": next(words), "reading": "as words are written", "rule": "a rule",
            "source": source, "target": target, "weights": weights, "agreement": 0.8,
            "pairs": pairs}  # fmt: skip


def times(words: itertools.cycle[str]) -> dict[str, object]:
    said = [{"word": next(words), "start": 0.2 * n, "end": 0.2 * n + 0.15} for n in range(5)]
    return {
        "rule": next(words),
        "seconds_per_position": 0.02,
        "heads": ["0.1", "1.2"],
        "words": said,
    }


def routed(words: itertools.cycle[str]) -> dict[str, object]:
    return {"layer": next(words), "experts": 4, "top_k": 2, "shared": 0, "tokens": TOKENS,
            "dropped": 0, "even": 0.25, "load": [0.5, 0.25, 0.25, 0.0],
            "weight": [0.5, 0.25, 0.25, 0.0], "balance": 0.75, "busiest": 2.0, "idle": 1,
            "chosen": [[0, 1]] * TOKENS, "weights": [[0.75, 0.25]] * TOKENS}  # fmt: skip


def ablation(words: itertools.cycle[str]) -> Ablation:
    heads = [
        Worth((Head(layer, head),), 0.3 - 0.1 * head, 0.02, 0.5, 0.4, "x", {"sink": 0.25})
        for layer in range(LAYERS)
        for head in range(HEADS)
    ]
    ranked = sorted(heads, key=lambda each: -each.worth)
    both = Worth((Head(0, 0), Head(0, 1)), 0.4, 0.01, 0.6, 0.3)
    answers = [next(words), next(words)]
    return Ablation(
        next(words), next(words), 1.5, 0.7, answers, 2, "its mean over positions", ranked, both
    )


def course(words: itertools.cycle[str], look: Look) -> Course:
    found = Course(next(words), next(words), notes=[next(words)])
    for step in (10, 20, 40):
        found.add(step, look.layers, 3 - step / 20, math.nan if step == 10 else 1.0)
    assert all(name in found.figures for name in ALL)
    found.last = look
    return found


def apart(words: itertools.cycle[str], look: Look) -> Apart:
    generator = torch.Generator().manual_seed(1)
    layers = []
    for number in range(LAYERS):
        values: Tensor = torch.rand(HEADS, TOKENS, TOKENS, generator=generator) - 0.5
        blocks = Blocks(values, values, 1, 1)
        bits = torch.rand(HEADS, generator=generator)
        partners = [1, 0, 2] if number else None
        layers.append(LayerApart(look.layers[number].name, bits, bits, partners, blocks))
    return Apart(next(words), next(words), layers, {next(words): torch.tensor(0.5)})
