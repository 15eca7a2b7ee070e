"""What attention parts share: caches of keys and values, and attention that can be watched."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

from bigmodel_cli.device import product_dtype
from bigmodel_cli.draw import again, placed
from bigmodel_cli.lazy import Tensor, nn, torch
from bigmodel_cli.parts.contract import States
from bigmodel_cli.parts.kernels import AttentionSpec, attend, attended
from bigmodel_cli.parts.matrices import OwnMatrices
from bigmodel_cli.parts.row_share import RowShare
from bigmodel_cli.parts.watched import AttentionCall, Watcher
from bigmodel_cli.shares import ALONE, Team

AT_ONCE = 512
"""Queries of a part of a row whose mask is in memory."""


@dataclass
class KVCache:
    """Keys and values (B, G, S, D) so far, in memory that is allocated once for `max_len`."""

    keys: Tensor
    values: Tensor
    length: int = 0

    @classmethod
    def of(
        cls,
        weight: Tensor,
        batch: int,
        max_len: int,
        keys: tuple[int, int],
        values: tuple[int, int],
    ) -> KVCache:
        """An empty cache for keys and values of these (heads, width).

        It is on the weight's device and in the dtype of matrix products.
        """
        kind = product_dtype(weight)
        return cls(
            weight.new_empty(batch, keys[0], max_len, keys[1], dtype=kind),
            weight.new_empty(batch, values[0], max_len, values[1], dtype=kind),
        )

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append those of new positions and return all so far."""
        end = self.length + keys.shape[2]
        self.keys[:, :, self.length : end] = keys
        self.values[:, :, self.length : end] = values
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def select(self, rows: Tensor) -> None:
        """Keep these rows, in this order.

        What is not filled yet is not copied; fewer rows allocate no memory.
        """
        self.keys = self._selected(self.keys, rows)
        self.values = self._selected(self.values, rows)

    def _selected(self, old: Tensor, rows: Tensor) -> Tensor:
        fits = len(rows) <= len(old)
        new = old[: len(rows)] if fits else old.new_empty(len(rows), *old.shape[1:])
        new[:, :, : self.length] = old[:, :, : self.length].index_select(0, rows)
        return new


@dataclass
class WindowCache:
    """Keys and values of the last `window` - 1 positions, in constant memory."""

    keys: Tensor
    values: Tensor
    window: int

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append those of new positions; returns them after the earlier ones that they may see."""
        keys, values = torch.cat((self.keys, keys), 2), torch.cat((self.values, values), 2)
        first = max(0, keys.shape[2] - self.window + 1)
        self.keys, self.values = keys[:, :, first:], values[:, :, first:]
        return keys, values


@dataclass
class GrownCache:
    """Keys and values so far, each step's put after the earlier ones: for recorded graphs."""

    keys: Tensor
    values: Tensor

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append those of new positions and return all so far."""
        self.keys = torch.cat((self.keys, keys), 2)
        self.values = torch.cat((self.values, values), 2)
        return self.keys, self.values


class AttentionPart(OwnMatrices):
    """Base of the parts with attention over heads.

    It is computed by the fused kernels (kernels.py), also while a `watcher` is set, which is given
    each call.
    """

    needs_max_len = True
    spec: AttentionSpec
    dropout: float = 0.0  # of the weights
    out: nn.Linear
    team: Team = ALONE
    watcher: Watcher | None = None
    reads_memory: ClassVar[bool] = False
    """Whether keys are of another sequence than queries."""

    def states(self) -> States:
        """Keys and values (B, heads, positions, width) by name, without those of no width."""
        cache = self.new_cache(1, 0)  # type: ignore[operator]
        found = {"key": cache.keys, "value": cache.values}
        return {n: (t.shape[1], None, t.shape[3]) for n, t in found.items() if t.shape[3]}

    def cache_of(self, tensors: dict[str, Tensor]) -> GrownCache:
        """All positions are kept, those before a window too, as in graphs of transformers."""
        keys = tensors["key"]
        return GrownCache(keys, tensors.get("value", keys[..., :0]))

    def tensors_of(self, cache: GrownCache) -> dict[str, Tensor]:
        """Keys and values, as many as `states` has."""
        found = {"key": cache.keys, "value": cache.values}
        return {name: found[name] for name in self.states()}

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        share: RowShare | None = None,
        segments: Tensor | None = None,
        key_mask: Tensor | None = None,
        bias: Callable[..., Tensor] | None = None,
        sinks: Tensor | None = None,
        ahead: int | None = None,
    ) -> Tensor:
        """(B, H, T, E)   `kernels.attend`, with dropout in training.

        `bias` gives that of so many queries and keys, of which so many are `ahead`, where that is
        said: then queries are a part of a row. With a `share` they are this process's positions of
        it, and keys and values of all.
        """
        if share is not None:
            return self._in_runs(q, k, v, share, segments, bias, sinks)
        dropped = self.training and self.dropout > 0
        spec = replace(self.spec, dropout=self.dropout) if dropped else self.spec
        spec = replace(spec, ahead=ahead, remade=True) if ahead is not None else spec
        sizes = (q.shape[2], k.shape[2], ahead) if ahead else (q.shape[2], k.shape[2])
        scores = None if bias is None else bias(*sizes)
        masks = {"segments": segments, "key_mask": key_mask, "bias": scores, "sinks": sinks}
        if self.watcher is None:
            return attend(q, k, v, spec, **masks)
        y, sums = attended(q, k, v, spec, **masks)
        call = AttentionCall(
            q,
            k,
            v,
            self.spec,
            y,
            **masks,
            minus=self.minus(),
            memory=self.reads_memory,
            log_sums=sums,
        )
        changed = self.watcher(call)
        return y if changed is None else changed

    def _in_runs(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        share: RowShare,
        segments: Tensor | None,
        bias: Callable[..., Tensor] | None,
        sinks: Tensor | None,
    ) -> Tensor:
        """(B, H, t, E)   each run of positions with the keys that it may see, so many at once. What
        is dropped is of one draw.
        """
        found, first, drawn = [], 0, again()
        reach = self.spec.window or share.length  # positions to a side, the own one included
        pieces = [
            run[at : at + AT_ONCE] for run in share.runs for at in range(0, len(run), AT_ONCE)
        ]
        for number, run in enumerate(pieces or [range(0)]):
            own = slice(first, first + len(run))
            ahead = 0 if self.spec.causal else min(reach - 1, share.length - run.stop)
            seen = slice(max(0, run.start - reach + 1), run.stop + ahead)
            last = number >= len(pieces) - 1
            with contextlib.nullcontext() if last else drawn(), placed((run,)):
                y = self.attend(
                    q[:, :, own],
                    k[:, :, seen],
                    v[:, :, seen],
                    segments=None if segments is None else segments[:, seen],
                    bias=bias,
                    sinks=sinks,
                    ahead=ahead,
                )
            found.append(y)
            first += len(run)
        return found[0] if len(found) == 1 else torch.cat(found, 2)

    def rows_fault(self) -> str:
        """Why positions of a row cannot be divided (`context_fault`); "" where they can."""
        if self.dropout and self.spec.window is not None:
            return "dropout: of attention's weights, in a window"
        return ""

    def minus(self) -> Tensor | None:
        """What the second half of the maps is multiplied by before it is subtracted, if it is."""
        return None

    def value_sizes(self, v: Tensor) -> Tensor | None:
        """(B, H, S)   the length of each head's value v (B, G, S, E) after the last projection.

        What a head adds to the stream at a position is the sum of weights times such vectors, so
        that |weight| x |v W_O| says what a weight moves (Kobayashi et al. 2020). Gates, which
        multiply what comes out, are left out.
        """
        return value_sizes(self.out.weight, v)

    def check_undropped(self) -> None:
        """Raise `ValueError` where weights are dropped: kernels draw for the heads they have."""
        if self.dropout:
            raise ValueError(
                "dropout: of attention's weights is drawn for all heads at once, and these are to"
                " be divided; set it to 0, or train.parallel.tensor to 1"
            )

    def joined(self, y: Tensor, gate: Tensor | None = None) -> Tensor:
        """(B, H, T, E) -> (B, T, C)   the heads side by side, through the last projection.

        They are multiplied by the sigmoid of `gate` (B, T, H) or (B, T, H * E), where it is given.
        """
        y = y.transpose(1, 2)  # (B, T, H, E)
        if gate is not None:
            y = y * gate.unflatten(-1, (y.shape[2], -1)).sigmoid().to(y.dtype)
        return self.team.leave(self.out, y.flatten(2))


def value_sizes(weight: Tensor, v: Tensor) -> Tensor:
    """(B, H, S)   the length of values v (B, G, S, E) after a projection `weight` (C, H * E)."""
    matrix = weight.detach().unflatten(1, (-1, v.shape[-1]))  # (C, H, E)
    gram = torch.einsum("che,chf->hef", matrix, matrix).float()  # (H, E, E)
    v = v.repeat_interleave(len(gram) // v.shape[1], 1).float()
    return torch.einsum("bhse,hef,bhsf->bhs", v, gram, v).clamp(min=0).sqrt()
