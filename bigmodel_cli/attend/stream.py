"""Exact weights of a call of attention in tiles, without T x S in memory.

The first pass is the log-sum-exp of each query's scores, from the fused kernel where it gives one;
a tile of weights is then exp(score - log-sum-exp), in any order (Dao et al. 2022, section 3.1).
Scores are in bits: on CPUs a power of 2 takes a quarter of the time of one of e.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from bigmodel_cli.attend.look import Kept
from bigmodel_cli.attend.tiles import ROWS, Queries, Tile, Tiled, spans
from bigmodel_cli.lazy import F, Tensor, torch
from bigmodel_cli.parts.watched import AttentionCall

NEVER = -1e30
"""The logarithm of a weight that is 0: times 0 it is 0, which minus infinity is not."""
BITS = 1 / math.log(2)


class Stream(Tiled):
    """The weights of one row of a call's batch; `maps` (M) are the kernel's heads.

    Of a call with `minus` the weights are a difference of two maps: signed.
    """

    def __init__(self, call: AttentionCall, row: int = 0) -> None:
        self.scale, self.softcap, self.causal = call.scale, call.spec.softcap, call.spec.causal
        self.q, self.k, self.v, self.output = (
            x[row].detach() for x in (call.q, call.k, call.v, call.output)
        )
        self.kind = torch.promote_types(self.q.dtype, torch.float32)
        self.maps, self.queries, self.keys = len(self.q), self.q.shape[1], self.k.shape[1]
        self.minus = None if call.minus is None else float(call.minus)
        self.signed = self.minus is not None
        self.heads = self.maps // 2 if self.signed else self.maps
        window = call.spec.window
        self.window = None if window is None or window >= self.keys else window
        self.segments = _uneven(call.segments, row)
        self.key_mask = _uneven(None if call.key_mask is None else call.key_mask.bool(), row)
        self.bias = None if call.bias is None else call.bias.detach()
        self.sinks = None if call.sinks is None else call.sinks.detach().to(self.kind)
        sums = self._first_pass() if call.log_sums is None else call.log_sums[row].detach()
        sums = sums.to(self.kind)  # of queries that see nothing, kernels give what they like
        self.lse = sums.masked_fill(~sums.isfinite() | (sums < 0.1 * NEVER), 0.0)  # (M, T)

    def outside(self, rows: Tensor) -> Tensor | None:
        return None if self.sinks is None else self.sinks[:, None] - self.lse[:, rows]

    def values(self, heads: slice, keys: slice) -> Tensor:
        return self._of_heads(self.v, heads, keys)

    def outputs(self, heads: slice, rows: Tensor) -> Tensor:
        y = self.output[heads][:, rows].to(self.kind)
        if self.minus is None:
            return y
        return y - self.minus * self.output[self._second(heads)][:, rows].to(self.kind)

    def of(self, rows: Tensor) -> Queries:
        rows = rows.to(self.q.device)
        return self._scored(rows, self.lse[:, rows])

    def seen(self, queries: Queries, keys: slice) -> Tensor | None:
        return self._mask(queries.places, queries, keys)

    def tile(self, queries: Queries, heads: slice, keys: slice, seen: Tensor | None) -> Tile:
        bits = self._bits(queries, heads, keys, seen)
        if self.minus is None:
            return Tile(bits.exp2(), bits)
        second = self._bits(queries, self._second(heads), keys, seen)
        return Tile(bits.exp2_().sub_(second.exp2_(), alpha=self.minus), None)

    def kept(self, heads: Sequence[int]) -> Kept | None:
        """These heads' tensors; None for a difference of maps."""
        if self.signed or not heads:
            return None
        chosen = list(heads)
        groups = [head // (self.maps // len(self.k)) for head in chosen]
        bias = None if self.bias is None else self.bias[chosen].cpu()
        sink = None if self.sinks is None else self.sinks[chosen].cpu()
        q, k, lse = self.q[chosen].cpu(), self.k[groups].cpu(), self.lse[chosen].cpu()
        segments = None if self.segments is None else self.segments.cpu()
        key_mask = None if self.key_mask is None else self.key_mask.cpu()
        rules = (self.causal, self.window, self.softcap, segments, key_mask)
        return Kept(chosen, q, k, lse, self.scale, *rules, bias, sink)

    def _second(self, heads: slice) -> slice:
        return slice(heads.start + self.heads, heads.stop + self.heads)

    def _of_heads(self, x: Tensor, heads: slice, keys: slice) -> Tensor:
        """(M, C, D)   keys or values (G, S, D) of these maps, those of the tile alone repeated."""
        times = self.maps // len(x)
        if times == 1:
            return x[heads, keys].to(self.kind)
        groups = torch.arange(heads.start, heads.stop, device=x.device) // times
        return x[:, keys][groups].to(self.kind)

    def _scored(self, rows: Tensor, lse: Tensor | None) -> Queries:
        places = rows + (self.keys - self.queries)
        first, last = int(places[0]), int(places[-1])
        start = 0 if self.window is None else max(0, first - self.window + 1)
        end = self.keys if self.window is None else min(self.keys, last + self.window)
        end = min(end, last + 1) if self.causal else end
        q = self.q[:, rows].to(self.kind) * self.scale
        if lse is not None and self._is_linear():  # one more channel, which meets ones, subtracts
            q, lse = torch.cat((q, -lse[..., None]), -1) * BITS, None
        return Queries(rows, places, start, max(start, end), q, lse)

    def _mask(self, places: Tensor, queries: Queries, keys: slice) -> Tensor | None:
        """(R, C)   which keys each query sees; None where all."""
        device, first, last = places.device, int(places[0]), int(places[-1])
        masks: list[Tensor] = []
        ahead = self.causal and keys.stop - 1 > first
        behind = self.window is not None and keys.start <= last - self.window
        beyond = self.window is not None and keys.stop - 1 >= first + self.window
        if ahead or behind or beyond:
            back = places[:, None] - torch.arange(keys.start, keys.stop, device=device)
            if ahead:
                masks.append(back >= 0)
            if self.window is not None and (behind or beyond):
                masks.append(back.abs() < self.window)
        if self.segments is not None:
            masks.append(self.segments[places][:, None] == self.segments[keys])
        if self.key_mask is not None:
            masks.append(self.key_mask[keys].expand(len(places), -1))
        if not masks:
            return None
        return torch.stack(masks).all(0) if len(masks) > 1 else masks[0]

    def _is_linear(self) -> bool:
        """Whether scores are products of queries and keys, nothing else."""
        return self.softcap is None and self.bias is None

    def _bits(self, queries: Queries, maps: slice, keys: slice, seen: Tensor | None) -> Tensor:
        """(M, R, C)   logarithms of the weights to the base 2."""
        scores = self._scores(queries, maps, keys, seen)
        return scores if self._is_linear() else scores.mul_(BITS)

    def _scores(self, queries: Queries, maps: slice, keys: slice, seen: Tensor | None) -> Tensor:
        """(M, R, C)   scores less the log-sum-exp, where it is known (in bits where linear)."""
        assert queries.q is not None
        q, k = queries.q[maps], self._of_heads(self.k, maps, keys)
        if q.shape[-1] > k.shape[-1]:
            k = F.pad(k, (0, 1), value=1.0)
        scores = torch.bmm(q, k.transpose(1, 2))
        if self.softcap is not None:
            scores = self.softcap * (scores / self.softcap).tanh()
        if self.bias is not None:
            scores = scores + self.bias[maps][:, queries.rows, keys]
        if queries.lse is not None:
            scores = scores - queries.lse[maps][..., None]
        return scores if seen is None else scores.masked_fill_(~seen, NEVER)

    def _first_pass(self) -> Tensor:
        """(M, T)   a running log-sum-exp over the tiles."""
        lse = self.q.new_full((self.maps, self.queries), -math.inf, dtype=self.kind)
        for start in range(0, self.queries, ROWS):
            stop = min(start + ROWS, self.queries)
            queries = self._scored(torch.arange(start, stop, device=self.q.device), None)
            own = lse[:, start:stop]
            for keys in spans(queries):
                seen = self.seen(queries, keys)
                if seen is not None and not bool(seen.any()):
                    continue
                for maps in self.chunks(self.maps, stop - start, keys):
                    scores = self._scores(queries, maps, keys, seen)
                    own[maps] = torch.logaddexp(own[maps], scores.logsumexp(-1))
        if self.sinks is not None:
            lse = torch.logaddexp(lse, self.sinks[:, None])
        return lse


def _uneven(marks: Tensor | None, row: int) -> Tensor | None:
    """(S)   the marks of a row; None where they tell no key from another, or hide none."""
    if marks is None:
        return None
    own = marks[row].detach()
    even = own.all() if own.dtype == torch.bool else (own == own[:1]).all()
    return None if bool(even) else own
