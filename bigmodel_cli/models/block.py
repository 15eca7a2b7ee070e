"""A block: a residual stream through slots, each filled by a part."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from bigmodel_cli.config import Options, Probability
from bigmodel_cli.lazy import F, Module, Tensor
from bigmodel_cli.parts import FFN, Mixer, Norm
from bigmodel_cli.parts.norm import LayerNormOptions

MOST_BLOCKS = 10_000


class BlockOptions(Options):
    """One block, or `repeat` equal ones: x + mixer(norm(x)), then x + ffn(norm(x))."""

    repeat: Annotated[int, Field(gt=0, le=MOST_BLOCKS)] = Field(1, description="how many such blocks follow each other")
    mixer: Mixer | None = Field(None, description="what moves information between positions")
    ffn: FFN | None = Field(None, description="what computes at each position")
    norm: Norm = Field(LayerNormOptions(), description="normalisation of every slot")
    placement: Literal["pre", "post"] = Field(
        "pre", description="pre: x + f(norm(x)); post: norm(x + f(x)), as in the original Transformer"
    )
    dropout: Probability = Field(0.0, description="of what each slot adds to the stream")


class Block(Module):
    """(B, T, C) -> (B, T, C)   pre (Xiong et al. 2020): x + f(norm(x)); post (Vaswani et al. 2017): norm(x + f(x))."""

    def __init__(self, options: BlockOptions, dim: int, max_len: int) -> None:
        super().__init__()
        self.pre, self.dropout = options.placement == "pre", options.dropout
        self.mixer = _build("mixer", options.mixer, dim, max_len)
        self.mixer_norm = options.norm.build(dim) if options.mixer else None
        self.ffn = _build("ffn", options.ffn, dim)
        self.ffn_norm = options.norm.build(dim) if options.ffn else None

    def forward(self, x: Tensor, cache: Any = None) -> Tensor:
        """Through the slots; `cache` is the mixer's."""
        if self.mixer is not None:
            x = self.slot(x, self.mixer, self.mixer_norm, cache)
        if self.ffn is not None:
            x = self.slot(x, self.ffn, self.ffn_norm)
        return x

    def slot(self, x: Tensor, part: Module, norm: Module | None, *state: Any) -> Tensor:
        """One residual step."""
        assert norm is not None
        y = F.dropout(part(norm(x) if self.pre else x, *state), self.dropout, self.training)
        return x + y if self.pre else norm(x + y)


def _build(slot: str, options: Any, *sizes: int) -> Module | None:
    """The part, with the slot's name put before what it finds wrong."""
    try:
        part: Module | None = options.build(*sizes) if options is not None else None
    except ValueError as error:
        raise ValueError(f"{slot}.{error}") from None
    return part
