"""Encoder-decoders: a source is encoded as a whole, a target is generated token by token.

The Transformer of 2017 is a spec of it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from bigmodel_cli.config import Count, DatasetInfo, Positive, Probability
from bigmodel_cli.errors import Faults
from bigmodel_cli.lazy import Tensor, nn, torch
from bigmodel_cli.models.block import build_blocks
from bigmodel_cli.models.init import Cache, init_normal, init_xavier, new_cache
from bigmodel_cli.models.skeleton import (
    Blocks,
    Skeleton,
    SkeletonOptions,
    check_causal,
    max_generation_length,
    through,
    vocab_and_length,
)
from bigmodel_cli.parts import Norm, Position
from bigmodel_cli.parts.context import SequenceInfo, padding_segments
from bigmodel_cli.parts.position import SinusoidalOptions


class Seq2SeqOptions(SkeletonOptions):
    """An encoder, and a decoder that reads it through cross-attention; post-norm by default."""

    type: Literal["seq2seq"] = "seq2seq"
    outputs: ClassVar = ("target",)
    two_sided = "model.encoder"
    encoder: Blocks = Field(description="the encoder's blocks")
    decoder: Blocks = Field(
        description="the decoder's blocks, with cross: in those that read the source"
    )
    position: Position = Field(
        SinusoidalOptions(), description="what is added to the embeddings on both sides"
    )
    norm: Norm | None = Field(
        None, description="after the last block of each side, for pre-norm blocks; null for none"
    )
    share_embeddings: bool | Literal["inputs"] = Field(
        True,
        description=(
            "source, target and logits share one matrix (inputs: source and target, as in T5 1.1);"
            " where the source has its own tokenizer, the latter two"
        ),
    )
    scale_embeddings: bool = Field(True, description="embeddings are multiplied by sqrt(dim)")
    logit_scale: Positive = Field(1.0, description="fixed factor on the logits (T5: 1 / sqrt(dim))")
    logit_bias: bool = Field(False, description="learn a bias of the logits")
    max_len: Count | None = Field(
        None, description="longest source or target; the data's when left out"
    )
    vocab_size: Count | None = Field(None, description="tokens (V); the tokenizer's when left out")
    dropout: Probability = Field(0.0, description="of the embeddings")
    init: Literal["xavier", "normal"] = Field(
        "xavier", description="the first weights: Glorot's (2017), or GPT-2's normal"
    )
    init_std: Positive | None = Field(
        None, description="deviation where init: normal; 1 / sqrt(dim) when left out"
    )

    @model_validator(mode="after")
    def _bounded(self) -> Seq2SeqOptions:
        if self.logit_bias and self.logit_scale != 1.0:
            raise ValueError("logit_bias: logits with a logit_scale have none")
        if any(block.cross is not None for block in self.encoder):
            raise ValueError(
                "encoder: it has no memory to read; cross belongs to the decoder's blocks"
            )
        if not any(block.cross is not None for block in self.decoder):
            raise ValueError("decoder: no block has cross:, so the source would never be read")
        check_causal("decoder", self.decoder)
        return self

    def build(self, info: DatasetInfo) -> Seq2Seq:
        return Seq2Seq(self, info)


class Seq2Seq(Skeleton):
    """source (B, S), target (B, T), padded with -1 -> (B, T, V) logits (Vaswani et al. 2017)."""

    inputs = ("source", "target")
    can_generate = True
    is_encoder_decoder = True
    stacks = ("encoder", "decoder")

    def __init__(self, options: Seq2SeqOptions, info: DatasetInfo) -> None:
        super().__init__()
        faults = Faults()
        vocab, self.max_len = vocab_and_length(
            options.vocab_size, options.max_len, info, "an encoder-decoder", faults
        )
        self.options, dim = options, options.dim
        self.source_embedding = nn.Embedding(info.source_vocab_size or vocab, dim)
        self.target_embedding = nn.Embedding(vocab, dim)
        self.position = faults.build("model.position", options.position, dim, self.max_len)
        with faults.under("model.encoder"):
            self.encoder = build_blocks(options.encoder, dim, self.max_len, causal=False)
        with faults.under("model.decoder"):
            self.decoder = build_blocks(options.decoder, dim, self.max_len, causal=True)
        self.encoder_norm = faults.build("model.norm", options.norm, dim)
        self.decoder_norm = faults.build("model.norm", options.norm, dim)
        faults.check()
        self.head = nn.Linear(dim, vocab, bias=options.logit_bias)
        self.limit = max_generation_length(self, self.position, self.max_len)
        if options.init == "xavier":
            init_xavier(self, dim)
        else:
            stacks = {"encoder": self.encoder, "decoder": self.decoder}
            init_normal(self, options.init_std or dim**-0.5, stacks)
        if options.share_embeddings:
            if info.source_vocab_size is None:
                self.target_embedding.weight = self.source_embedding.weight
            if options.share_embeddings is True:
                self.head.weight = self.target_embedding.weight

    def last_layers(self) -> tuple[str, ...]:
        return ("decoder_norm", *self.output_layers())

    def encode(self, source: Tensor) -> SequenceInfo:
        """The memory (B, S, C) and which of its positions are real."""
        real = source >= 0
        sequence = SequenceInfo(0, padding_segments(real), real=real)
        x = self.embed(self.source_embedding, source, sequence)
        x = through(self.encoder, self.encoder_norm, x, sequence)
        return SequenceInfo(memory=x, memory_mask=None if sequence.segment_ids is None else real)

    def decode(self, target: Tensor, read: SequenceInfo, cache: Cache | None = None) -> Tensor:
        """Logits (B, T, V) of a target, padded at its end, that attends to the memory in `read`."""
        sequence = replace(read, real=target >= 0)
        if cache is not None:
            sequence = cache.advance(target.shape[1], None, sequence)
        x = self.embed(self.target_embedding, target, sequence)
        x = through(self.decoder, self.decoder_norm, x, sequence, cache)
        if self.options.logit_scale != 1.0:
            x = x * self.options.logit_scale
        y: Tensor = self.head(x)
        return y

    def new_cache(self, batch: int, max_len: int | None = None) -> Cache:
        """An empty cache for each of the decoder's blocks."""
        return new_cache(self.decoder, batch, max_len or self.max_len)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Logits of the token after each target token."""
        return self.decode(target, self.encode(source))

    def generator(self, source: Tensor | None = None) -> ConditionedDecoder:
        """The decoder bound to these sources (B, S)."""
        assert source is not None
        return ConditionedDecoder(self, source)


class ConditionedDecoder:
    """A decoder conditioned on its sources, with the interface of a decoder alone."""

    def __init__(self, model: Seq2Seq, source: Tensor) -> None:
        self.model, self.limit = model, model.limit
        with torch.no_grad():
            self.read = model.eval().encode(source)

    def eval(self) -> None:
        """Nothing to do: it is in evaluation mode."""

    def new_cache(self, batch: int, max_len: int | None = None) -> Cache:
        """An empty cache with the encoded sources."""
        return replace(self.model.new_cache(batch, max_len), memory=self.read)

    def __call__(
        self, tokens: Tensor, cache: Cache | None = None, segments: Tensor | None = None
    ) -> Tensor:
        """Logits (B, T, V) of tokens that continue the cache."""
        return self.model.decode(tokens, self.read if cache is None else cache.memory, cache)
