"""Encoder-decoders: a source is encoded as a whole, a target is generated token by token.

The Transformer of 2017 is a spec of it; with a frontend, which reads frames of sound, so is
Whisper (Radford et al. 2022).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from bigmodel_cli.config import Count, DatasetInfo, Positive, Probability
from bigmodel_cli.errors import Faults
from bigmodel_cli.lazy import Module, Tensor, nn, torch
from bigmodel_cli.logits import logits_of
from bigmodel_cli.models.block import build_blocks
from bigmodel_cli.models.conditioned import ConditionedDecoder
from bigmodel_cli.models.frontend import (
    ConvFrontendOptions,
    checked_frontend,
    longest_source,
)
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
from bigmodel_cli.models.vocabulary import LogitsShare, TableShare, by_vocabulary
from bigmodel_cli.parts import Norm, Position
from bigmodel_cli.parts.context import SequenceInfo, padding_segments
from bigmodel_cli.parts.position import SinusoidalOptions
from bigmodel_cli.shares import Shares, Team


class Seq2SeqOptions(SkeletonOptions):
    """An encoder, and a decoder that reads it through cross-attention; post-norm by default."""

    type: Literal["seq2seq"] = "seq2seq"
    stacks: ClassVar[tuple[str, ...]] = ("encoder", "decoder")
    outputs: ClassVar = ("target",)
    two_sided = "model.encoder"
    frontend: ConvFrontendOptions | None = Field(
        None, description="how frames of sound become vectors; none for sources of tokens"
    )
    encoder: Blocks = Field(description="the encoder's blocks")
    decoder: Blocks = Field(
        description="the decoder's blocks, with cross: in those that read the source"
    )
    position: Position = Field(
        SinusoidalOptions(), description="what is added to the embeddings on both sides"
    )
    decoder_position: Position | None = Field(
        None, description="the decoder's own; left out: as position"
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
        None,
        description="longest source or target, with a frontend target; the data's when left out",
    )
    source_len: Count | None = Field(
        None, description="with a frontend, most frames of a source; the data's when left out"
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
        if self.frontend is None and self.source_len is not None:
            raise ValueError("source_len: it counts frames, which a frontend reads; give max_len")
        if self.frontend is not None and self.share_embeddings == "inputs":
            raise ValueError(
                "share_embeddings: inputs: with a frontend there are no embeddings of a source"
            )
        if any(block.cross is not None for block in self.encoder):
            raise ValueError(
                "encoder: it has no memory to read; cross belongs to the decoder's blocks"
            )
        if not any(block.cross is not None for block in self.decoder):
            raise ValueError("decoder: no block has cross:, so the source would never be read")
        check_causal("decoder", self.decoder)
        return self

    def build(self, info: DatasetInfo) -> AnySeq2Seq:
        return (Seq2Seq if self.frontend is None and info.frame_width is None else FramesToText)(
            self, info
        )


class AnySeq2Seq(Skeleton):
    """A source, target (B, T), padded with -1 -> (B, T, V) logits (Vaswani et al. 2017)."""

    can_generate = True
    is_encoder_decoder = True
    stacks = ("encoder", "decoder")

    def __init__(self, options: Seq2SeqOptions, info: DatasetInfo) -> None:
        super().__init__()
        faults = Faults()
        written = replace(info, context=info.text_context) if info.frame_width else info
        vocab, self.max_len = vocab_and_length(
            options.vocab_size, options.max_len, written, "an encoder-decoder", faults
        )
        self.options, dim = options, options.dim
        source_len = self.add_source(options, info, vocab, faults)
        self.target_embedding: nn.Embedding | TableShare = nn.Embedding(vocab, dim)
        self.position = faults.build("model.position", options.position, dim, source_len)
        self.own_position = options.decoder_position is not None or options.frontend is not None
        if self.own_position:
            where = "position" if options.decoder_position is None else "decoder_position"
            position = options.decoder_position or options.position
            self.decoder_position = faults.build(f"model.{where}", position, dim, self.max_len)
        with faults.under("model.encoder"):
            self.encoder = build_blocks(options.encoder, dim, source_len, causal=False)
        with faults.under("model.decoder"):
            self.decoder = build_blocks(options.decoder, dim, self.max_len, causal=True)
        self.encoder_norm = faults.build("model.norm", options.norm, dim)
        self.decoder_norm = faults.build("model.norm", options.norm, dim)
        faults.check()
        self.head: nn.Linear | LogitsShare = nn.Linear(dim, vocab, bias=options.logit_bias)
        self.limit = max_generation_length(self, self.position_of_target(), self.max_len)
        self.init_weights(options)
        self.tie(options, info)

    def add_source(
        self, options: Seq2SeqOptions, info: DatasetInfo, vocab: int, faults: Faults
    ) -> int:
        """Build the input layer of the source; returns the most positions of the encoder."""
        raise NotImplementedError

    def init_weights(self, options: Seq2SeqOptions) -> None:
        """Draw the first weights."""
        if options.init == "xavier":
            init_xavier(self, options.dim)
        else:
            stacks = {"encoder": self.encoder, "decoder": self.decoder}
            init_normal(self, options.init_std or options.dim**-0.5, stacks)

    def tie(self, options: Seq2SeqOptions, info: DatasetInfo) -> None:
        """Let embeddings and logits share their matrix as the options say."""
        if options.share_embeddings is True:
            self.head.weight = self.target_embedding.weight

    def shares_of(self, sources: Mapping[str, int]) -> Shares:
        """By tokens of the vocabulary, also that of the named tables."""
        vocab = self.head.out_features
        return by_vocabulary(self, {"target_embedding": vocab, "head": vocab, **sources})

    def narrow(self, team: Team) -> None:
        """Go on with this process's rows of embeddings and logits."""
        vocab, self.team = self.target_embedding.num_embeddings, team
        self.target_embedding = TableShare(self.target_embedding, team)
        self.head = LogitsShare(self.head, vocab, team)

    def position_of_target(self) -> Module | None:
        """What is added to the target's embeddings."""
        return self.decoder_position if self.own_position else self.position

    def last_layers(self) -> tuple[str, ...]:
        return ("decoder_norm", *self.output_layers())

    def answer_layers(self) -> list[Module]:
        return list(self.decoder)

    def source(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        return tuple(batch[name] for name in self.inputs if name != "target" and name in batch)

    def encode(self, source: Tensor, lengths: Tensor | None = None) -> SequenceInfo:
        """The memory (B, S, C) and which of its positions are real."""
        raise NotImplementedError

    def encoded(self, x: Tensor, sequence: SequenceInfo) -> SequenceInfo:
        """The same of what goes into the encoder's blocks (B, S, C)."""
        x = through(self.encoder, self.encoder_norm, x, sequence)
        mask = None if sequence.segment_ids is None else sequence.real
        return SequenceInfo(memory=x, memory_mask=mask)

    def decode(
        self, target: Tensor, read: SequenceInfo, cache: Cache | None = None, last: bool = False
    ) -> Tensor:
        """Logits (B, T, V), or of the `last` position alone, of a target, padded at its end, that
        attends to the memory in `read`.
        """
        sequence = replace(read, real=target >= 0)
        if cache is not None:
            sequence = cache.advance(target.shape[1], None, sequence)
        x = self.embed(self.target_embedding, target, self.position_of_target(), sequence)
        x = through(self.decoder, self.decoder_norm, x, sequence, cache)
        if last:
            x = x[:, -1:]
        if self.options.logit_scale != 1.0:
            x = x * self.options.logit_scale
        y: Tensor = logits_of(x, self.head, self.head.out_features)
        return y

    def new_cache(self, batch: int, max_len: int | None = None) -> Cache:
        """An empty cache for each of the decoder's blocks."""
        return new_cache(self.decoder, batch, max_len or self.max_len)

    def forward(self, source: Tensor, target: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Logits of the token after each target token; `lengths` (B,) are those of frames."""
        return self.decode(target, self.encode(source, lengths))

    def generator(self, *source: Tensor) -> ConditionedDecoder:
        """The decoder bound to these sources (B, ...)."""
        return ConditionedDecoder(self, source)


class Seq2Seq(AnySeq2Seq):
    """source (B, S) tokens, target (B, T), padded with -1 -> (B, T, V) logits."""

    inputs = ("source", "target")

    def add_source(
        self, options: Seq2SeqOptions, info: DatasetInfo, vocab: int, faults: Faults
    ) -> int:
        """Build the source's embeddings."""
        self.source_embedding: nn.Embedding | TableShare
        self.source_embedding = nn.Embedding(info.source_vocab_size or vocab, options.dim)
        return self.max_len

    def shares(self) -> Shares:
        """By tokens of the vocabularies."""
        return self.shares_of({"source_embedding": self.source_embedding.num_embeddings})

    def narrow(self, team: Team) -> None:
        super().narrow(team)
        self.source_embedding = TableShare(self.source_embedding, team)

    def tie(self, options: Seq2SeqOptions, info: DatasetInfo) -> None:
        if options.share_embeddings and info.source_vocab_size is None:
            self.target_embedding.weight = self.source_embedding.weight
        super().tie(options, info)

    def encode(self, source: Tensor, lengths: Tensor | None = None) -> SequenceInfo:
        real = source >= 0
        sequence = SequenceInfo(0, padding_segments(real), real=real)
        x = self.embed(self.source_embedding, source, self.position, sequence)
        return self.encoded(x, sequence)


class FramesToText(AnySeq2Seq):
    """frames (B, S, width), target (B, T), lengths (B,) -> (B, T, V) logits."""

    inputs = ("frames", "target", "lengths")

    def shares(self) -> Shares:
        """By tokens of the vocabulary."""
        return self.shares_of({})

    def add_source(
        self, options: Seq2SeqOptions, info: DatasetInfo, vocab: int, faults: Faults
    ) -> int:
        """Build the frontend. Raises `OptionError` where the data has no frames, or longer ones."""
        frontend = checked_frontend(options.frontend, info)
        length = longest_source("model.source_len", options.source_len, info)
        self.frontend = frontend.build(info.frame_width or 1, options.dim)
        return -(-length // self.frontend.stride)

    def encode(self, source: Tensor, lengths: Tensor | None = None) -> SequenceInfo:
        x = self.frontend(source, lengths)  # (B, S', C)
        place = torch.arange(x.shape[1], device=x.device).expand(x.shape[:2])
        real = place >= 0
        if lengths is not None:
            real = place < self.frontend.lengths(lengths)[:, None]
        sequence = SequenceInfo(0, padding_segments(real), real=real)
        return self.encoded(self.placed(x, self.position, sequence), sequence)
