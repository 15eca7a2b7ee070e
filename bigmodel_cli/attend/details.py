"""What a page carries of a head, so that it can show each weight: the weights, or their factors."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from bigmodel_cli.attend.look import Kept, Look
from bigmodel_cli.attend.scores import SUM_STEP, Factors, Scores, factored
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.parts.watched import AttentionCall

MOST_ENTRIES = 1536 * 1536
"""Most weights of a head that are kept one by one."""
FEW_ENTRIES = 200 * 200
"""So few are kept one by one without a trial of their factors."""


@dataclass(frozen=True)
class Detail:
    """One head: `facts` are values of JSON, `arrays` little-endian numbers after deflate, by name.

    `form` is "map" (codes of the weights that may be seen, row after row) or "scores" (whole
    numbers for queries and keys, and sums that make weights of scores). `minus` is what is
    subtracted from the head, `factor` times (differential attention). `as_map` is the same head
    as a map, of "scores" that take fewer bytes.
    """

    form: str
    facts: dict[str, Any]
    arrays: dict[str, bytes]
    minus: Detail | None = None
    factor: float = 0.0
    as_map: Detail | None = None

    @property
    def size(self) -> int:
        """Bytes of its arrays."""
        return sum(map(len, self.arrays.values())) + (self.minus.size if self.minus else 0)


@dataclass
class Details:
    """Collects the details of heads while a model runs: one head in memory at a time.

    `wanted` says whether a head of a part (by the part's name) is to be kept. `row` is the row of
    the batch that is shown. A part that is called again takes the place of its earlier call.
    """

    wanted: Callable[[str, int], bool] = lambda name, head: True
    row: int = 0
    found: dict[str, dict[int, Detail]] = field(default_factory=dict)
    left_out: int = 0
    """Heads whose weights fit no form: too many, with a bias that is not one of distances."""

    def see(self, name: str, call: AttentionCall) -> None:
        """Keep what is wanted of a call."""
        shown = call.q.shape[1] // (1 if call.minus is None else 2)
        heads = [head for head in range(shown) if self.wanted(name, head)]
        groups: dict[int, list[int]] = {}
        for head in heads + ([] if call.minus is None else [head + shown for head in heads]):
            groups.setdefault(head * call.k.shape[1] // call.q.shape[1], []).append(head)
        kept: dict[int, Detail] = {}
        for members in groups.values():
            scores = [Scores.of(call, head, self.row) for head in members]
            kept |= dict(zip(members, _detailed(scores), strict=True))  # type: ignore[arg-type]
        found = {}
        for head in heads:
            whole = _joined(kept[head], kept.get(head + shown), call)
            if whole is None:
                self.left_out += 1
            else:
                found[head] = whole
        self.found[name] = found

    @classmethod
    def of(cls, look: Look) -> Details:
        """Those of the heads whose tensors a look has kept, or whose blocks are single weights."""
        details = cls()
        for layer in look.layers:
            if layer.kept is not None:
                details._add_kept(layer.name, layer.kept)
            elif layer.blocks.rows == layer.blocks.columns == 1 and layer.sampled is None:
                for head, matrix in enumerate(layer.blocks.most):
                    details.add_matrix(layer.name, head, matrix, layer.causal)
        return details

    def _add_kept(self, name: str, kept: Kept) -> None:
        groups: list[list[int]] = []
        for number in range(len(kept.heads)):
            same = (g for g in groups if torch.equal(kept.k[g[0]], kept.k[number]))
            group = next(same, None)
            if group is None:
                groups.append([number])
            else:
                group.append(number)
        for group in groups:
            made = _detailed([Scores.kept(kept, number) for number in group])
            for number, detail in zip(group, made, strict=True):
                if detail is None:
                    self.left_out += 1
                else:
                    self.found.setdefault(name, {})[kept.heads[number]] = detail

    def add_matrix(self, name: str, head: int, matrix: Tensor, causal: bool) -> None:
        """Keep a matrix (T, S) that another mixer implies; it may be signed."""
        if self.wanted(name, head):
            self.found.setdefault(name, {})[head] = of_matrix(matrix, causal)


def of_matrix(matrix: Tensor, causal: bool) -> Detail:
    """The detail of a whole matrix (T, S) of weights, or of signed numbers; NaN: not seen."""
    matrix = matrix.detach().float().cpu().nan_to_num(0.0)
    queries, keys = matrix.shape
    peak = max(float(matrix.abs().max()), 1e-30) if matrix.numel() else 1.0
    signed = bool((matrix < 0).any())
    codes = _signed_codes(matrix / peak) if signed else _codes(matrix / peak)
    if causal:
        codes = codes[torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)]
    facts: dict[str, Any] = {"queries": queries, "keys": keys, "causal": causal, "window": None}
    facts |= {"signed": signed, "peak": peak}
    return Detail("map", facts, {"codes": deflated(codes)})


def _joined(one: Detail | None, other: Detail | None, call: AttentionCall) -> Detail | None:
    if call.minus is None or one is None:
        return one
    if other is None:
        return None
    return replace(one, minus=other, factor=float(call.minus))


def _detailed(heads: list[Scores]) -> list[Detail | None]:
    """The heads of one group in the form that takes fewer bytes."""
    begins, ends = heads[0].spans()
    entries = int((ends - begins).clamp(min=0).sum())
    maps = [of_weights(h) for h in heads] if entries <= MOST_ENTRIES else None
    if maps is not None and entries <= FEW_ENTRIES:
        return list(maps)
    biases = [distance_bias(h) for h in heads]
    if any(b is None and h.bias is not None for b, h in zip(biases, heads, strict=True)):
        factors = None
    else:
        factors = factored(heads)
    if factors is None:
        return list(maps) if maps is not None else [None] * len(heads)
    of = [of_factors(*each) for each in zip(heads, factors, biases, strict=True)]
    shared = len(of[0].arrays["k"]) * (len(of) - 1)  # the keys are carried once
    if maps is not None and sum(d.size for d in maps) <= sum(d.size for d in of) - shared:
        return list(maps)
    if maps is None:
        return list(of)
    return [replace(head, as_map=whole) for head, whole in zip(of, maps, strict=True)]


def of_weights(scores: Scores) -> Detail:
    """All weights that a query may see, a byte each: the root, in steps of 1/255."""
    begins, ends = scores.spans()
    parts = []
    for rows, first, end, weights in scores.weights():
        keys = torch.arange(first, end)
        seen = (keys >= begins[rows, None]) & (keys < ends[rows, None])
        parts.append(_codes(weights)[seen])
    facts = {**_facts(scores), "signed": False, "peak": 1.0}
    return Detail("map", facts, {"codes": deflated(torch.cat(parts))})


def of_factors(scores: Scores, factors: Factors, bias: Tensor | None) -> Detail:
    """Queries and keys channel by channel, in two bytes, the high ones after all the low ones.

    So are the single weights: how many each query has, the keys, the weights times 65,535.
    """
    rows, columns = factors.places.unbind(1)
    arrays = {
        "q": deflated(_planes(factors.queries)),
        "k": deflated(_planes(factors.keys)),
        "steps": deflated(factors.steps),
        "sums": deflated(_bytes((factors.sums / SUM_STEP).int(), 3)),
        "counts": deflated(torch.bincount(rows, minlength=len(scores.q)).int()),
        "places": deflated(_bytes(columns, 3)),
        "values": deflated(_bytes((factors.values.double() * 65_535).round().long(), 2)),
    }
    if bias is not None:
        arrays["bias"] = deflated(bias)
    if scores.segments is not None:
        arrays["segments"] = deflated(scores.segments[-len(scores.k) :].int())
    if scores.key_mask is not None:
        arrays["key_mask"] = deflated(scores.key_mask.to(torch.uint8))
    facts = _facts(scores) | {
        "channels": len(factors.steps),
        "sum_step": SUM_STEP,
        "softcap": scores.spec.softcap,
        "error": factors.error,
    }
    return Detail("scores", facts, arrays)


def distance_bias(scores: Scores) -> Tensor | None:
    """(T + S - 1)   the bias by the distance of query and key, where it is of distances alone.

    Entry d is for keys d - (T - 1) positions after the first query. None where it is not, or there
    is none.
    """
    bias = scores.bias
    if bias is None:
        return None
    vector = torch.cat((bias[1:, 0].flip(0), bias[0]))
    queries, keys = bias.shape
    rows = (torch.arange(part, min(part + 256, queries)) for part in range(0, queries, 256))
    same = all(
        torch.equal(vector[torch.arange(keys) - r[:, None] + queries - 1], bias[r]) for r in rows
    )
    return vector if same else None


def _facts(scores: Scores) -> dict[str, Any]:
    return {
        "queries": len(scores.q),
        "keys": len(scores.k),
        "causal": scores.spec.causal,
        "window": scores.spec.window,
    }


def _codes(weights: Tensor) -> Tensor:
    """Weights in 0..1 as bytes: the root, so that small ones keep their digits."""
    return (weights.clamp(0, 1).sqrt() * 255).round().to(torch.uint8)


def _signed_codes(numbers: Tensor) -> Tensor:
    """Numbers in -1..1 as bytes 1 to 255 around 128."""
    return (numbers.abs().clamp(max=1).sqrt() * 127 * numbers.sign() + 128).round().to(torch.uint8)


def _planes(numbers: Tensor) -> Tensor:
    """(T, D) of 16 bits -> 2 x D x T bytes, signs in the lowest bit: high bytes are mostly 0."""
    wide = numbers.T.int()
    folded = torch.where(wide < 0, -2 * wide - 1, 2 * wide).contiguous()
    return _bytes(folded, 2)


def _bytes(numbers: Tensor, count: int) -> Tensor:
    """The lowest bytes of all numbers, then the next ones."""
    return torch.stack([numbers >> 8 * place & 255 for place in range(count)]).to(torch.uint8)


def deflated(numbers: Tensor) -> bytes:
    """The bytes of an array after deflate, as `DecompressionStream("deflate-raw")` reads them."""
    packer = zlib.compressobj(6, zlib.DEFLATED, -15, 9, zlib.Z_FILTERED)
    return packer.compress(numbers.contiguous().numpy().tobytes()) + packer.flush()
