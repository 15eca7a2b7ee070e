"""PyTorch's own `nn.MultiheadAttention`, made a part whose attention can be watched."""

from __future__ import annotations

import functools

from bigmodel_cli.lazy import F, Module, Tensor, nn
from bigmodel_cli.parts.attending import value_sizes
from bigmodel_cli.parts.kernels import AttentionSpec, attended
from bigmodel_cli.parts.watched import AttentionCall, Watcher


class Watched:
    """Mixed into `nn.MultiheadAttention` of self-attention over whole rows (batch first).

    PyTorch's fast path shows nobody its queries and keys. So while a `watcher` is set, the same
    projections and the fused kernel are called one by one; without one, it is PyTorch's forward.
    """

    watcher: Watcher | None = None
    num_heads: int
    in_proj_weight: Tensor
    in_proj_bias: Tensor | None
    out_proj: nn.Linear

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """(B, T, C) -> (B, T, C), and None in the place of weights where they are not asked for."""
        masked = key_padding_mask is not None or attn_mask is not None
        if self.watcher is None or need_weights or masked:
            found: tuple[Tensor, Tensor | None] = super().forward(  # type: ignore[misc]
                query,
                key,
                value,
                key_padding_mask,
                need_weights,
                attn_mask,
                average_attn_weights,
                is_causal,
            )
            return found
        both = F.linear(query, self.in_proj_weight, self.in_proj_bias)
        q, k, v = (
            x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in both.chunk(3, -1)
        )  # (B, H, T, D) each
        spec = AttentionSpec(causal=False)
        y, sums = attended(q, k, v, spec)
        changed = self.watcher(AttentionCall(q, k, v, spec, y, log_sums=sums))
        y = y if changed is None else changed
        return self.out_proj(y.transpose(1, 2).flatten(2)), None

    def value_sizes(self, v: Tensor) -> Tensor | None:
        """(B, H, S)   the length of each head's value after the last projection."""
        return value_sizes(self.out_proj.weight, v)


@functools.cache
def _class() -> type[Module]:
    return type(
        "MultiheadAttention",
        (Watched, nn.MultiheadAttention),
        {"__doc__": nn.MultiheadAttention.__doc__},
    )


def watched(module: Module) -> None:
    """Where `module` is an `nn.MultiheadAttention` with one width and the batch first, let it be
    watched.

    Its weights, their names and its class's name stay.
    """
    if not isinstance(module, nn.MultiheadAttention) or not module.batch_first:
        return
    if module._qkv_same_embed_dim and module.bias_k is None and not module.add_zero_attn:
        module.__class__ = _class()  # type: ignore[assignment]
