"""How the weights of a skeleton start, and the cache of its blocks; what decoder, encoder, seq2seq
and vit have in common.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.errors import Faults
from bigmodel_cli.lazy import Module, Tensor, nn, torch
from bigmodel_cli.parts.context import SINGLE_DOCUMENT, SequenceInfo
from bigmodel_cli.parts.contract import is_limited, selected
from bigmodel_cli.parts.matrices import own_matrices

UNLIMITED = 1 << 62
RESIDUAL_OUTPUTS = (".mixer.out", ".cross.out", ".ffn.down", ".ffn.shared.down")


def init_normal(model: Module, std: float, stacks: Mapping[str, Iterable[Any]]) -> None:
    """GPT-2's start (Radford et al. 2019): normal of one deviation, zero biases, and what closes a
    slot scaled down.

    The last layer of each slot is divided by the square root of the slots of its stack of blocks,
    two a block as a rule, so that the stream's variance does not grow with depth; `stacks` names
    the stacks of the model, none for no scaling, as in BERT (Devlin et al. 2019, whose code cuts
    the normal off at two deviations; transformers' does not). Tables of positions start as other
    embeddings do (OpenAI's code: half as wide). Experts start as a dense network; what a part drew
    for weights of its own kind (decays, short convolutions, lambdas) stays.
    """
    steps = {
        f"{name}.": sum(len(block.filled()) for block in blocks) for name, blocks in stacks.items()
    }
    for name, module in model.named_modules():
        depth = next((count for stack, count in steps.items() if name.startswith(stack)), 1)
        for weight, pieces in own_matrices(module).items():
            for piece in pieces:
                nn.init.normal_(
                    piece,
                    std=(
                        std / math.sqrt(depth)
                        if f"{name}.{weight}".endswith(RESIDUAL_OUTPUTS)
                        else std
                    ),
                )
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(
                module.weight,
                std=std / math.sqrt(depth) if name.endswith(RESIDUAL_OUTPUTS) else std,
            )
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


def init_xavier(model: Module, dim: int) -> None:
    """The original Transformer's start: Glorot's uniform for matrices, embeddings of deviation 1 /
    sqrt(C), zero biases.

    Vaswani et al. 2017 scale embeddings by sqrt(C); their code (tensor2tensor) draws them so, and
    matrices after Glorot, those of queries, keys and values each by itself, as also experts here.
    The matrix of the logits is an embedding too, shared or not.
    """
    glorot(model)
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) or name == "head":
            nn.init.normal_(module.weight, std=dim**-0.5)


def glorot(model: Module) -> None:
    """Glorot's uniform for every matrix of linear layers and experts, zero biases (Glorot and
    Bengio 2010).

    Within +-sqrt(6 / (inputs + outputs)), of each matrix where a layer computes several.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in model.modules():  # anew, after the layers that they are in
        for pieces in own_matrices(module).values():
            for piece in pieces:
                bound = math.sqrt(6 / (piece.shape[-1] + piece.shape[:-1].numel()))
                nn.init.uniform_(piece, -bound, bound)


@dataclass
class Cache:
    """What the blocks keep of the positions so far: a dictionary of slots for each block, and the
    segments (B, length).

    `memory` is what an encoder-decoder has read.
    """

    blocks: list[dict[str, Any]]
    length: int = 0
    segments: Tensor | None = None
    memory: SequenceInfo = SINGLE_DOCUMENT

    def advance(self, count: int, segments: Tensor | None, sequence: SequenceInfo) -> SequenceInfo:
        """Take in `count` positions, whose segments (B, count) are those of the last position where
        None; what the blocks are told.

        `sequence` says what is beside them (a memory), and which of them are real.
        """
        start = self.length
        if self.segments is None:
            self.segments = segments
        else:
            new = self.segments[:, -1:].expand(-1, count) if segments is None else segments
            self.segments = torch.cat((self.segments, new), 1)
        self.length = start + count
        return SequenceInfo(
            start, self.segments, sequence.memory, sequence.memory_mask, sequence.real
        )

    def select(self, rows: Tensor, sources: Tensor | None = None) -> None:
        """Keep these rows, in this order (some perhaps several times), and of what was read from a
        memory these sources.

        Rows may be several to a source, as the hypotheses of a beam search are: then the memory's
        keys and values are kept once.
        """
        for block in self.blocks:
            for slot, kept in block.items():
                index = sources if slot == "cross" else rows
                if index is not None:
                    block[slot] = selected(kept, index)
        if self.segments is not None:
            self.segments = self.segments[rows]
        if sources is not None:
            kept = (
                None if t is None else t[sources]
                for t in (self.memory.memory, self.memory.memory_mask)
            )
            self.memory = SequenceInfo(0, None, *kept)


def new_cache(blocks: nn.ModuleList, batch: int, max_len: int) -> Cache:
    """An empty cache for these blocks."""
    return Cache([block.new_cache(batch, max_len) for block in blocks])  # type: ignore[operator]


def max_generation_length(model: Module, position: Module | None, max_len: int) -> int:
    """How many positions a model can generate over: `max_len` where a part has a table or a cache
    of that size.
    """
    return max_len if is_limited(model) or position is not None else UNLIMITED


def vocab_and_length(
    vocab_size: int | None, max_len: int | None, info: DatasetInfo, kind: str, faults: Faults
) -> tuple[int, int]:
    """(vocabulary, longest sequence) of a model that reads tokens, checked against the data; of
    what is not known, 1.
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
