"""Linear recurrences in chunks: matrix products inside a chunk, a state between chunks.

Memory grows with T. The state has a constant size, so generation costs the same at every position.
A state is empty where a segment begins: segments do not see one another. Everything is computed in
fp32 or better.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from typing import Any

from bigmodel_cli.lazy import F, Module, Tensor, nn, torch
from bigmodel_cli.parts.context import SequenceInfo, after, recorded
from bigmodel_cli.parts.counted import counted, told_recurrence
from bigmodel_cli.roles import OUTER, Role


@dataclass
class Chunk:
    """One chunk of every head: q, k (B, H, L, N), v (B, H, L, P), log decay (B, H, L).

    `seen` (B, 1, L, L) is True where position i may see j <= i; `old` (B, 1, L) where it may see
    the incoming state, and `kept` (B, 1, L) where the outgoing state includes it; `passed` (B, 1)
    where the incoming state is carried on.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    decay: Tensor
    seen: Tensor
    old: Tensor
    kept: Tensor
    passed: Tensor

    def __post_init__(self) -> None:
        total = self.decay.cumsum(-1)  # (B, H, L): log of what is left of the incoming state
        # Log of what is left at i of what j wrote: the sum over j < m <= i, and not a difference of
        # totals, in which a strong decay at one position would take the digits of weak ones after
        # it (or infinity those of all).
        count = self.decay.shape[-1]
        # m > j
        after = torch.ones(count, count, dtype=torch.bool, device=self.decay.device).tril(-1)
        between = torch.where(after, self.decay[..., :, None], 0.0).cumsum(-2)
        self.between = torch.where(
            self.seen, between, -torch.inf
        ).exp()  # (B, H, L, L): from j to i
        self.since = torch.where(
            self.old, total, -torch.inf
        ).exp()  # (B, H, L): from the chunk's beginning to i
        self.left = torch.where(
            self.kept, between[..., -1, :], -torch.inf
        ).exp()  # from i to its end
        self.through = torch.where(self.passed, total[..., -1], -torch.inf).exp()[..., None, None]


def chunks(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, size: int, sequence: SequenceInfo
) -> list[Chunk]:
    """Cut (B, H, T, ...) into chunks of `size` positions, the last one shorter."""
    own, before = sequence.current_segments(), sequence.previous_segment()
    return [
        chunk_at(q, k, v, decay, slice(first, min(first + size, q.shape[2])), own, before)
        for first in range(0, q.shape[2], size)
    ]


def chunk_at(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor,
    part: slice,
    own: Tensor | None,
    before: Tensor | None,
) -> Chunk:
    """The positions `part` of (B, H, T, ...) as a chunk.

    `own` (B, T) numbers their segments, and `before` (B) that of the last cached position.
    """
    first, count = part.start, part.stop - part.start
    lower = torch.ones(count, count, dtype=torch.bool, device=q.device).tril()[None, None]
    ones = torch.ones(1, 1, count, dtype=torch.bool, device=q.device)
    seen, old, kept, passed = lower, ones, ones, ones[..., 0]
    if own is not None:
        s = own[:, part]
        previous = own[:, first - 1] if first else s[:, 0] if before is None else before
        seen = lower & (s[:, None, :, None] == s[:, None, None, :])
        old = (s == previous[:, None])[:, None]
        kept = (s == s[:, -1:])[:, None]
        passed = (previous == s[:, -1])[:, None]
    q, k, v, decay = (t[:, :, part] for t in (q, k, v, decay))
    return Chunk(q, k, v, decay, seen, old, kept, passed)


def scan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor,
    state: Tensor | None,
    sequence: SequenceInfo,
    size: int = 64,
) -> tuple[Tensor, Tensor]:
    """S_t = exp(decay_t) S_{t-1} + k_t v_t^T, y_t = q_t S_t: (y (B, H, T, P), S_T (B, H, N, P)).

    Mamba-2's state space duality (Dao and Gu 2024, section 6): inside a chunk it is attention
    without softmax.
    """
    if recorded():
        return _step_by_step((q, k, v, decay), state, sequence)
    if counted(q):
        return told_recurrence(q, k, v, 2, decay)
    library = _library(q, sequence)
    if library is not None:
        gla = library.simple_gla.chunk_simple_gla
        return _through(gla, (q, k, v), {"g": decay}, state)
    carried = _first(state, k, v)
    outputs = []
    for c in chunks(q, k, v, decay, size, sequence):
        y = (c.q @ c.k.transpose(-1, -2) * c.between) @ c.v
        y = y + (c.q * c.since[..., None]) @ carried
        carried = c.through * carried + (c.k * c.left[..., None]).transpose(-1, -2) @ c.v
        outputs.append(y)
    return torch.cat(outputs, 2), carried


def delta_scan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor,
    beta: Tensor,
    state: Tensor | None,
    sequence: SequenceInfo,
    size: int = 64,
) -> tuple[Tensor, Tensor]:
    """S_t = exp(decay_t) (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T, y_t = q_t S_t.

    Returns (y, S_T). The gated delta rule (Yang et al. 2025, "Gated Delta Networks"): the state's
    value for k_t is replaced, not added to. Inside a chunk all replacements come from one
    triangular system (the WY form, Yang et al. 2024).
    """
    if recorded():
        return _step_by_step((q, k, v, decay, beta), state, sequence)
    if counted(q):
        return told_recurrence(q, k, v, 3, decay, beta)
    library = _library(q, sequence)
    if library is not None:
        rule = library.gated_delta_rule.chunk_gated_delta_rule
        return _through(rule, (q, k, v), {"g": decay, "beta": beta}, state)
    carried = _first(state, k, v)
    outputs = []
    for c, b in zip(chunks(q, k, v, decay, size, sequence), beta.split(size, dim=2), strict=True):
        weighted = c.k * b[..., None]
        # Effect of earlier writes on later reads.
        system = (weighted @ c.k.transpose(-1, -2) * c.between).tril(-1)
        wanted = c.v * b[..., None] - (weighted * c.since[..., None]) @ carried
        written = torch.linalg.solve_triangular(system, wanted, upper=False, unitriangular=True)
        y = (c.q @ c.k.transpose(-1, -2) * c.between) @ written + (
            c.q * c.since[..., None]
        ) @ carried
        carried = c.through * carried + (c.k * c.left[..., None]).transpose(-1, -2) @ written
        outputs.append(y)
    return torch.cat(outputs, 2), carried


def _step_by_step(
    heads: tuple[Tensor, ...], state: Tensor | None, sequence: SequenceInfo
) -> tuple[Tensor, Tensor]:
    """Both recurrences position by position, for recorded graphs: a loop of any length in them.

    `heads` are q, k, v, decay and, for the delta rule, beta.
    """
    from torch._higher_order_ops.scan import scan as loop

    q, own = heads[0], sequence.current_segments()
    if own is None or sequence.segment_ids is None:
        kept = torch.ones_like(heads[3][:, 0])  # (B, T)
    else:
        before = after(F.pad(sequence.segment_ids[:, :-1], (1, 0), value=-1), sequence.offset)
        kept = (own == before).to(q.dtype)

    def step(carried: Tensor, at: list[Tensor]) -> tuple[Tensor, Tensor]:
        q, k, v, decay, kept, *beta = at  # (B, H, N), (B, H, N), (B, H, P), (B, H), (B, 1)
        carried = carried * (decay.exp() * kept)[..., None, None]
        if beta:
            v = (v - (k[..., None] * carried).sum(-2)) * beta[0][..., None]
        carried = carried + k[..., None] * v[..., None, :]
        return carried, (q[..., None] * carried).sum(-2)  # no product, whose sizes it cannot hold

    first = _first(state, heads[1], heads[2])
    inputs = [*heads[:4], kept[:, None], *heads[4:]]
    last, outputs = loop(step, first, [t.movedim(2, 0) for t in inputs])
    return outputs.movedim(0, 2), last


def _library(q: Tensor, sequence: SequenceInfo) -> Any:
    """`fla.ops`, the Triton kernels of flash-linear-attention, where usable here; else None."""
    if not q.is_cuda or sequence.segment_ids is not None or importlib.util.find_spec("fla") is None:
        return None
    importlib.import_module("fla.ops.simple_gla")
    importlib.import_module("fla.ops.gated_delta_rule")
    return importlib.import_module("fla.ops")


def _through(
    kernel: Any,
    heads: tuple[Tensor, Tensor, Tensor],
    rates: dict[str, Tensor],
    state: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Call one of its kernels, whose axes have positions before heads."""
    q, k, v = (t.transpose(1, 2).contiguous() for t in heads)
    rates = {name: t.transpose(1, 2).contiguous() for name, t in rates.items()}
    y, last = kernel(q, k, v, **rates, scale=1.0, initial_state=state, output_final_state=True)
    return y.transpose(1, 2), last


def _first(state: Tensor | None, k: Tensor, v: Tensor) -> Tensor:
    return k.new_zeros(*k.shape[:2], k.shape[-1], v.shape[-1]) if state is None else state


class ShortConvolution(Module):
    """(B, T, C) -> (B, T, C)   depthwise causal convolution within segments."""

    def __init__(self, channels: int, kernel: int, bias: bool) -> None:
        super().__init__()
        self.kernel = kernel
        # The last tap is the position itself.
        self.weight = nn.Parameter(torch.empty(channels, kernel))
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None
        nn.init.uniform_(self.weight, -(kernel**-0.5), kernel**-0.5)

    def weight_roles(self) -> dict[str, Role]:
        """Depthwise filters are not matrices."""
        return {"weight": OUTER}

    def forward(
        self, x: Tensor, sequence: SequenceInfo, past: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The output, and the next call's `past` (B, kernel - 1, C): the last inputs."""
        width = self.kernel - 1
        row = torch.cat(
            (x.new_zeros(x.shape[0], width, x.shape[2]) if past is None else past, x), 1
        )
        if sequence.segment_ids is None:
            y = F.conv1d(
                row.transpose(1, 2), self.weight[:, None], self.bias, groups=x.shape[2]
            ).transpose(1, 2)
        else:
            y = self.within_segments(row, x.shape[1], sequence.segment_ids)
        return y, row[:, row.shape[1] - width :]

    def within_segments(self, row: Tensor, length: int, segments: Tensor) -> Tensor:
        """The same tap by tap, without inputs of other segments."""
        width = self.kernel - 1
        # (B, width + T): beside the row
        ids = F.pad(segments, (width, 0), value=-1)[:, -(length + width) :]
        own = ids[:, width:]
        y = torch.zeros_like(row[:, width:])
        for tap in range(self.kernel):
            inside = (ids[:, tap : tap + length] == own)[..., None]
            y = y + row[:, tap : tap + length] * inside * self.weight[:, tap]
        return y if self.bias is None else y + self.bias
