"""What encoders of tokens and of frames share: blocks that see all positions, and what follows."""

from __future__ import annotations

from typing import Any

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.errors import Faults, SpecError
from bigmodel_cli.lazy import Module, Tensor, nn
from bigmodel_cli.logits import wide_logits
from bigmodel_cli.models.block import build_blocks
from bigmodel_cli.models.heads import POOLED, TokenHead, mean_of_real
from bigmodel_cli.models.init import UNLIMITED, init_normal
from bigmodel_cli.models.skeleton import Skeleton, through
from bigmodel_cli.parts.context import SequenceInfo, padding_segments
from bigmodel_cli.parts.contract import has_table
from bigmodel_cli.parts.dropout import dropout
from bigmodel_cli.parts.row_share import RowShare
from bigmodel_cli.roles import OUTER, Role


class AnyEncoder(Skeleton):
    """An embedding or a frontend, bidirectional blocks, and a head per position or per row."""

    stride = 1  # tokens or frames per vector

    def __init__(self, options: Any, info: DatasetInfo) -> None:
        super().__init__()
        self.options, dim, faults = options, options.dim, Faults()
        vocab = self.add_inputs(options, info, faults)
        self.position = faults.build("model.position", options.position, dim, self.max_len)
        self.embedding_norm = faults.build("model.embedding_norm", options.embedding_norm, dim)
        with faults.under("model.blocks"):
            self.blocks = build_blocks(options.blocks, dim, self.max_len, causal=False)
        self.norm = faults.build("model.norm", options.norm, dim)
        faults.check()
        self.labels = info.outputs > 0 and not info.spelling and not info.tagged
        self.pooling = options.pooling(info)
        if self.pooling is not None:
            self.pooler = nn.Linear(dim, dim, bias=self.pooling.bias)
            self.pooler_norm = faults.build("model.pooler.norm", self.pooling.norm, dim)
        if info.outputs:
            self.head: Module = nn.Linear(dim, info.outputs + bool(info.spelling))
        else:
            self.head = TokenHead(dim, vocab, options.blocks[0].norm, options.head_bias)
        # Tokens or frames.
        self.limit = self.stride * self.max_len if has_table(self) else UNLIMITED
        self.std = options.init_std or dim**-0.5
        init_normal(self, self.std, {})

    def add_inputs(self, options: Any, info: DatasetInfo, faults: Faults) -> int:
        """Build the input layers and find the longest sequence; returns V, 0 for frames."""
        raise NotImplementedError

    def weight_roles(self) -> dict[str, Role]:
        """The logits' layer is the last one; of tokens, that of the head."""
        return {"head.logits.weight" if isinstance(self.head, TokenHead) else "head.weight": OUTER}

    def stream_layers(self) -> list[Module]:
        return list(self.blocks)

    def output_layers(self) -> tuple[str, ...]:
        return ("head", "pooler", "pooler_norm")

    def encode(self, x: Tensor, real: Tensor, share: RowShare | None = None) -> Tensor:
        """(B, T, C), (B, T) bool -> (B, T, C)   the blocks, where nothing attends to padding.

        With a `share`, x are this process's positions; `real` are all.
        """
        own = real if share is None else share.marked(real)
        sequence = SequenceInfo(0, padding_segments(real), real=own, share=share)
        if self.position is not None:
            x = self.position(x, sequence)
        if self.embedding_norm is not None:
            x = self.embedding_norm(x)
        x = dropout(x, self.options.dropout, self.training)
        return through(self.blocks, self.norm, x, sequence)

    def logits(self, x: Tensor, real: Tensor, at: Tensor | None = None) -> Tensor:
        """(B, T, C), real (B, T) -> logits of each position (or of those `at`), or (B, classes)."""
        if at is not None:
            if self.labels:
                raise SpecError(
                    "task.type: masked_lm needs an encoder that ends in tokens, and this one ends"
                    " in the data's labels; leave them out (data.label: null)"
                )
            x = x.flatten(0, 1)[at]
        if self.labels:
            x = self.pooled(x, real)  # (B, C)
        if self.pooling is not None:
            x = self.pooler(dropout(x, self.pooling.dropout, self.training))
            x = POOLED[self.pooling.activation](x)
            x = x if self.pooler_norm is None else self.pooler_norm(x)
        p = self.options.head_dropout
        if p is None:
            p = self.options.dropout if self.labels else 0.0
        return wide_logits(dropout(x, p, self.training), self.head)

    def pooled(self, x: Tensor, real: Tensor, pool: str | None = None) -> Tensor:
        """(B, T, C), real (B, T) -> (B, C)   what a label is read from, or by another `pool`."""
        return x[:, 0] if (pool or self.options.pool) == "cls" else mean_of_real(x, real)
