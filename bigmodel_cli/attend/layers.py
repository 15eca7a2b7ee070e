"""Layers of a look, made while the model runs: one call of attention at a time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from bigmodel_cli.attend.capture import watch, watch_mixing
from bigmodel_cli.attend.classes import letters
from bigmodel_cli.attend.look import Layer, Side
from bigmodel_cli.attend.mixing import Mixed
from bigmodel_cli.attend.routing import routing_table, watch_routing
from bigmodel_cli.attend.statistics import Pass
from bigmodel_cli.attend.stream import Stream
from bigmodel_cli.attend.sums import Sums
from bigmodel_cli.attend.tiles import ROWS, Tiled, spans
from bigmodel_cli.device import full_precision
from bigmodel_cli.errors import SpecError
from bigmodel_cli.lazy import Module, Tensor, torch
from bigmodel_cli.parts.contract import Attends
from bigmodel_cli.parts.mixing import MixingCall
from bigmodel_cli.parts.watched import AttentionCall, Called

Sides = Callable[[str, Called], tuple[Side, Side]]
"""The name of a part and its call -> what its queries and keys are."""
MOST_WEIGHTS = 1 << 28
"""Most weights of a layer that are kept: 1 GiB."""
VALUES = 4096
"""Values whose lengths are computed at once."""


@dataclass(frozen=True)
class Wanted:
    """What is asked for.

    `layers` are numbers of those that attend, in the order of the forward pass (all when None);
    `heads` are chosen ones (layer, head), whose tensors are `kept`. `query` and `key` are positions
    (from the end where negative), `top` the number of heaviest keys kept of each query, `rows` the
    number of queries that are drawn with `seed`, `resolution` the most blocks to a map's side.
    With `lens` the residual stream is read after each block (see lens.py), with `rollout` shares
    are followed through all layers (see rollout.py). With `dense` all weights of the chosen heads
    are kept, or of all heads where none is chosen.
    Where none is chosen, heads of at most `whole` weights have their tensors `kept`.
    """

    layers: Collection[int] | None = None
    heads: Collection[tuple[int, int]] = ()
    query: int = -1
    key: int | None = None
    top: int = 0
    rows: int | None = None
    lens: bool = False
    rollout: bool = False
    seed: int = 0
    resolution: int = 128
    dense: bool = False
    whole: int = 0

    def has(self, layer: int) -> bool:
        """Whether a layer is looked at: chosen itself, or one of its heads."""
        if self.layers is None:
            return not self.heads or any(layer == own for own, _ in self.heads)
        return layer in self.layers

    def of(self, layer: int) -> list[int]:
        """The heads of a layer that are chosen."""
        return [head for own, head in self.heads if own == layer]


@dataclass
class Found:
    """What a run has shown: layers with the sums behind their figures; how many calls there were.

    `output` is what the model returned, and `extra` tables of parts that do not attend. `stack` are
    the calls of self-attention, chosen or not, where they are followed through.
    """

    layers: list[tuple[Layer, Sums]] = field(default_factory=list)
    calls: list[tuple[str, int]] = field(default_factory=list)  # names, and how many heads
    output: Any = None
    extra: dict[str, Any] = field(default_factory=dict)
    stack: list[Stream] = field(default_factory=list)

    def join(self, other: Found) -> Found:
        """`other`, the next window of a text, with the figures of both."""
        joined = []
        for (one, before), (layer, sums) in zip(self.layers, other.layers, strict=True):
            sums.join(before)
            figures = sums.statistics(layer.heads)
            named = letters(figures, len(layer.queries), len(layer.keys), layer.causal)
            worst = max(one.difference, layer.difference)
            layer = replace(layer, statistics=figures, letters=named, difference=worst)
            joined.append((layer, sums))
        return Found(joined, other.calls, other.output, other.extra, other.stack)


def found_in(model: Module, run: Callable[[], Any], sides: Sides, wanted: Wanted) -> Found:
    """Run a model of a batch of one and look at its attention, and at mixers in its place."""
    found, times = Found(), dict[str, int]()

    def begin(name: str, heads: int) -> tuple[str, int, bool]:
        """Title and number of a call, and whether it is looked at."""
        times[name] = times.get(name, 0) + 1
        title = name if times[name] == 1 else f"{name} ({times[name]})"
        found.calls.append((title, heads))
        return title, len(found.calls) - 1, wanted.has(len(found.calls) - 1)

    def each(name: str, part: Attends, call: AttentionCall) -> None:
        heads = call.q.shape[1] // (1 if call.minus is None else 2)
        title, number, looked = begin(name, heads)
        if wanted.rollout and not call.memory:
            found.stack.append(Stream(call))
        if looked:
            with torch.no_grad(), full_precision(call.q.device):
                found.layers.append(layer_of(title, number, part, call, sides(name, call), wanted))

    def mixed(name: str, call: MixingCall) -> None:
        title, number, looked = begin(name, call.output.shape[1])
        if looked:
            with torch.no_grad(), full_precision(call.output.device):
                found.layers.append(mixing_layer(title, number, call, sides(name, call), wanted))

    with watch(model, each), watch_mixing(model, mixed), watch_routing(model) as routed:
        found.output = run()
    found.extra = routing_table(routed)
    return found


def mixing_layer(
    name: str, number: int, call: MixingCall, sides: tuple[Side, Side], wanted: Wanted
) -> tuple[Layer, Sums]:
    """What the first row of a call shows, which had no state of earlier calls."""
    assert not call.carried, "the matrix knows nothing of the positions of earlier calls"
    matrix = call.matrix()
    mixed, chosen, weights = Mixed(matrix), wanted.of(number), None
    _check_heads(number, chosen, mixed.heads)
    layer, sums = tiled_layer(name, "mixing", mixed, sides, wanted)
    if wanted.dense:
        heads = chosen or list(range(mixed.heads))
        weights = torch.tensor(heads), weights_of(mixed, heads)
    own = matrix.difference()
    difference = layer.difference if own is None else own
    return replace(layer, difference=difference, number=number, weights=weights), sums


def _check_heads(number: int, chosen: Sequence[int], heads: int) -> None:
    """Raise `SpecError` for a head that a layer does not have."""
    if chosen and max(chosen) >= heads:
        raise SpecError(
            f"--heads: {number}.{max(chosen)}: the heads of layer {number} are 0 to {heads - 1}"
        )


def layer_of(
    name: str,
    number: int,
    part: Attends,
    call: AttentionCall,
    sides: tuple[Side, Side],
    wanted: Wanted,
) -> tuple[Layer, Sums]:
    """What the first row of a call shows, and the sums behind its figures."""
    stream = Stream(call)
    chosen = wanted.of(number)
    _check_heads(number, chosen, stream.heads)
    kind = "cross" if call.memory else "self"
    layer, sums = tiled_layer(name, kind, stream, sides, wanted, sizes_of(part, call))
    weights = None
    if wanted.dense:
        heads = chosen or list(range(stream.heads))
        weights = torch.tensor(heads), weights_of(stream, heads)
    small = not wanted.heads and stream.queries * stream.keys <= wanted.whole
    kept = stream.kept(list(range(stream.heads)) if small else chosen)
    rounded = {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(call.q.dtype, "")
    layer = replace(layer, kept=kept, number=number, weights=weights, rounded=rounded)
    return layer, sums


def tiled_layer(
    name: str,
    kind: str,
    tiled: Tiled,
    sides: tuple[Side, Side],
    wanted: Wanted,
    sizes: Tensor | None = None,
) -> tuple[Layer, Sums]:
    """A layer of weights that come in tiles, of attention or of another mixer (`Dense`).

    `sizes` (H, S) are the lengths of values in the stream, where they are defined.
    """
    queries, keys = sides
    ids = None if kind == "cross" or keys.ids is None else torch.tensor(list(keys.ids))
    rows = None
    if wanted.rows is not None and wanted.rows < tiled.queries:
        drawn = torch.Generator().manual_seed(wanted.seed)
        rows = torch.randperm(tiled.queries, generator=drawn)[: wanted.rows].sort().values
    seen = Pass(
        tiled,
        own=kind != "cross",
        ids=ids,
        sizes=sizes,
        rows=rows,
        resolution=wanted.resolution,
        top=wanted.top,
    )
    maps = seen.maps.blocks()
    assert maps is not None
    figures, query = seen.statistics(), _place(wanted.query, tiled.queries)
    read, key = row_of(tiled, query), None
    if wanted.key is not None:
        key = _place(wanted.key, tiled.keys)
    layer = Layer(
        name,
        kind,
        queries,
        keys,
        tiled.causal,
        figures,
        maps,
        query,
        read,
        seen.per_key(),
        None if sizes is None else read * sizes,
        seen.top if wanted.top else None,
        seen.difference,
        letters(figures, tiled.queries, tiled.keys, tiled.causal),
        tiled.signed,
        rows,
        key,
        None if key is None else column_of(tiled, key),
    )
    return layer, seen.sums


def _place(wanted: int, count: int) -> int:
    """A position; the last one where this side has no such position."""
    return wanted % count if -count <= wanted < count else count - 1


def row_of(tiled: Tiled, query: int) -> Tensor:
    """(H, S)   what a query reads."""
    found = torch.zeros(tiled.heads, tiled.keys)
    for _, heads, keys, tile in tiled.walk(torch.tensor([query])):
        found[heads, keys] = tile[:, 0].to(found)
    return found


def weights_of(tiled: Tiled, heads: Sequence[int]) -> Tensor:
    """(N, T, S)   all weights of some heads."""
    size = len(heads) * tiled.queries * tiled.keys
    if size > MOST_WEIGHTS:
        raise SpecError(
            f"--data: the weights of {len(heads)} heads of a layer are {size:,} numbers; choose a"
            " few heads: --heads LAYER.HEAD"
        )
    whole = torch.zeros(len(heads), tiled.queries, tiled.keys)
    for start in range(0, tiled.queries, ROWS):
        rows = torch.arange(start, min(start + ROWS, tiled.queries))
        queries = tiled.of(rows)
        for keys in spans(queries):
            seen = tiled.seen(queries, keys)
            for place, head in enumerate(heads):
                tile = tiled.tile(queries, slice(head, head + 1), keys, seen)
                whole[place, start : start + len(rows), keys] = tile.weights[0].to(whole)
    return whole


def column_of(tiled: Tiled, key: int) -> Tensor:
    """(H, T)   what each query reads of a key."""
    found, keys = torch.zeros(tiled.heads, tiled.queries), slice(key, key + 1)
    for start in range(0, tiled.queries, ROWS):
        rows = torch.arange(start, min(start + ROWS, tiled.queries))
        queries = tiled.of(rows)
        if not queries.start <= key < queries.stop:
            continue
        seen = tiled.seen(queries, keys)
        for heads in tiled.chunks(tiled.heads, len(rows), keys):
            weights = tiled.tile(queries, heads, keys, seen).weights
            found[heads, rows[0] : rows[-1] + 1] = weights[..., 0].to(found)
    return found


def sizes_of(part: Attends, call: AttentionCall) -> Tensor | None:
    """(H, S)   the lengths of the first row's values in the stream; None where not defined."""
    found = []
    for start in range(0, call.v.shape[2], VALUES):
        sizes = part.value_sizes(call.v[:1, :, start : start + VALUES].detach())
        if sizes is None:
            return None
        found.append(sizes[0])
    return torch.cat(found, -1).cpu()
