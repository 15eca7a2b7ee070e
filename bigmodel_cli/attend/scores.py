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
ERROR = 1 / 600
"""Largest error of a weight that is accepted on the sampled queries."""
SAMPLED = 256
NOISE = tuple(0.05 / 2**step for step in range(8))
"""Standard deviations of the error of a score, in nats, from the first that is tried."""
MOST_HALVINGS = 7
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
        keys = torch.arange(first, end)
        seen = (keys >= begins) & (keys < ends)
        if self.segments is not None:
            own = self.segments[rows + self.offset + len(self.segments) - len(self.k)]
            seen = seen & (own[:, None] == self.segments[-len(self.k) :][first:end])
        if self.key_mask is not None:
            seen = seen & self.key_mask[first:end].bool()
        return found.masked_fill(~seen, -math.inf)

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
    return (tile - sums[:, None]).exp().nan_to_num(0.0)


@dataclass(frozen=True)
class Factors:
    """Queries and keys as whole numbers: a score is the sum of q x k x `steps` over the channels.

    `queries` (T, D), `keys` (S, D), `steps` (D); the numbers of a position are halved as often as
    `finer_queries` (T) and `finer_keys` (S) say. `sums` (T) make weights of these scores, exactly
    as those of the real ones do. `error` is the largest one of a weight of the sampled queries.
    """

    queries: Tensor
    keys: Tensor
    finer_queries: Tensor
    finer_keys: Tensor
    steps: Tensor
    sums: Tensor
    error: float


def factored(heads: list[Scores]) -> list[Factors] | None:
    """The heads of one group, which read the same keys, in as few bits as keep the weights.

    Queries and keys are turned and stretched so that both have the same, diagonal second moments:
    then one step, inversely as the root of a channel's moment, adds the same error to the score in
    every channel, and channels that matter little take few bits or none. An error d of a score
    changes its weight w by w (1 - w) d, so that positions without a large weight take longer steps.
    None where no number of bits of `NOISE` is enough.
    """
    there, back, moments = _balanced(torch.cat([h.q for h in heads]), heads[0].k)
    queries, keys = [h.q.double() @ there for h in heads], heads[0].k.double() @ back
    slopes = [_slopes(h) for h in heads]
    of_keys = torch.stack([s for _, s in slopes]).amax(0)
    for noise in NOISE:
        step = noise * math.sqrt(6 / len(moments)) / moments.clamp(min=1e-30).sqrt()
        fine, *fines = (_halvings(s, noise) for s in (of_keys, *(s for s, _ in slopes)))
        k, *all_q = (
            (x / step * 2.0 ** f[:, None]).round()
            for x, f in zip((keys, *queries), (fine, *fines), strict=True)
        )
        if max(float(x.abs().max()) for x in (k, *all_q)) > MOST_STEPS:
            return None
        near = (k * step / 2.0 ** fine[:, None]).float()
        rounded = [
            replace(h, q=(q * step / 2.0 ** f[:, None]).float(), k=near)
            for h, q, f in zip(heads, all_q, fines, strict=True)
        ]
        errors = [_error(h, r) for h, r in zip(heads, rounded, strict=True)]
        if max(errors) <= ERROR:
            step = (step * step).float()
            return [
                Factors(q.short(), k.short(), f.byte(), fine.byte(), step, r.sums(), error)
                for q, f, r, error in zip(all_q, fines, rounded, errors, strict=True)
            ]
    return None


def _slopes(scores: Scores) -> tuple[Tensor, Tensor]:
    """(T), (S)   the largest w (1 - w) of each query, and of each key."""
    of_queries, of_keys = torch.zeros(len(scores.q)), torch.zeros(len(scores.k))
    for rows, first, end, weights in scores.weights():
        slopes = weights * (1 - weights)
        of_queries[rows] = slopes.amax(1)
        of_keys[first:end] = torch.maximum(of_keys[first:end], slopes.amax(0))
    return of_queries, of_keys


def _halvings(slopes: Tensor, noise: float) -> Tensor:
    """How often steps are halved for errors of a weight to stay within `ERROR` (3 deviations)."""
    return (slopes * (3 * noise / ERROR)).clamp(min=1).log2().ceil().clamp(max=MOST_HALVINGS)


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


def _error(exact: Scores, rounded: Scores) -> float:
    """The largest error of a weight of `SAMPLED` queries, spread evenly."""
    count = len(exact.q)
    rows = torch.linspace(0, count - 1, min(count, SAMPLED)).long()
    tiles = [s.tile(rows, 0, len(s.k)) for s in (exact, rounded)]
    one, other = (weighed(tile, exact.sums_of(tile)) for tile in tiles)
    return float((one - other).abs().max())
