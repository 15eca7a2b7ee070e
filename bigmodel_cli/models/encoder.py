"""Encoders: every position sees all others. BERT is a spec of it.

With a frontend it reads audio frames, and labels or transcribes them.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from bigmodel_cli.config import Count, DatasetInfo, Natural, Positive, Probability
from bigmodel_cli.errors import Faults, SpecError
from bigmodel_cli.lazy import Tensor, nn, torch
from bigmodel_cli.models.any_encoder import AnyEncoder
from bigmodel_cli.models.frontend import ConvFrontendOptions, frames_of
from bigmodel_cli.models.heads import PoolerOptions, TokenHead
from bigmodel_cli.models.skeleton import Blocks, SkeletonOptions, vocab_and_length
from bigmodel_cli.models.vocabulary import TableShare, by_vocabulary
from bigmodel_cli.parts import Norm, Position
from bigmodel_cli.parts.norm import LayerNormOptions
from bigmodel_cli.parts.position import NoPositionOptions
from bigmodel_cli.parts.row_share import share_of_row
from bigmodel_cli.shares import Shares, Team


class EncoderOptions(SkeletonOptions):
    """An encoder: embedding, position, bidirectional blocks; logits per position, or of a label."""

    type: Literal["encoder"] = "encoder"
    outputs: ClassVar = ("tokens", "labels", "transcript", "tags")
    two_sided = "model.blocks"
    blocks: Blocks = Field(description="the blocks, in order")
    frontend: ConvFrontendOptions | None = Field(
        None, description="how frames of sound become vectors; none for data of tokens"
    )
    position: Position = Field(NoPositionOptions(), description="what is added to the embeddings")
    embedding_norm: Norm | None = Field(None, description="of the embeddings, as in BERT")
    norm: Norm | None = Field(
        LayerNormOptions(), description="after the blocks; null for none (post-norm blocks)"
    )
    token_types: Natural = Field(
        0, description="learned vectors for kinds of tokens, as BERT's two sentences; 0 for none"
    )
    pool: Literal["cls", "mean"] = Field(
        "cls", description="what a label is read from: the first position, or the mean"
    )
    pooler: bool | PoolerOptions = Field(
        False, description="a dense layer before the label; true: with tanh, as in BERT"
    )
    mask_token: Natural | Literal["none"] | None = Field(
        None,
        description=(
            "token that takes a hidden one's place, as in BERT; none: tokens cannot be hidden; left"
            " out: a learned vector does"
        ),
    )
    head_bias: bool = Field(
        True, description="of the dense layer before the logits of tokens (ModernBERT: false)"
    )
    max_len: Count | None = Field(
        None, description="longest sequence; the data's context when left out"
    )
    vocab_size: Count | None = Field(None, description="tokens (V); the tokenizer's when left out")
    dropout: Probability = Field(0.0, description="of the embeddings, and before a label")
    head_dropout: Probability | None = Field(
        None,
        description="before a label, and before tags; left out: as dropout, and not before tags",
    )
    init_std: Positive | None = Field(
        None,
        description=(
            "deviation of the first weights; 1 / sqrt(dim) when left out (BERT: 0.02, at a width of"
            " 768)"
        ),
    )

    def pooling(self, info: DatasetInfo) -> PoolerOptions | None:
        """The layer before the logits for this data, if any."""
        if not self.pooler or not info.outputs or info.spelling:
            return None
        pooler = PoolerOptions() if self.pooler is True else self.pooler
        return pooler if pooler.tags or not info.tagged else None

    @model_validator(mode="after")
    def _bounded(self) -> EncoderOptions:
        if any(block.cross is not None for block in self.blocks):
            raise ValueError(
                "blocks: an encoder has no memory to read; cross belongs to model.type: seq2seq"
            )
        return self

    def build(self, info: DatasetInfo) -> AnyEncoder:
        return (Encoder if self.frontend is None and info.frame_width is None else FrameEncoder)(
            self, info
        )


class Encoder(AnyEncoder):
    """(B, T) tokens, padded with -1 -> (B, T, V) logits of each token, or (B, classes).

    For data with tags: (B, T, classes) logits of each token's tag. The logits of tokens are BERT's
    (Devlin et al. 2019): a dense layer, GELU, norm, and the tied embedding.
    """

    inputs = ("tokens", "types")

    @property
    def context_fault(self) -> str:
        return "head_dropout: is drawn for hidden tokens" if self.options.head_dropout else ""

    def __init__(self, options: EncoderOptions, info: DatasetInfo) -> None:
        super().__init__(options, info)
        if self.mask is not None:
            nn.init.normal_(self.mask, std=self.std)
        if isinstance(self.head, TokenHead):
            self.head.logits.weight = self.embedding.weight

    def add_inputs(self, options: EncoderOptions, info: DatasetInfo, faults: Faults) -> int:
        vocab, self.max_len = vocab_and_length(
            options.vocab_size, options.max_len, info, "an encoder", faults
        )
        self.embedding: nn.Embedding | TableShare = nn.Embedding(vocab, options.dim)
        own = options.mask_token is None  # replaces a hidden token's embedding
        self.mask = nn.Parameter(torch.zeros(options.dim)) if own else None
        if isinstance(options.mask_token, int) and 1 < vocab <= options.mask_token:
            fault = f"{options.mask_token} is not one of {vocab:,} tokens"
            faults.found.append(("model.mask_token", fault))
        self.types = nn.Embedding(options.token_types, options.dim) if options.token_types else None
        return vocab

    def shares(self) -> Shares:
        return by_vocabulary(self, {"embedding": self.embedding.num_embeddings})

    def narrow(self, team: Team) -> None:
        self.team, self.embedding = team, TableShare(self.embedding, team)

    def embeddings(self, tokens: Tensor, types: Tensor | None, masked: Tensor | None) -> Tensor:
        """(B, T) tokens -> (B, T, C)   embeddings, the mask's where `masked` is True.

        Raises `SpecError` where a token is hidden and there is nothing to hide it by.
        """
        token = self.options.mask_token
        if masked is not None and token == "none":
            raise SpecError(
                "model.mask_token: none: the checkpoint's tokenizer has no token that stands for a"
                " hidden one, and task.type: masked_lm hides tokens; give its number"
            )
        if masked is not None and self.mask is None:
            tokens = torch.where(masked, token, tokens)
        x: Tensor = self.embedding(tokens.clamp(min=0))  # (B, T, C)
        if masked is not None and self.mask is not None:
            x = torch.where(masked[..., None], self.mask.to(x.dtype), x)
        if self.types is not None:
            if types is not None and self.types.num_embeddings < 2:
                raise SpecError(
                    "model.token_types: the data has pairs of texts; set 2, or 0 for none"
                )
            x = x + self.types(torch.zeros_like(tokens) if types is None else types.clamp(min=0))
        return x

    def features(
        self, tokens: Tensor, types: Tensor | None = None, masked: Tensor | None = None
    ) -> Tensor:
        """(B, T) tokens -> (B, T, C)   the blocks' output; hidden where `masked` is True.

        Where rows are divided (parts/row_share.py), of this process's positions.
        """
        share, real = share_of_row(tokens.shape[1]), tokens >= 0
        if share is None:
            return self.encode(self.embeddings(tokens, types, masked), real)
        types, masked = (x if x is None else share.own(x) for x in (types, masked))
        with share.drawing():
            return self.encode(self.embeddings(share.tokens(tokens), types, masked), real, share)

    def row_vectors(self, *arguments: Tensor, pool: str | None = None) -> Tensor:
        """(B, C) of (tokens, types): the mean over what is not padding, or the first position."""
        return self.pooled(self.features(*arguments), arguments[0] >= 0, pool)

    def forward(
        self,
        tokens: Tensor,
        types: Tensor | None = None,
        masked: Tensor | None = None,
        at: Tensor | None = None,
    ) -> Tensor:
        """Logits of each position's token (N, V), or of the label.

        With `at`, of those N positions alone, where rows are divided among this process's. `types`
        (B, T) are the token types.
        """
        return self.logits(self.features(tokens, types, masked), tokens >= 0, at)


class FrameEncoder(AnyEncoder):
    """(B, T, width) frames, lengths (B,) -> (B, classes), or (B, T', classes + 1) logits of units.

    The units are those of a transcript, the blank last.
    """

    inputs = ("frames", "lengths")

    def add_inputs(self, options: EncoderOptions, info: DatasetInfo, faults: Faults) -> int:
        """Build the frontend; returns 0, since there are no tokens.

        Raises `OptionError` where model and data do not agree on what is read.
        """
        tokens = bool(options.token_types or options.vocab_size is not None)
        frontend, length = frames_of(options.frontend, options.max_len, tokens, info)
        self.frontend = frontend.build(info.frame_width or 1, options.dim)
        self.stride = frontend.stride
        self.max_len = -(-length // self.stride)
        return 0

    def out_lengths(self, lengths: Tensor) -> Tensor:
        """(B,) frames in each row -> (B,) vectors."""
        return self.frontend.lengths(lengths)

    def forward(self, frames: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Logits of each row's label, or of each vector's unit; `lengths` (B,) are real frames."""
        x = self.frontend(frames, lengths)  # (B, T', C)
        place = torch.arange(x.shape[1], device=x.device).expand(x.shape[:2])
        real = place >= 0 if lengths is None else place < self.out_lengths(lengths)[:, None]
        return self.logits(self.encode(x, real), real)
