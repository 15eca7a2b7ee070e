"""Looks made by hand, from dense weights and plain formulas, for the tests of what draws them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bigmodel_cli.attend.look import Blocks, Layer, Look, Side, Statistics

WORDS = ["the", " cat", " sat", " on", " a", " mat", ".", "\n", " and", " dog"]


def made(
    layers: int = 2, heads: int = 3, tokens: int = 20, seed: int = 0, causal: bool = True
) -> Look:
    """A look at random heads, some of which are sharp: a sink, a previous, a local one ..."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(len(WORDS), (tokens,), generator=generator).tolist()
    side = Side("text", [WORDS[i] for i in ids], ids)
    found = []
    for number in range(layers):
        weights = random_weights(heads, tokens, causal, generator, first=number * heads)
        found.append(layer_of(f"blocks.{number}.mixer", weights, side, causal))
    return Look("made", found, answer="' mat' 40 %", title="the cat sat")


def random_weights(
    heads: int, tokens: int, causal: bool, generator: torch.Generator, first: int = 0
) -> Tensor:
    """(H, T, T)   rows that sum to 1, each head of another kind."""
    scores = torch.randn(heads, tokens, tokens, generator=generator)
    place = torch.arange(tokens)
    back = place[:, None] - place[None, :]
    for head in range(heads):
        kind = (first + head) % 5
        if kind == 0:
            scores[head, :, 0] += 6
        elif kind == 1:
            scores[head] += 8.0 * (back == 1)
        elif kind == 2:
            scores[head] -= 0.7 * back.abs()
        elif kind == 3:
            scores[head, :, tokens // 3] += 6
        else:
            scores[head] *= 0.05
    if causal:
        scores = scores.masked_fill(back < 0, -math.inf)
    return scores.softmax(-1)


def layer_of(name: str, weights: Tensor, side: Side, causal: bool) -> Layer:
    """A layer with these weights (H, T, T); the letters are by the kinds of `random_weights`."""
    count, tokens = weights.shape[:2]
    seen = weights[0] > 0
    figures = Statistics(*_figures(weights, side))
    maps = weights.masked_fill(~seen, math.nan)
    top = weights.topk(min(3, tokens), -1)
    sizes = torch.linspace(0.5, 1.5, tokens).expand(count, -1)
    return Layer(
        name,
        "self",
        side,
        side,
        causal,
        figures,
        Blocks(maps, maps, 1, 1),
        tokens - 1,
        weights[:, -1],
        weights.sum(1) / seen.sum(0),
        weights[:, -1] * sizes,
        (top.indices, top.values),
        difference=1e-7,
        letters="".join("splcu"[h % 5] for h in range(count)),
    )


def _figures(weights: Tensor, side: Side) -> list[Tensor]:
    count, tokens = weights.shape[:2]
    place = torch.arange(tokens)
    back = (place[:, None] - place[None, :]).float()
    entropy = -torch.special.xlogy(weights, weights).sum(-1)
    seen = (weights > 0).sum(-1).float()
    ids = torch.tensor(side.ids)
    same = (ids[:, None] == ids[None, :]) & (back > 0)
    after = torch.cat((torch.zeros(tokens, 1, dtype=torch.bool), same[:, :-1]), 1) & (back > 0)
    uniform = (entropy / seen.log())[:, seen[0] > 1].mean(-1)
    return [
        entropy.mean(-1),
        weights[:, :, 0].mean(-1),
        weights.diagonal(0, 1, 2).mean(-1),
        weights.diagonal(-1, 1, 2).sum(-1) / max(1, tokens - 1),
        (weights * back.abs()).sum(-1).mean(-1),
        (weights * after).sum(-1)[:, after.any(-1)].mean(-1),
        (weights * same).sum(-1)[:, same.any(-1)].mean(-1),
        weights.mean(1)[:, 1:].amax(-1) if tokens > 1 else torch.full((count,), math.nan),
        uniform,
    ]
