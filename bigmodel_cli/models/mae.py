"""The decoder of a masked autoencoder: hidden patches from visible ones (He et al. 2022)."""

from __future__ import annotations

from pydantic import Field

from bigmodel_cli.config import Count, Options
from bigmodel_cli.errors import Faults
from bigmodel_cli.lazy import Module, Tensor, nn, torch
from bigmodel_cli.models.block import build_blocks
from bigmodel_cli.models.skeleton import Blocks, through
from bigmodel_cli.parts import Norm
from bigmodel_cli.parts.context import SINGLE_DOCUMENT
from bigmodel_cli.parts.grid import sines_of_grid
from bigmodel_cli.parts.norm import LayerNormOptions
from bigmodel_cli.roles import OUTER, Role


class ReconstructOptions(Options):
    """A light decoder over all patches: mask tokens for hidden ones, blocks, a layer to pixels."""

    dim: Count = Field(description="width of the decoder's sequence, a multiple of 4")
    blocks: Blocks = Field(description="the decoder's blocks, in order")
    norm: Norm | None = Field(LayerNormOptions(), description="after the blocks; null for none")


class PatchDecoder(Module):
    """(B, F + K, C), (B, K) -> (B, N, P)   pixels of all N patches from K of them.

    P pixel values per patch; F tokens come before the patches. He et al. 2022, section 3: positions
    are fixed sines and cosines; one learned vector stands for every hidden patch.
    """

    def __init__(
        self,
        options: ReconstructOptions,
        dim: int,
        grid: tuple[int, int],
        first: int,
        pixels: int,
        std: float,
    ) -> None:
        super().__init__()
        self.first = first
        self.enter = nn.Linear(dim, options.dim)
        self.mask = nn.Parameter(torch.empty(options.dim))  # for every hidden patch
        table = sines_of_grid(grid, options.dim, first)[None]  # (1, F + N, D)
        self.register_buffer("table", table, persistent=False)
        faults = Faults()
        with faults.under("blocks"):
            self.blocks = build_blocks(
                options.blocks, options.dim, first + grid[0] * grid[1], causal=False
            )
        self.norm = faults.build("norm", options.norm, options.dim)
        faults.check()
        self.pixels = nn.Linear(options.dim, pixels)
        nn.init.normal_(self.mask, std=std)

    def weight_roles(self) -> dict[str, Role]:
        """The last layer's outputs are pixels."""
        return {"pixels.weight": OUTER}

    def forward(self, x: Tensor, visible: Tensor) -> Tensor:
        """The pixels of every patch; `visible` has the indices of x's patches, in order."""
        x = self.enter(x)
        table = self.get_buffer("table")
        count = table.shape[1] - self.first
        places = visible[..., None].expand(-1, -1, x.shape[2])
        # (B, N, D)
        patches = (
            self.mask.to(x.dtype).expand(len(x), count, -1).scatter(1, places, x[:, self.first :])
        )
        x = torch.cat((x[:, : self.first], patches), 1) + table
        x = through(self.blocks, None, x, SINGLE_DOCUMENT)[:, self.first :]
        y: Tensor = self.pixels(x if self.norm is None else self.norm(x))
        return y


def patchify(images: Tensor, patch: int) -> Tensor:
    """(B, C', H, W) -> (B, N, P)   patches in row-major order, values by row, column, channel."""
    # (B, C', rows, patch, columns, patch)
    x = images.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))
    y: Tensor = x.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
    return y


def unpatchify(patches: Tensor, patch: int, grid: tuple[int, int]) -> Tensor:
    """(B, N, P) -> (B, C', H, W)   the inverse of `patchify`; `grid` is rows, columns."""
    # (B, rows, columns, patch, patch, C')
    x = patches.unflatten(2, (patch, patch, -1)).unflatten(1, grid)
    y: Tensor = x.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)
    return y
