"""Weight initialisation and the generation cache, shared by the skeletons."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from bigmodel_cli.lazy import Module, Tensor, nn, torch
from bigmodel_cli.parts.context import SINGLE_DOCUMENT, SequenceInfo
from bigmodel_cli.parts.contract import selected
from bigmodel_cli.parts.matrices import own_matrices

UNLIMITED = 1 << 62
RESIDUAL_OUTPUTS = re.compile(
    r".*\.(mixer(\.mixers\.\d+)*\.out|cross\.out|ffn\.down|ffn\.shared\.down)"
)


def init_normal(model: Module, std: float, stacks: Mapping[str, Iterable[Any]]) -> None:
    """GPT-2's initialisation (Radford et al. 2019): normal, zero biases, scaled residual outputs.

    The last layer of each slot is divided by the square root of the number of slots in its stack of
    blocks, usually two per block, so that the residual stream's variance does not grow with depth.
    `stacks` names the model's stacks; without any there is no scaling, as in BERT (Devlin et al.
    2019, whose code truncates the normal at two deviations; transformers' does not). Position
    tables are drawn as other embeddings (OpenAI's code: half as wide), experts as a dense network.
    Parameters that a part initialises itself (decays, short convolutions, lambdas) are left
    unchanged. On the meta device there is nothing to draw, and many experts would take minutes.
    """
    if next(model.parameters()).is_meta:
        return
    steps = {
        f"{name}.": sum(len(block.filled()) for block in blocks) for name, blocks in stacks.items()
    }
    for name, module in model.named_modules():
        depth = next((count for stack, count in steps.items() if name.startswith(stack)), 1)
        weights = own_matrices(module)
        if isinstance(module, nn.Linear | nn.Embedding):
            weights[""] = [module.weight]
        for weight, pieces in weights.items():
            scaled = RESIDUAL_OUTPUTS.fullmatch(f"{name}.{weight}".removesuffix("."))
            for piece in pieces:
                nn.init.normal_(piece, std=std / math.sqrt(depth) if scaled else std)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


def init_xavier(model: Module, dim: int) -> None:
    """The original Transformer's initialisation: Glorot's uniform, embeddings of std 1 / sqrt(C).

    Biases are zero. Vaswani et al. 2017 scale embeddings by sqrt(C); their code (tensor2tensor)
    draws them so, and matrices after Glorot, those of queries, keys and values each by itself, as
    also experts here. The matrix of the logits is an embedding too, shared or not.
    """
    glorot(model)
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) or name == "head":
            nn.init.normal_(module.weight, std=dim**-0.5)


def glorot(model: Module) -> None:
    """Glorot's uniform for the matrices of linear layers and experts, zero biases.

    Glorot and Bengio 2010: within +-sqrt(6 / (inputs + outputs)), of each matrix where a layer
    holds several.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in model.modules():  # again, after the layers that they are in
        for pieces in own_matrices(module).values():
            for piece in pieces:
                bound = math.sqrt(6 / (piece.shape[-1] + piece.shape[:-1].numel()))
                nn.init.uniform_(piece, -bound, bound)


@dataclass
class Cache:
    """The generation cache: each block's slots by name, and the segment ids (B, length).

    `memory` is an encoder-decoder's encoded source.
    """

    blocks: list[dict[str, Any]]
    length: int = 0
    segments: Tensor | None = None
    memory: SequenceInfo = SINGLE_DOCUMENT

    def advance(self, count: int, segments: Tensor | None, sequence: SequenceInfo) -> SequenceInfo:
        """Add `count` positions; returns the blocks' `SequenceInfo`.

        `segments` (B, count) are those of the last position where None. `sequence` has the memory,
        and says which positions are real.
        """
        start, self.length = self.length, self.length + count
        if self.segments is None:
            self.segments = segments
        else:
            new = self.segments[:, -1:].expand(-1, count) if segments is None else segments
            self.segments = torch.cat((self.segments, new), 1)
        return SequenceInfo(
            start, self.segments, sequence.memory, sequence.memory_mask, sequence.real
        )

    def select(self, rows: Tensor, sources: Tensor | None = None) -> None:
        """Keep these rows, in this order (repeats allowed), and of the memory these sources.

        Several rows may share a source, as the hypotheses of a beam search do; the memory's keys
        and values are then kept once.
        """
        for block in self.blocks:
            for slot, kept in block.items():
                index = sources if slot == "cross" else rows
                if index is not None:
                    block[slot] = selected(kept, index)
        if self.segments is not None:
            self.segments = self.segments[rows]
        if sources is not None:
            both = (self.memory.memory, self.memory.memory_mask)
            self.memory = SequenceInfo(0, None, *(None if t is None else t[sources] for t in both))


def new_cache(blocks: nn.ModuleList, batch: int, max_len: int) -> Cache:
    """An empty cache for these blocks."""
    return Cache([block.new_cache(batch, max_len) for block in blocks])  # type: ignore[operator]
