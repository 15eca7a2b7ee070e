"""A block: a residual stream through slots, each filled by a part."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import groupby
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from bigmodel_cli.config import Options, Positive, Probability
from bigmodel_cli.errors import Faults
from bigmodel_cli.lazy import Module, Tensor, nn, torch
from bigmodel_cli.parts import FFN, CrossAttentionOptions, Mixer, Norm
from bigmodel_cli.parts.checkpointed import checkpointed
from bigmodel_cli.parts.context import SINGLE_DOCUMENT, LayerContext, SequenceInfo
from bigmodel_cli.parts.contract import AnyNormOptions
from bigmodel_cli.parts.dropout import drop_path, dropout
from bigmodel_cli.parts.norm import LayerNormOptions

MOST_BLOCKS = 10_000
SLOTS = ("mixer", "cross", "ffn")


class BlockOptions(Options):
    """One block, or `repeat` equal ones.

    x + mixer(norm(x)), then x + cross(norm(x), memory), then x + ffn(norm(x)).
    """

    repeat: Annotated[int, Field(gt=0, le=MOST_BLOCKS)] = Field(
        1, description="how many such blocks follow each other"
    )
    mixer: Mixer | None = Field(None, description="what moves information between positions")
    cross: CrossAttentionOptions | None = Field(
        None, description="what reads a memory, such as an encoder's output"
    )
    ffn: FFN | None = Field(None, description="what computes at each position")
    norm: Norm = Field(LayerNormOptions(), description="normalisation of every slot")
    mixer_norm: Norm | None = Field(
        None, description="the mixer's own; left out: as norm; none: not normalised"
    )
    cross_norm: Norm | None = Field(None, description="cross-attention's own; left out: as norm")
    ffn_norm: Norm | None = Field(
        None, description="the feed-forward network's own; left out: as norm"
    )
    placement: Literal["pre", "post", "sandwich", "after"] = Field(
        "pre",
        description=(
            "pre: x + f(norm(x)); post: norm(x + f(x)), as in the original Transformer; "
            "sandwich: x + norm(f(norm(x))), as in Gemma 2; after: x + norm(f(x)), as in OLMo 2"
        ),
    )
    dropout: Probability = Field(0.0, description="of what each slot adds to the stream")
    drop_path: Probability = Field(
        0.0,
        description=(
            "probability that a slot adds nothing for a whole sample (stochastic depth, Huang et"
            " al. 2016)"
        ),
    )
    layer_scale: Positive | None = Field(
        None,
        description=(
            "start of a learned factor per channel on what a slot adds (Touvron et al. 2021)"
        ),
    )
    residual_scale: Positive = Field(
        1.0, description="fixed factor on what a slot adds to the stream"
    )

    @model_validator(mode="after")
    def _used(self) -> BlockOptions:
        for slot in SLOTS:
            if getattr(self, f"{slot}_norm") is not None and getattr(self, slot) is None:
                raise ValueError(f"{slot}_norm: there is no {slot} to normalise for")
        return self

    def settled(self, dim: int) -> dict[str, Any]:
        norms = {f"{slot}_norm": getattr(self, f"{slot}_norm") for slot in SLOTS}
        return {name: None for name, own in norms.items() if own == self.norm}

    def placed(self, index: int) -> Self:
        if self.mixer is None:
            return self
        mixer = self.mixer.placed(index)
        return self if mixer == self.mixer else self.model_copy(update={"mixer": mixer})

    def norm_of(self, slot: str) -> tuple[str, AnyNormOptions]:
        """The option that says a slot's norm, and the norm."""
        own = getattr(self, f"{slot}_norm")
        return ("norm", self.norm) if own is None else (f"{slot}_norm", own)


class Block(Module):
    """(B, T, C) -> (B, T, C)   residual slots, normalised before or after.

    Pre (Xiong et al. 2020): x + f(norm(x)); post (Vaswani et al. 2017): norm(x + f(x)); sandwich
    (Ding et al. 2021): x + norm(f(norm(x))); after (Liu et al. 2021; OLMo 2): x + norm(f(x)).
    """

    recomputes = False
    """Whether its input alone is kept for the backward pass."""
    context_fault = ""

    def __init__(self, options: BlockOptions, layer: LayerContext) -> None:
        super().__init__()
        self.options = options
        faults = Faults()
        for slot in SLOTS:
            part = getattr(options, slot)
            filled = part is not None
            where, norm = options.norm_of(slot) if filled else ("norm", None)
            setattr(self, slot, faults.build(slot, part, layer))
            setattr(self, f"{slot}_norm", faults.build(where, norm, layer.dim))
            if filled and options.placement == "sandwich":
                setattr(self, f"{slot}_norm_after", faults.build(where, norm, layer.dim))
            if filled and options.layer_scale is not None:
                scale = nn.Parameter(torch.full((layer.dim,), options.layer_scale))
                setattr(self, f"{slot}_scale", scale)
        faults.check()

    @property
    def is_post(self) -> bool:
        """Whether it normalises the stream itself."""
        return self.options.placement == "post"

    def filled(self) -> list[str]:
        """The slots that are filled."""
        return [slot for slot in SLOTS if getattr(self, slot) is not None]

    def keepers(self) -> dict[str, Module]:
        """The parts that keep a cache, by slot."""
        return {slot: getattr(self, slot) for slot in self.filled() if slot != "ffn"}

    def new_cache(self, batch: int, max_len: int) -> dict[str, Any]:
        """An empty cache for each slot that keeps one."""
        keepers = self.keepers().items()
        return {slot: part.new_cache(batch, max_len) for slot, part in keepers}  # type: ignore[operator]

    def forward(
        self,
        x: Tensor,
        sequence: SequenceInfo = SINGLE_DOCUMENT,
        cache: dict[str, Any] | None = None,
    ) -> Tensor:
        """Through the slots."""
        if self.recomputes and self.training and cache is None:
            return checkpointed(self, self.through_slots, x, sequence)
        return self.through_slots(x, sequence, cache)

    def through_slots(
        self, x: Tensor, sequence: SequenceInfo, cache: dict[str, Any] | None = None
    ) -> Tensor:
        """(B, T, C) -> (B, T, C)"""
        for slot in self.filled():
            own = () if slot == "ffn" else (cache[slot] if cache is not None else None,)
            x = self.slot(slot, x, sequence, *own)
        return x

    def slot(self, name: str, x: Tensor, *inputs: Any) -> Tensor:
        """One residual step."""
        options, norm = self.options, getattr(self, f"{name}_norm")
        before = options.placement in ("pre", "sandwich")
        y = getattr(self, name)(norm(x) if before else x, *inputs)
        if options.placement == "after":
            y = norm(y)
        if options.placement == "sandwich":
            y = getattr(self, f"{name}_norm_after")(y)
        if options.layer_scale is not None:
            y = y * getattr(self, f"{name}_scale")
        if options.residual_scale != 1.0:
            y = y * options.residual_scale
        y = dropout(y, options.dropout, self.training)
        if options.drop_path and self.training:
            y = drop_path(y, options.drop_path)
        return norm(x + y) if options.placement == "post" else x + y


def written_out(blocks: Sequence[BlockOptions]) -> list[BlockOptions]:
    """The blocks one by one, each with what follows from its place."""
    every = [
        block.model_copy(update={"repeat": 1}) for block in blocks for _ in range(block.repeat)
    ]
    return [block.placed(index) for index, block in enumerate(every)]


def joined(blocks: Sequence[BlockOptions]) -> list[BlockOptions]:
    """Single blocks with equal ones in a row as one that is repeated."""
    groups = [list(group) for _, group in groupby(blocks)]
    return [group[0].model_copy(update={"repeat": len(group)}) for group in groups]


def build_blocks(
    options: list[BlockOptions],
    dim: int,
    max_len: int,
    causal: bool,
    grid: tuple[int, int] | None = None,
    first: int = 0,
) -> nn.ModuleList:
    """All blocks in order, of an image with its grid of patches (see `LayerContext`).

    Raises `OptionError` naming every option that does not fit.
    """
    tables: dict[Hashable, Module] = {}
    total = sum(block.repeat for block in options)
    blocks, faults = nn.ModuleList(), Faults()
    for index, block in enumerate(options):
        with faults.under(str(index)):  # stop at the first of equal blocks that does not fit
            for _ in range(block.repeat):
                layer = LayerContext(dim, max_len, len(blocks), total, causal, grid, first, tables)
                blocks.append(Block(block, layer))
    faults.check()
    return blocks
