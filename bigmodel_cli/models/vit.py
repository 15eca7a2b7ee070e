"""Vision Transformers: an image as a sequence of patches (Dosovitskiy et al. 2021)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from bigmodel_cli.config import Count, Facts, Natural, Options, Positive, Probability
from bigmodel_cli.errors import SpecError
from bigmodel_cli.lazy import F, Module, Tensor, nn, torch
from bigmodel_cli.models.block import BlockOptions, build_blocks, count_blocks
from bigmodel_cli.models.start import init_normal
from bigmodel_cli.parts import Norm
from bigmodel_cli.parts.norm import LayerNormOptions
from bigmodel_cli.parts.stream import ALONE


class ViTOptions(Options):
    """A Vision Transformer: patches, a class token or the mean, registers, blocks of parts."""

    type: Literal["vit"] = "vit"
    dim: Count = Field(description="width of the residual stream (C)")
    patch: Count = Field(description="height and width of a patch, which must divide the image")
    blocks: Annotated[list[BlockOptions], Field(min_length=1)] = Field(description="the blocks, in order")
    pool: Literal["cls", "mean"] = Field(
        "cls", description="what the label is read from: a class token, or the patches' mean"
    )
    registers: Natural = Field(0, description="further learned tokens beside the patches (Darcet et al. 2024)")
    norm: Norm | None = Field(LayerNormOptions(), description="after the blocks; null for none")
    dropout: Probability = Field(0.0, description="of the embeddings")
    init_std: Positive = Field(0.02, description="deviation of the first weights")

    @model_validator(mode="after")
    def _bounded(self) -> ViTOptions:
        count_blocks(self.blocks)
        return self


class ViT(Module):
    """(B, C', H, W) -> (B, classes)   patches, blocks, head (Dosovitskiy et al. 2021).

    Positions are learned, one for the class token and each patch; registers have none. Weights start as in the authors' code:
    normal of deviation 0.02, the head at zero.
    """

    def __init__(self, options: ViTOptions, facts: Facts) -> None:
        super().__init__()
        if facts.image_shape is None or not facts.classes:
            raise SpecError("model.type: vit reads labelled images, and the data has none")
        channels, height, width = facts.image_shape
        if height % options.patch or width % options.patch:
            raise SpecError(f"model.patch: {options.patch} does not divide the image of {height} x {width}")
        self.options = options
        self.grid = (height // options.patch, width // options.patch)
        count = self.grid[0] * self.grid[1]
        self.first = int(options.pool == "cls")
        self.patches = nn.Conv2d(channels, options.dim, options.patch, options.patch)
        self.cls = nn.Parameter(torch.zeros(1, 1, options.dim)) if self.first else None
        self.registers = nn.Parameter(torch.zeros(1, options.registers, options.dim)) if options.registers else None
        self.table = nn.Parameter(torch.empty(1, self.first + count, options.dim))
        try:
            length = self.first + count + options.registers
            self.blocks = build_blocks(options.blocks, options.dim, length, causal=False)
        except ValueError as error:
            raise SpecError(f"model.blocks.{error}") from None
        self.norm = options.norm.build(options.dim) if options.norm is not None else None
        self.head = nn.Linear(options.dim, len(facts.classes))
        init_normal(self, options.init_std, 0)
        for p in (self.table, self.cls, self.registers):
            if p is not None:
                nn.init.normal_(p, std=options.init_std)
        nn.init.zeros_(self.head.weight)

    def head_names(self) -> tuple[str, ...]:
        """Prefixes of the weights that make the logits."""
        return ("head",)

    def embed(self, images: Tensor) -> Tensor:
        """(B, C', H, W) -> (B, N, C)   the patches with their positions, without class token and registers."""
        x = self.patches(images).flatten(2).transpose(1, 2)  # (B, N, C)
        y: Tensor = x + self.table[:, self.first :]
        return y

    def features(self, patches: Tensor) -> Tensor:
        """(B, N, C) -> (B, 1 + N, C)   patches (all, or some of them) through the blocks, the class token first if there is one."""
        x, batch = patches, len(patches)
        if self.cls is not None:
            x = torch.cat(((self.cls + self.table[:, :1]).expand(batch, -1, -1), x), 1)
        if self.registers is not None:
            x = torch.cat((x, self.registers.expand(batch, -1, -1)), 1)
        x = F.dropout(x, self.options.dropout, self.training)
        for block in self.blocks:
            x = block(x, ALONE)
        x = x[:, : x.shape[1] - self.options.registers]
        y: Tensor = x if self.norm is None else self.norm(x)
        return y

    def forward(self, images: Tensor) -> Tensor:
        """The logits of each image."""
        x = self.features(self.embed(images))
        logits: Tensor = self.head(x[:, 0] if self.first else x.mean(1))
        return logits
