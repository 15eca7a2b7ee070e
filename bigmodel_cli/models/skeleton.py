"""What skeletons share: options, embedding of tokens, the way through blocks, limits of length."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, Field

from bigmodel_cli.config import Count, DatasetInfo
from bigmodel_cli.errors import Faults
from bigmodel_cli.lazy import Module, Tensor, nn
from bigmodel_cli.models.base import AnyModelOptions, Model
from bigmodel_cli.models.block import MOST_BLOCKS, Block, BlockOptions, joined, written_out
from bigmodel_cli.models.init import UNLIMITED, Cache
from bigmodel_cli.parts.context import SequenceInfo
from bigmodel_cli.parts.contract import is_limited, looks_ahead
from bigmodel_cli.parts.dropout import dropout
from bigmodel_cli.roles import OUTER, Role


def _bounded(blocks: list[BlockOptions]) -> list[BlockOptions]:
    """Raise `ValueError` for an absurd number of blocks."""
    total = sum(block.repeat for block in blocks)
    if total > MOST_BLOCKS:
        raise ValueError(f"{total:,} blocks; at most {MOST_BLOCKS:,}")
    return blocks


Blocks = Annotated[list[BlockOptions], Field(min_length=1), AfterValidator(_bounded)]


class SkeletonOptions(AnyModelOptions):
    """Options of a model made of blocks of parts around one residual stream."""

    stacks: ClassVar[tuple[str, ...]] = ("blocks",)
    dim: Count = Field(description="width of the residual stream (C)")

    def one_by_one(self, stack: str) -> list[dict[str, Any]]:
        return [block.model_dump(mode="json") for block in written_out(dict(self)[stack])]

    def with_layers(self, taken: Mapping[str, Sequence[int]]) -> AnyModelOptions:
        chosen = {}
        for stack, numbers in taken.items():
            every = written_out(dict(self)[stack])
            chosen[stack] = joined([every[number] for number in numbers])
        found = self.model_copy(update=chosen)
        type(self).model_validate(found.model_dump(mode="json"))
        return found

    def width(self) -> int:
        return self.dim


class Skeleton(Model):
    """Base of models made of blocks; its last layer is `head`."""

    stacks: ClassVar[tuple[str, ...]] = ("blocks",)
    options: Any
    position: Module | None

    def weight_roles(self) -> dict[str, Role]:
        """The logits' layer is the last one."""
        return {"head.weight": OUTER}

    def last_layers(self) -> tuple[str, ...]:
        return ("norm", *self.output_layers())

    def parts(self) -> dict[str, Module]:
        return {
            f"{stack}.{number}.{slot}": getattr(block, slot)
            for stack in self.stacks
            for number, block in enumerate(getattr(self, stack))
            for slot in block.filled()
        }

    def output_layers(self) -> tuple[str, ...]:
        return ("head",)

    def recompute(self) -> None:
        for module in self.modules():
            if isinstance(module, Block):
                module.recomputes = True

    def answer_remark(self) -> str | None:
        if not any(block.is_post for block in self.answer_layers()):
            return None
        return (
            "each block normalises the stream (placement: post), so an earlier one is on another"
            " scale than the head was trained on: of early layers take the order more than the"
            " probabilities"
        )

    def embed(
        self, table: Module, tokens: Tensor, position: Module | None, sequence: SequenceInfo
    ) -> Tensor:
        """(B, T) -> (B, T, C)   the tokens' vectors in the table, with their positions."""
        x = table(tokens.clamp(min=0))
        scale = self.options.scale_embeddings
        if scale:
            x = x * (math.sqrt(self.options.dim) if scale is True else scale)
        return self.placed(x, position, sequence)

    def placed(self, x: Tensor, position: Module | None, sequence: SequenceInfo) -> Tensor:
        """(B, T, C) -> (B, T, C)   with their positions, and dropout."""
        x = x if position is None else position(x, sequence)
        return dropout(x, self.options.dropout, self.training)


def through(
    blocks: nn.ModuleList,
    norm: Module | None,
    x: Tensor,
    sequence: SequenceInfo,
    cache: Cache | None = None,
) -> Tensor:
    """(B, T, C) -> (B, T, C)   through the blocks and the norm, if any."""
    for index, block in enumerate(blocks):
        x = block(x, sequence, cache.blocks[index] if cache is not None else None)
    return x if norm is None else norm(x)


def check_causal(path: str, blocks: list[BlockOptions]) -> None:
    """Raise `ValueError` where a decoder's block, below `path`, lets positions see later ones."""
    for index, block in enumerate(blocks):
        if block.mixer is not None and looks_ahead(block.mixer):
            raise ValueError(
                f"{path}.{index}.mixer.causal: false lets a position see the tokens after it, which"
                " a decoder is to foretell; leave it out"
            )


def max_generation_length(model: Module, position: Module | None, max_len: int) -> int:
    """The most positions of generation: `max_len` where a part has a table or a cache of it."""
    return max_len if is_limited(model) or position is not None else UNLIMITED


def vocab_and_length(
    vocab_size: int | None, max_len: int | None, info: DatasetInfo, kind: str, faults: Faults
) -> tuple[int, int]:
    """(vocabulary, longest sequence) of a model of tokens, checked against the data.

    1 for what is not known, which is then among the faults.
    """
    vocab, length = vocab_size or info.vocab_size, max_len or info.context
    with faults.under("model.vocab_size"):
        if vocab is None:
            raise ValueError(f"the data has no tokenizer to take it from; {kind} reads tokens")
        if info.vocab_size is not None and vocab < info.vocab_size:
            raise ValueError(
                f"{vocab} is less than the tokenizer's {info.vocab_size}; give --set"
                " model.vocab_size=null"
            )
    with faults.under("model.max_len"):
        if length is None:
            raise ValueError("missing, and the data has no context to take it from")
        if info.context is not None and length < info.context:
            raise ValueError(
                f"{length} is shorter than the data's context {info.context}; give --set"
                " model.max_len=null"
            )
    return vocab or 1, length or 1
