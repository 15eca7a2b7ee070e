"""The scores of one head in tiles, and the same scores from few bits of queries and keys."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from bigmodel_cli.attend.look import Kept
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.parts.fused import AttentionSpec
from bigmodel_cli.parts.watched import AttentionCall

ROWS = 256
"""Queries of a tile."""
ERROR = 1 / 512
"""Weights whose error would be larger are carried one by one."""
NOISE = tuple(0.125 / 2**step for step in range(6))
"""Standard deviations of the error of a score, in nats, from the first that is tried."""
MOST_SINGLE = 48
"""Most weights to a query, in the mean, that are carried one by one."""
SUM_STEP = 1 / 256
"""Steps of the logarithms of sums, in nats."""
MOST_STEPS = 32767  # what 16 bits hold


@dataclass(frozen=True)
class Scores:
    """The scores of one head: q (T, D), which the scale has multiplied, and k (S, D), in fp32.

    Query t stands at key position S - T + t. `segments` and `key_mask` (S) and `bias` (T, S) are as
    in `kernels.attend`; `sink` is the score of a key without a value.
    """

    q: Tensor
    k: Tensor
    spec: AttentionSpec
    segments: Tensor | None = None
    key_mask: Tensor | None = None
    bias: Tensor | None = None
    sink: float | None = None

    @classmethod
    def of(cls, call: AttentionCall, head: int, row: int = 0) -> Scores:
        """Those of a head of one row of the batch."""
        group = head * call.k.shape[1] // call.q.shape[1]
        one = [None if x is None else x[row].cpu() for x in (call.segments, call.key_mask)]
        bias = None if call.bias is None else call.bias[head if len(call.bias) > 1 else 0]
        return cls(
            call.q[row, head].detach().float().cpu() * call.scale,
            call.k[row, group].detach().float().cpu(),
            call.spec,
            one[0],
            one[1],
            None if bias is None else bias.detach().float().cpu(),
            None if call.sinks is None else float(call.sinks[head]),
        )

    @classmethod
    def kept(cls, kept: Kept, number: int) -> Scores:
        """Those of one of the heads that a look has kept, by its place among them."""
        return cls(
            kept.q[number].detach().float().cpu() * kept.scale,
            kept.k[number].detach().float().cpu(),
            AttentionSpec(kept.causal, kept.window, kept.softcap),
            None if kept.segments is None else kept.segments.cpu(),
            None if kept.key_mask is None else kept.key_mask.cpu(),
            None if kept.bias is None else kept.bias[number].detach().float().cpu(),
            None if kept.sink is None else float(kept.sink[number]),
        )

    @property
    def offset(self) -> int:
        """The key position of the first query."""
        return len(self.k) - len(self.q)

    def spans(self) -> tuple[Tensor, Tensor]:
        """(T), (T)   the first key that each query may see by its place, and the end of them."""
        own = torch.arange(len(self.q)) + self.offset
        first, end = torch.zeros_like(own), torch.full_like(own, len(self.k))
        if self.spec.window is not None:
            first, end = own - self.spec.window + 1, (own + self.spec.window).clamp(max=len(self.k))
        if self.spec.causal:
            end = own + 1
        return first.clamp(min=0), end

    def tile(self, rows: Tensor, first: int, end: int) -> Tensor:
        """(R, C)   the scores of these queries and the keys `first` to `end`; -inf: not seen."""
        found = self.q[rows] @ self.k[first:end].T
        if self.spec.softcap is not None:
            found = self.spec.softcap * (found / self.spec.softcap).tanh()
        if self.bias is not None:
            found = found + self.bias[rows, first:end]
        begins, ends = (x[rows, None] for x in self.spans())
        for a, b in ((first, int(begins.max())), (max(first, int(ends.min())), end)):
            if a < b:  # keys that some of the queries do not see by their place
                keys = torch.arange(a, min(b, end))
                part = found[:, a - first : min(b, end) - first]
                part.masked_fill_((keys < begins) | (keys >= ends), -math.inf)
        if self.segments is not None:
            own = self.segments[rows + self.offset + len(self.segments) - len(self.k)]
            others = own[:, None] != self.segments[-len(self.k) :][first:end]
            found.masked_fill_(others, -math.inf)
        if self.key_mask is not None:
            found.masked_fill_(~self.key_mask[first:end].bool(), -math.inf)
        return found

    def tiles(self) -> Iterator[tuple[Tensor, int, int, Tensor]]:
        """Each tile with the queries and the keys that it is of: no key outside is seen."""
        begins, ends = self.spans()
        for rows in torch.arange(len(self.q)).split(ROWS):
            first, end = int(begins[rows].min()), int(ends[rows].max())
            yield rows, first, end, self.tile(rows, first, end)

    def sums_of(self, tile: Tensor) -> Tensor:
        """(R)   the logarithm of the sum of the exponentials of whole rows, the sink's too."""
        sums = tile.logsumexp(1)
        return sums if self.sink is None else torch.logaddexp(sums, torch.tensor(self.sink))

    def sums(self) -> Tensor:
        """(T)   of all rows."""
        return torch.cat([self.sums_of(tile) for *_, tile in self.tiles()])

    def weights(self) -> Iterator[tuple[Tensor, int, int, Tensor]]:
        """As `tiles`, of weights: 0 where a key is not seen, and where no key is."""
        for rows, first, end, tile in self.tiles():
            yield rows, first, end, weighed(tile, self.sums_of(tile))


def weighed(tile: Tensor, sums: Tensor) -> Tensor:
    """exp(scores - sums), 0 where nothing is seen."""
    return (tile - sums.nan_to_num(neginf=0)[:, None]).exp_()


@dataclass(frozen=True)
class Factors:
    """Queries and keys as whole numbers: a score is the sum of q x k x `steps` over the channels.

    `queries` (T, D), `keys` (S, D), `steps` (D); `sums` (T) make weights of these scores. The
    weights that would be off by more than `ERROR` are `values` (N) at `places` (N, 2), rows in
    order; `error` is the largest one of the others.
    """

    queries: Tensor
    keys: Tensor
    steps: Tensor
    sums: Tensor
    places: Tensor
    values: Tensor
    error: float


def factored(heads: list[Scores]) -> list[Factors] | None:
    """The heads of one group, which read the same keys, in few bits.

    Queries and keys are turned and stretched so that both have the same, diagonal second moments:
    then one step, inversely as the root of a channel's moment, adds the same error to the score in
    every channel, and channels that matter little take few bits or none. An error of a score counts
    where its weight is large, and few are: they are carried beside. None where too many are.
    """
    there, back, moments = _balanced(torch.cat([h.q for h in heads]), heads[0].k)
    queries, keys = [h.q.double() @ there for h in heads], heads[0].k.double() @ back
    for noise in NOISE:
        step = noise * math.sqrt(6 / len(moments)) / moments.clamp(min=1e-30).sqrt()
        k, *all_q = ((x / step).round() for x in (keys, *queries))
        if max(float(x.abs().max()) for x in (k, *all_q)) > MOST_STEPS:
            return None
        used = torch.stack([(q != 0).any(0) & (k != 0).any(0) for q in all_q]).any(0)
        used[0] = True
        k, step = k[:, used], step[used]
        found = [_completed(h, q[:, used], k, step) for h, q in zip(heads, all_q, strict=True)]
        if all(len(f.values) <= MOST_SINGLE * len(h.q) for h, f in zip(heads, found, strict=True)):
            return found
    return None


def _completed(exact: Scores, q: Tensor, k: Tensor, step: Tensor) -> Factors:
    """With the sums of the exact scores, and the weights that are carried one by one."""
    rounded = replace(exact, q=(q * step).float(), k=(k * step).float())
    sums, places, values, error = [], [], [], 0.0
    for rows, first, end, tile in exact.tiles():
        own = exact.sums_of(tile)
        sums.append((own.nan_to_num(neginf=0) / SUM_STEP).round() * SUM_STEP)
        weights = weighed(tile, own)
        errors = (weighed(rounded.tile(rows, first, end), sums[-1]) - weights).abs()
        wrong = (errors > ERROR).nonzero()
        values.append(weights[wrong[:, 0], wrong[:, 1]])
        places.append(wrong + torch.tensor([int(rows[0]), first]))
        error = max(error, float(errors.where(errors <= ERROR, 0).max()))
    steps = (step * step).float()
    singles = torch.cat(places), torch.cat(values)
    return Factors(q.short(), k.short(), steps, torch.cat(sums), *singles, error)


def _balanced(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Matrices for q and for k that leave q k^T as it is, and the moments that both then have.

    The channels with the largest moments come first.
    """
    q, k = q.double(), k.double()
    eye = torch.eye(q.shape[1], dtype=torch.float64)
    of_q, of_k = (x.T @ x / len(x) for x in (q, k))
    of_q, of_k = (m + eye * (m.trace() / len(m) * 1e-9 + 1e-30) for m in (of_q, of_k))
    root = torch.linalg.cholesky(of_q)
    squares, turn = torch.linalg.eigh(root.T @ of_k @ root)
    moments = squares.clamp(min=1e-60).sqrt()
    there = torch.linalg.solve_triangular(root, eye, upper=False).T @ turn * moments.sqrt()
    back = root @ turn / moments.sqrt()
    return there.flip(1), back.flip(1), moments.flip(0)
