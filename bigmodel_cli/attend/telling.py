"""What is shown first of many heads: what the chosen query reads, and which heads tell most."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from bigmodel_cli.attend.look import Layer, Look, Side
from bigmodel_cli.console import counted
from bigmodel_cli.lazy import F, Tensor, torch

SINK = 0.3
"""A first key that takes more than this share is left out of shades and maps, and said."""
CANDIDATES = 6
"""Heads of each class whose maps are compared with one another: the best ones."""
RULE = "(1 - sink) x (1 - entropy) x difference"
SIDE = 24
"""Rows and columns of the maps that are compared."""


@dataclass(frozen=True)
class Reading:
    """What one query reads of the keys of one side, over the heads that are not sinks, or those
    that were chosen.

    `weights` (S) are shares that sum to 1 with `first`, the part of the first key, which is 0 in
    `weights` where `left_out`; NaN-free. `signed` ones (other mixers) are parts of the largest.
    `what` says how the mean is taken. `query` is a position of the side `asking`. Where it is
    `read`, the other way round, `keys` are the positions that read it, each by a share of its own.
    """

    keys: Side
    kind: str
    query: int
    weights: Tensor
    first: float
    left_out: bool
    signed: bool
    what: str
    asking: Side
    read: bool = False


@dataclass(frozen=True)
class Head:
    """A head by its place in `Look.layers`, and a score in 0 to 1."""

    layer: int
    head: int
    score: float


def readings(look: Look) -> list[Reading]:
    """What the query of the last layer reads, one for each side that its side looks at, and who
    reads the key, where one was asked for.
    """
    if not look.layers:
        return []
    asking = look.layers[-1].queries
    groups: dict[tuple[bool, str, int], list[Layer]] = {}
    for layer in look.layers:
        if layer.queries.name == asking.name and len(layer.queries) == len(asking):
            key = (layer.signed, layer.keys.name, len(layer.keys))
            groups.setdefault(key, []).append(layer)
    if any(not signed for signed, _, _ in groups):  # shares say more than signed parts
        groups = {key: layers for key, layers in groups.items() if not key[0]}
    asked = [layers for layers in groups.values() if layers[0].key is not None]
    read = [readers_of([turned(layer) for layer in layers]) for layers in asked]
    found = [*map(reading_of, groups.values()), *read]
    return [*found, *_followed(look)]


def _followed(look: Look) -> list[Reading]:
    """The shares that were followed through all layers, where that was asked for."""
    given, last = look.extra.get("rollout"), look.layers[-1]
    if given is None:
        return []
    shares = torch.tensor(given["shares"], dtype=torch.float64)
    what = "attention rollout, a heuristic, by all layers"
    return [
        Reading(last.keys, last.kind, given["query"], shares, 0.0, False, False, what, last.queries)
    ]


def reading_of(layers: Sequence[Layer]) -> Reading:
    """What their query reads, of layers that look from one side at one side, all signed or none."""
    signed = layers[0].signed
    by_norm = not signed and all(layer.moved is not None for layer in layers)
    total = torch.zeros(len(layers[0].keys), dtype=torch.float64)
    heads, used = 0, 0
    asked = any(layer.chosen for layer in layers)
    sinks_only = all(set(layer.letters) == {"s"} for layer in layers)
    for layer in layers:
        chosen = [h for h in range(layer.heads) if sinks_only or layer.letters[h : h + 1] != "s"]
        chosen = list(layer.chosen) if asked else chosen
        heads += layer.heads
        if not chosen:
            continue
        used += len(chosen)
        values = layer.moved if by_norm and layer.moved is not None else layer.read
        rows = values[chosen].detach().double().cpu().nan_to_num()
        if signed:
            rows = rows / rows.abs().amax(1, keepdim=True).clamp_min(1e-30)
        # norms of different layers are of different scales: each head counts alike over layers
        share = len(chosen) / rows.sum().abs().clamp_min(1e-30) if by_norm else 1.0
        total += rows.sum(0) * share
    scale = total.abs().max() if signed else total.sum()
    weights = total / scale.clamp_min(1e-30)
    first = float(weights[0]) if len(weights) else 0.0
    left_out = not signed and len(weights) > 1 and first > SINK
    if left_out:
        weights = weights.clone()
        weights[0] = 0
    if asked:
        which = counted(used, "chosen head")
    else:
        which = counted(used, "head") if used == heads else f"{used} of {heads} heads, no sinks"
    what = f"mean of {which}{', by |w| |v W_O|' if by_norm else ''}"
    return Reading(
        keys=layers[0].keys,
        kind=layers[0].kind,
        query=layers[-1].query,
        weights=weights,
        first=first,
        left_out=left_out,
        signed=signed,
        what=what,
        asking=layers[-1].queries,
    )


def turned(layer: Layer) -> Layer:
    """A layer whose query is the key that was asked for, and whose keys are those that read it."""
    assert layer.key is not None
    assert layer.readers is not None
    own = replace(layer, queries=layer.keys, keys=layer.queries, query=layer.key)
    return replace(own, read=layer.readers, moved=None, key=None, readers=None)


def readers_of(layers: Sequence[Layer]) -> Reading:
    """Who reads the key that was asked for, of such layers as for `reading_of`, `turned`."""
    rows = torch.cat([layer.read.detach().double().cpu().nan_to_num() for layer in layers])
    signed = layers[0].signed
    if signed:
        rows = rows / rows.abs().amax(1, keepdim=True).clamp_min(1e-30)
    mean = rows.mean(0)
    return Reading(
        keys=layers[0].keys,
        kind=layers[0].kind,
        query=layers[0].query,
        weights=mean / mean.abs().max().clamp_min(1e-30) if signed else mean,
        first=0.0,
        left_out=False,
        signed=signed,
        what=f"mean of {counted(len(rows), 'head')}",
        asking=layers[0].queries,
        read=True,
    )


def without_sink(layer: Layer, head: int, which: str = "most") -> Tensor:
    """The map of a head (R, C): the block maximum (`which` "mean": the mean), with a first column
    of blocks that is a sink as NaN.
    """
    blocks = (layer.blocks.most if which == "most" else layer.blocks.mean)[head]
    shown = blocks.detach().double().cpu().clone()
    if left_out(layer, head):
        shown[:, 0] = math.nan
    return shown


def left_out(layer: Layer, head: int) -> bool:
    """Whether the first key is a sink that a map of this head is shown without."""
    sink = float(layer.statistics.sink[head])
    return not layer.signed and sink > SINK and layer.blocks.most.shape[-1] > 1


def telling(look: Look, most: int = 4) -> list[Head]:
    """The heads that were chosen (`Layer.chosen`), or else those that tell most, best first: one
    after the other by `RULE`, sinks last.

    The entropy is the part of that of equal weights; the difference is the least one from those
    chosen before, 1 - the cosine of the maps without their sinks, scaled to `SIDE` x `SIDE`; heads
    that look at different sides differ by 1.
    """
    heads = [
        Head(place, head, _score(layer, head))
        for place, layer in enumerate(look.layers)
        for head in range(layer.heads)
    ]
    asked = [one for one in heads if one.head in look.layers[one.layer].chosen]
    if asked:
        return asked[:most]
    heads.sort(key=lambda one: (-one.score, one.layer, one.head))
    of_class: Counter[tuple[str, str]] = Counter()
    left = []
    for one in heads:
        layer = look.layers[one.layer]
        kind = (layer.kind, layer.letters[one.head : one.head + 1])
        of_class[kind] += 1
        if of_class[kind] <= CANDIDATES:
            left.append(one)
    maps = {(one.layer, one.head): _outline(look.layers[one.layer], one.head) for one in left}
    chosen: list[Head] = []
    while left and len(chosen) < most:
        best = max(
            left,
            key=lambda one: (
                not _is_sink(look, one),
                one.score * _unlike(look, one, chosen, maps),
            ),
        )
        chosen.append(best)
        left.remove(best)
    return chosen


def _is_sink(look: Look, one: Head) -> bool:
    return look.layers[one.layer].letters[one.head : one.head + 1] == "s"


def _score(layer: Layer, head: int) -> float:
    statistics = layer.statistics
    sink, uniform = (float(values[head]) for values in (statistics.sink, statistics.uniform))
    if layer.signed or math.isnan(uniform):
        shown = layer.blocks.mean[head].detach().double().abs().nan_to_num()
        parts = shown.flatten() / shown.sum().clamp_min(1e-30)
        entropy = float(-(parts * parts.clamp_min(1e-30).log()).sum())
        uniform = entropy / max(math.log(max(2, parts.numel())), 1e-9)
    return max(0.0, 1 - (0.0 if math.isnan(sink) else sink)) * min(1.0, max(0.0, 1 - uniform))


def _outline(layer: Layer, head: int) -> Tensor:
    shown = without_sink(layer, head, "mean").nan_to_num()
    size = min(SIDE, shown.shape[0]), min(SIDE, shown.shape[1])
    return F.adaptive_avg_pool2d(shown[None], size).flatten()


def _unlike(
    look: Look, one: Head, others: Sequence[Head], maps: dict[tuple[int, int], Tensor]
) -> float:
    """The least difference from those chosen."""
    own, least = maps[one.layer, one.head], 1.0
    for other in others:
        mine, theirs = look.layers[one.layer], look.layers[other.layer]
        there = maps[other.layer, other.head]
        sides = (mine.kind, mine.keys.name) == (theirs.kind, theirs.keys.name)
        if not sides or own.shape != there.shape:
            continue
        length = own.norm() * there.norm()
        alike = float(own @ there / length) if length > 0 else 1.0
        least = min(least, max(0.0, 1 - alike))
    return least


def pooled(matrix: Tensor, rows: int, columns: int) -> Tensor:
    """A matrix (R, C) of at most `rows` x `columns`: of each block the value that is farthest from
    zero; NaN where all are. Every value is in exactly one block.
    """
    return _pooled(_pooled(matrix, rows).T, columns).T


def _pooled(matrix: Tensor, rows: int) -> Tensor:
    size = len(matrix)
    if size <= rows:
        return matrix
    place = torch.arange(size) * rows // size
    index = place[:, None].expand_as(matrix)
    none = torch.full((rows, matrix.shape[1]), -math.inf, dtype=matrix.dtype)
    blank = matrix.isnan()
    most = none.scatter_reduce(0, index, matrix.masked_fill(blank, -math.inf), "amax")
    least = none.scatter_reduce(0, index, (-matrix).masked_fill(blank, -math.inf), "amax")
    far = torch.where(most >= least, most, -least)
    return far.masked_fill(most.isinf() & least.isinf(), math.nan)
