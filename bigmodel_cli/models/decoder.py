"""Decoder-only language models: tokens in, logits of the next token out.

GPT-2 and Llama are specs of it.
"""

from __future__ import annotations

import contextlib
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from bigmodel_cli.config import Count, DatasetInfo, Positive, Probability
from bigmodel_cli.errors import Faults
from bigmodel_cli.lazy import Module, Tensor, nn
from bigmodel_cli.logits import logits_of
from bigmodel_cli.models.block import build_blocks
from bigmodel_cli.models.init import Cache, init_normal, new_cache
from bigmodel_cli.models.skeleton import (
    Blocks,
    Skeleton,
    SkeletonOptions,
    check_causal,
    max_generation_length,
    through,
    vocab_and_length,
)
from bigmodel_cli.models.vocabulary import LogitsShare, TableShare, by_vocabulary
from bigmodel_cli.parts import Norm, Position
from bigmodel_cli.parts.context import SequenceInfo, recorded
from bigmodel_cli.parts.norm import LayerNormOptions
from bigmodel_cli.parts.position import NoPositionOptions
from bigmodel_cli.parts.row_share import share_of_row
from bigmodel_cli.shares import Shares, Team


class DecoderOptions(SkeletonOptions):
    """A decoder: embedding, position, blocks of parts, norm, logits."""

    type: Literal["decoder"] = "decoder"
    outputs: ClassVar = ("next_tokens", "tags")
    blocks: Blocks = Field(description="the blocks, in order")
    position: Position = Field(NoPositionOptions(), description="what is added to the embeddings")
    norm: Norm | None = Field(LayerNormOptions(), description="before the logits; null for none")
    max_len: Count | None = Field(
        None, description="longest sequence; the data's context when left out"
    )
    vocab_size: Count | None = Field(None, description="logits (V); the tokenizer's when left out")
    tie_embeddings: bool = Field(True, description="the logits' matrix is the embedding's")
    scale_embeddings: bool | Positive = Field(
        False,
        description=(
            "embeddings are multiplied by sqrt(dim), as in Gemma (true), or by a number, as in"
            " Granite"
        ),
    )
    logit_scale: Positive = Field(1.0, description="fixed factor on the logits, as in Granite")
    logit_softcap: Positive | None = Field(
        None, description="logits are squashed into +-this by tanh, as in Gemma 2"
    )
    dropout: Probability = Field(0.0, description="of the embeddings")
    init_std: Positive | None = Field(
        None,
        description=(
            "deviation of the first weights; 1 / sqrt(dim) when left out (GPT-2: 0.02, at a width"
            " of 768)"
        ),
    )

    @model_validator(mode="after")
    def _bounded(self) -> DecoderOptions:
        if any(block.cross is not None for block in self.blocks):
            raise ValueError(
                "blocks: a decoder has no memory to read; cross belongs to model.type: seq2seq"
            )
        check_causal("blocks", self.blocks)
        return self

    def settled(self, dim: int) -> dict[str, Any]:
        factor = self.scale_embeddings
        if not isinstance(factor, bool) and factor in (1.0, dim**0.5):
            factor = factor != 1.0
        return {"scale_embeddings": factor}

    def build(self, info: DatasetInfo) -> Decoder:
        return Decoder(self, info)


class Decoder(Skeleton):
    """(B, T) tokens, padded with -1 -> (B, T, V) logits   (Radford et al. 2019).

    For data with tags: (B, T, classes) logits of each token's tag.
    """

    inputs = ("tokens",)
    context_fault = ""

    def __init__(self, options: DecoderOptions, info: DatasetInfo) -> None:
        super().__init__()
        faults = Faults()
        vocab, self.max_len = vocab_and_length(
            options.vocab_size, options.max_len, info, "a decoder", faults
        )
        self.options, self.vocab = options, vocab
        self.embedding: nn.Embedding | TableShare = nn.Embedding(vocab, options.dim)
        self.position = faults.build("model.position", options.position, options.dim, self.max_len)
        with faults.under("model.blocks"):
            self.blocks = build_blocks(options.blocks, options.dim, self.max_len, causal=True)
        self.norm = faults.build("model.norm", options.norm, options.dim)
        faults.check()
        self.can_generate = not info.tagged
        self.head: nn.Linear | LogitsShare
        self.head = nn.Linear(options.dim, len(info.classes) if info.tagged else vocab, bias=False)
        if options.tie_embeddings and not info.tagged:
            self.head.weight = self.embedding.weight
        self.limit = max_generation_length(self, self.position, self.max_len)
        init_normal(self, options.init_std or options.dim**-0.5, {"blocks": self.blocks})

    def stream_layers(self) -> list[Module]:
        return list(self.blocks)

    def generator(self, *source: Tensor) -> Decoder:
        return self

    def shares(self) -> Shares:
        """By tokens of the vocabulary."""
        head = {"head": self.vocab} if self.can_generate else {}
        return by_vocabulary(self, {"embedding": self.vocab, **head})

    def narrow(self, team: Team) -> None:
        self.team = team
        self.embedding = TableShare(self.embedding, team)
        if self.can_generate:
            self.head = LogitsShare(self.head, self.vocab, team)

    def new_cache(self, batch: int, max_len: int | None = None) -> Cache:
        return new_cache(self.blocks, batch, max_len or self.max_len)

    def forward(
        self,
        tokens: Tensor,
        cache: Cache | None = None,
        segments: Tensor | None = None,
        last: bool = False,
    ) -> Tensor:
        """Logits for every position, or the `last`; with a cache, `tokens` continue it.

        `segments` (B, T) numbers the documents of packed rows, and padding (see parts/context.py).
        Where rows are divided (parts/row_share.py), logits are of this process's positions.
        """
        count, share = tokens.shape[1], share_of_row(tokens.shape[1])
        if share is not None:
            tokens = share.tokens(tokens)
        sequence = SequenceInfo(0, segments, real=tokens >= 0, share=share)
        if cache is not None:
            sequence = cache.advance(count, segments, sequence)
        if not recorded() and sequence.offset + count > self.limit:
            raise ValueError(
                f"{sequence.offset + count} tokens; this model takes at most {self.limit}"
            )
        with contextlib.nullcontext() if share is None else share.drawing():
            x = self.embed(self.embedding, tokens, self.position, sequence)
            x = through(self.blocks, self.norm, x, sequence, cache)
        if last:
            x = x[:, -1:]
        options = self.options
        logits: Tensor = logits_of(
            x, self.head, self.head.out_features, options.logit_scale, options.logit_softcap
        )  # (B, T, V)
        return logits
