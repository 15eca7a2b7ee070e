"""Decoder-only language models: tokens in, logits of the next token out. GPT-2 and Llama are specs of it."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from bigmodel_cli.config import Count, Facts, Options, Positive, Probability
from bigmodel_cli.errors import SpecError
from bigmodel_cli.lazy import F, Module, Tensor, nn
from bigmodel_cli.models.block import MOST_BLOCKS, Block, BlockOptions
from bigmodel_cli.parts import Norm, Position
from bigmodel_cli.parts.norm import LayerNormOptions
from bigmodel_cli.parts.position import NoPositionOptions


class DecoderOptions(Options):
    """A decoder: embedding, position, blocks of parts, norm, logits."""

    type: Literal["decoder"] = "decoder"
    dim: Count = Field(description="width of the residual stream (C)")
    blocks: Annotated[list[BlockOptions], Field(min_length=1)] = Field(description="the blocks, in order")
    position: Position = Field(NoPositionOptions(), description="what is added to the embeddings")
    norm: Norm | None = Field(LayerNormOptions(), description="before the logits; null for none")
    max_len: Count | None = Field(None, description="longest sequence; the data's context when left out")
    vocab_size: Count | None = Field(None, description="logits (V); the tokenizer's when left out")
    tie_embeddings: bool = Field(True, description="the logits' matrix is the embedding's")
    dropout: Probability = Field(0.0, description="of the embeddings")
    init_std: Positive = Field(0.02, description="deviation of the first weights; GPT-2's suits a width of 768")

    @model_validator(mode="after")
    def _bounded(self) -> DecoderOptions:
        total = sum(block.repeat for block in self.blocks)
        if total > MOST_BLOCKS:
            raise ValueError(f"{total:,} blocks; at most {MOST_BLOCKS:,}")
        return self


class Decoder(Module):
    """(B, T) tokens -> (B, T, V) logits   (Radford et al. 2019)."""

    def __init__(self, options: DecoderOptions, facts: Facts) -> None:
        super().__init__()
        vocab, self.max_len = _sizes(options, facts)
        self.dropout = options.dropout
        self.embedding = nn.Embedding(vocab, options.dim)
        self.position = options.position.build(options.dim, self.max_len)
        self.blocks = nn.ModuleList()
        for index, block in enumerate(options.blocks):
            for _ in range(block.repeat):
                try:
                    self.blocks.append(Block(block, options.dim, self.max_len))
                except ValueError as error:
                    raise SpecError(f"model.blocks.{index}.{error}") from None
        self.norm = options.norm.build(options.dim) if options.norm is not None else None
        self.head = nn.Linear(options.dim, vocab, bias=False)
        if options.tie_embeddings:
            self.head.weight = self.embedding.weight
        self.init_weights(options.init_std)

    def init_weights(self, std: float) -> None:
        """GPT-2's start (Radford et al. 2019): normal of one deviation, zero biases, and what closes a slot scaled down.

        The last layer of each slot is divided by sqrt(2 x blocks), so that the stream's variance does not grow with depth.
        """
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                closes = name.endswith((".mixer.out", ".ffn.down"))
                nn.init.normal_(module.weight, std=std / math.sqrt(2 * len(self.blocks)) if closes else std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def head_names(self) -> tuple[str, ...]:
        """Prefixes of the weights that make the logits."""
        return ("head",)

    def new_cache(self, batch: int, max_len: int | None = None) -> list[Any]:
        """An empty cache for each block's mixer."""
        length = max_len or self.max_len
        mixers = [block.mixer for block in self.blocks]
        return [None if mixer is None else mixer.new_cache(batch, length) for mixer in mixers]  # type: ignore[union-attr, operator]

    def forward(self, tokens: Tensor, cache: list[Any] | None = None) -> Tensor:
        """Logits for every position; with a cache, `tokens` are those that follow what is in it."""
        start = next((c.length for c in cache if c is not None), 0) if cache is not None else 0
        if start + tokens.shape[1] > self.max_len:
            raise ValueError(f"{start + tokens.shape[1]} tokens; this model takes at most {self.max_len}")
        x = self.embedding(tokens)  # (B, T, C)
        if self.position is not None:
            x = self.position(x, start)
        x = F.dropout(x, self.dropout, self.training)
        for index, block in enumerate(self.blocks):
            x = block(x, cache[index] if cache is not None else None)
        if self.norm is not None:
            x = self.norm(x)
        logits: Tensor = self.head(x)  # (B, T, V)
        return logits


def _sizes(options: DecoderOptions, facts: Facts) -> tuple[int, int]:
    """(vocabulary, longest sequence), checked against the data."""
    vocab = options.vocab_size or facts.vocab_size
    if vocab is None:
        raise SpecError("model.vocab_size: the data has no tokenizer to take it from; a decoder reads tokens")
    if facts.vocab_size is not None and vocab < facts.vocab_size:
        raise SpecError(f"model.vocab_size: {vocab} is less than the tokenizer's {facts.vocab_size}")
    length = options.max_len or facts.context
    if length is None:
        raise SpecError("model.max_len: missing, and the data has no context to take it from")
    if facts.context is not None and length < facts.context:
        raise SpecError(f"model.max_len: {length} is shorter than the data's context {facts.context}")
    return vocab, length
