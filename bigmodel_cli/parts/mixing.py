"""The matrix over positions that a mixer without softmax implies, in tiles.

A mixer whose output is linear in its values, given all else (decays, gates, queries and keys), is
the product of a matrix with the values (Dao and Gu 2024, section 3; Ali et al. 2024). It is signed
and no share: its rows do not sum to 1. It acts before the output's norm and gate.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from bigmodel_cli.lazy import F, Tensor, torch
from bigmodel_cli.parts.context import SequenceInfo
from bigmodel_cli.parts.recurrence import Chunk, chunk_at

SIZE = 64
"""Positions of a chunk."""
KEPT = 16
"""Chunks between two states of the queries that are kept."""


class Matrix(ABC):
    """The matrices (H, T, T) of one row of the batch; position i takes nothing of those after it.

    `segments` (T) are the documents of a packed row: a position takes nothing of others. `window`
    is how many positions are seen, the own one included; None for all.
    """

    heads: int
    length: int
    kind: torch.dtype
    segments: Tensor | None = None
    window: int | None = None

    @abstractmethod
    def begin(self, rows: Tensor) -> Any:
        """What tiles of these positions (R), ascending, share; it is given to `tile`."""

    @abstractmethod
    def tile(self, begun: Any, heads: slice, keys: slice) -> Tensor:
        """(h, R, C)   the weights of these positions on the values of `keys`."""

    @abstractmethod
    def values(self, heads: slice, keys: slice) -> Tensor:
        """(h, C, P)   what the matrix multiplies."""

    @abstractmethod
    def outputs(self, heads: slice, rows: Tensor) -> Tensor:
        """(h, R, P)   what the part itself made of them, before its norm and gate."""

    def difference(self) -> float | None:
        """The largest difference from the part's output, in parts of the largest output.

        None where it is that of `tile` times `values` from `outputs`.
        """
        return None


@dataclass(frozen=True)
class MixingCall(ABC):
    """One call of a mixer that implies a matrix; nothing is copied.

    `output` (B, H, T, P) is what came out, before norm and gate. `carried` says that a state of
    earlier calls went in too, of whose positions the matrix knows nothing.
    """

    output: Tensor
    sequence: SequenceInfo
    carried: bool

    memory: ClassVar[bool] = False
    """Positions are never of another sequence."""

    @property
    def keys(self) -> int:
        """How many positions are read (T)."""
        return self.output.shape[2]

    @abstractmethod
    def matrix(self, row: int = 0) -> Matrix:
        """The matrices of a row of the batch."""

    def segments(self, row: int) -> Tensor | None:
        """(T)   the documents of a row; None where it is one."""
        ids = self.sequence.current_segments()
        if ids is None or bool((ids[row] == ids[row, 0]).all()):
            return None
        return ids[row]


MixingWatcher = Callable[[MixingCall], Tensor | None]
"""Is given each call; a tensor that it returns takes the place of the output (a head cut out)."""


@dataclass(frozen=True)
class RecurrentCall(MixingCall):
    """y_t = q_t S_t + skip v_t, with S_t = exp(decay_t) S_(t-1) + k_t v_t^T.

    With `beta` the delta rule: S_t = exp(decay_t) (I - beta_t k_t k_t^T) S_(t-1) + beta_t k_t v_t^T

    q, k (B, H, T, N), v (B, H, T, P), decay and beta (B, H, T), skip (H).
    """

    q: Tensor
    k: Tensor
    v: Tensor
    decay: Tensor
    beta: Tensor | None = None
    skip: Tensor | None = None

    def matrix(self, row: int = 0) -> RecurrentMatrix:
        return RecurrentMatrix(self, row)


@dataclass(frozen=True)
class _Begun:
    """Positions (R), and from right to left the states of their queries at some chunks' ends.

    `states[n]` (H, R, N) says what a position takes of the state after chunk (n + 1) x `KEPT` - 1,
    where that is before it; else it is 0.
    """

    rows: Tensor
    states: dict[int, Tensor]


class RecurrentMatrix(Matrix):
    """Row i of W, from right to left: u is what position i takes of the state at j.

    u = q_i at first; then W_ij = beta_j k_j . u, and u becomes exp(decay_j) (u - W_ij k_j) for the
    delta rule; without it W_ij = k_j . u and u is only multiplied. A chunk at once: of the delta
    rule by the triangular system of `delta_scan`, of which this is the transpose.
    """

    def __init__(self, call: RecurrentCall, row: int) -> None:
        self.call, self.row = call, slice(row, row + 1)
        self.heads, self.length = call.v.shape[1], call.v.shape[2]
        self.kind, self.segments = call.v.dtype, call.segments(row)
        self.out = call.output[row].detach()

    def values(self, heads: slice, keys: slice) -> Tensor:
        found: Tensor = self.call.v[self.row.start, heads, keys].detach()
        return found

    def outputs(self, heads: slice, rows: Tensor) -> Tensor:
        return self.out[heads][:, rows].to(self.kind)

    def begin(self, rows: Tensor) -> _Begun:
        last = int(rows[-1]) // SIZE
        states, heads = {}, slice(0, self.heads)
        state = self.call.q.new_zeros(self.heads, len(rows), self.call.q.shape[-1])
        for number in range(last, -1, -1):
            if (number + 1) % KEPT == 0 or number == last:
                states[number // KEPT] = state
            if number:
                state = self._back(rows, heads, number, state)[1]
        return _Begun(rows, states)

    def tile(self, begun: _Begun, heads: slice, keys: slice) -> Tensor:
        last = min((keys.stop - 1) // SIZE, int(begun.rows[-1]) // SIZE)
        first, found = keys.start // SIZE, []
        count = keys.stop - keys.start
        if last < first:
            return self.call.q.new_zeros(heads.stop - heads.start, len(begun.rows), count)
        place = min(last // KEPT, max(begun.states))
        top = min((place + 1) * KEPT - 1, int(begun.rows[-1]) // SIZE)
        state = begun.states[place][heads]
        for number in range(top, first - 1, -1):
            weights, state = self._back(begun.rows, heads, number, state)
            if number <= last:
                found.append(weights)
        whole = torch.cat(found[::-1], -1)[..., keys.start - first * SIZE :][..., :count]
        return F.pad(whole, (0, count - whole.shape[-1]))

    def _back(
        self, rows: Tensor, heads: slice, number: int, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(h, R, L), (h, R, N)   the weights on a chunk, and the queries' states before it."""
        start = number * SIZE
        c, part = self._chunk(heads, start)
        k, through = c.k[0], c.through[0]
        reads = (state @ k.transpose(-1, -2)) * c.left[0][:, None]  # what is taken of writes
        before = through * state
        inside = ((rows >= start) & (rows < part.stop)).nonzero()[:, 0]
        if len(inside):
            own, q = rows[inside] - start, c.q[0]
            scores = (q @ k.transpose(-1, -2) * c.between[0])[:, own]
            reads = reads.index_copy(1, inside, scores)
            before = before.index_copy(1, inside, (q * c.since[0][..., None])[:, own])
        if self.call.beta is not None:
            beta = self.call.beta[self.row, heads, part][0].detach()
            weighted = k * beta[..., None]
            system = (weighted @ k.transpose(-1, -2) * c.between[0]).tril(-1)
            reads = torch.linalg.solve_triangular(
                system, reads, upper=False, left=False, unitriangular=True
            )
            before = before - reads @ (weighted * c.since[0][..., None])
            reads = reads * beta[:, None]
        if self.call.skip is not None and len(inside):
            own = rows[inside] - start
            skip = self.call.skip.detach()[heads, None].to(reads).expand(-1, len(inside))
            reads[:, inside, own] += skip
        return reads, before

    def _chunk(self, heads: slice, start: int) -> tuple[Chunk, slice]:
        part = slice(start, min(start + SIZE, self.length))
        call, own = self.call, self.call.sequence.current_segments()
        before = None if call.carried else call.sequence.previous_segment()
        if own is not None:
            own = own[self.row]
        if before is not None:
            before = before[self.row]
        q, k, v, decay = (t[self.row, heads].detach() for t in (call.q, call.k, call.v, call.decay))
        return chunk_at(q, k, v, decay, part, own, before), part


@dataclass(frozen=True)
class BandCall(MixingCall):
    """out_i = sum over the last `kernel` positions j of taps[i - j] x gate_j x value_j, by channel.

    taps (C, kernel), the last of the own position; gate and value (B, T, C). The output is
    (B, 1, T, C): all channels as one head.
    """

    taps: Tensor
    gate: Tensor
    value: Tensor

    def matrix(self, row: int = 0) -> BandMatrix:
        return BandMatrix(self, row)


class BandMatrix(Matrix):
    """A gated convolution: one matrix stands for its channels, the mean of their |weights|.

    The channels' own matrices, (C, T, T) in a band, are `channels`; `difference` is of them.
    """

    heads = 1

    def __init__(self, call: BandCall, row: int) -> None:
        self.call, self.row = call, row
        self.length, self.window = call.value.shape[1], call.taps.shape[1]
        self.kind = torch.promote_types(call.value.dtype, torch.float32)
        self.segments = call.segments(row)
        taps, gate = call.taps.detach().to(self.kind), call.gate[row].detach().to(self.kind)
        self.mean = gate.abs() @ taps.abs() / len(taps)  # (T, kernel): of what j gives, by tap

    def begin(self, rows: Tensor) -> Tensor:
        return rows

    def tile(self, begun: Tensor, heads: slice, keys: slice) -> Tensor:
        place = torch.arange(keys.start, keys.stop, device=begun.device)
        back = begun[:, None] - place  # (R, C)
        inside = (back >= 0) & (back < self.call.taps.shape[1])
        if self.segments is not None:
            inside &= self.segments[begun][:, None] == self.segments[keys]
        tap = (self.call.taps.shape[1] - 1 - back).clamp(0, self.call.taps.shape[1] - 1)
        return (self.mean[place[None], tap] * inside)[None]

    def channels(self, rows: Tensor) -> Tensor:
        """(C, R, kernel)   the weights of each channel on the last positions, the own one last."""
        kernel = self.call.taps.shape[1]
        place = rows[:, None] - torch.arange(kernel - 1, -1, -1, device=rows.device)  # (R, kernel)
        there, place = place >= 0, place.clamp(min=0)
        if self.segments is not None:
            there &= self.segments[place] == self.segments[rows][:, None]
        gate = self.call.gate[self.row].detach().to(self.kind)[place] * there[..., None]
        return gate.permute(2, 0, 1) * self.call.taps.detach().to(self.kind)[:, None]

    def difference(self) -> float:
        worst = largest = 0.0
        value = self.call.value[self.row].detach().to(self.kind)
        for start in range(0, self.length, 4 * SIZE):
            rows = torch.arange(start, min(start + 4 * SIZE, self.length), device=value.device)
            kernel = self.call.taps.shape[1]
            place = (rows[:, None] - torch.arange(kernel - 1, -1, -1, device=rows.device)).clamp(0)
            rebuilt = (self.channels(rows) * value[place].permute(2, 0, 1)).sum(-1).T  # (R, C)
            own = self.call.output[self.row, 0, rows].detach().to(self.kind)
            worst = max(worst, float((rebuilt - own).abs().max()))
            largest = max(largest, float(own.abs().max()))
        return worst / largest if largest else worst

    def values(self, heads: slice, keys: slice) -> Tensor:
        """Nothing: a mean of channels has no values."""
        return self.mean.new_zeros(1, keys.stop - keys.start, 1)

    def outputs(self, heads: slice, rows: Tensor) -> Tensor:
        """Nothing, as `values`."""
        return self.mean.new_zeros(1, len(rows), 1)
