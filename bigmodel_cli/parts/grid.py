"""Positions of a grid of patches: fixed ones, and learned ones for a grid of another size."""

from __future__ import annotations

from bigmodel_cli.lazy import F, Tensor, torch


def sines_of_grid(grid: tuple[int, int], dim: int, first: int) -> Tensor:
    """(F + rows x columns, C)   fixed 2-D positions, zeros for F tokens before the grid.

    He et al. 2022: sines and cosines of the column, then of the row, half the channels each, at
    rates 10000^(-4i/C) for i below C/4. Raises `ValueError` where 4 does not divide C.
    """
    if dim % 4:
        raise ValueError(
            f"dim: {dim} is not a multiple of 4, which positions in two dimensions need"
        )
    rate = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    row, column = torch.meshgrid(
        *(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij"
    )
    angles = [axis.flatten()[:, None] * rate for axis in (column, row)]  # (N, C / 4) each
    table = torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], 1)
    return torch.cat((table.new_zeros(first, dim), table)).float()


def positions_between(
    table: Tensor, old: tuple[int, int], new: tuple[int, int], first: int
) -> Tensor:
    """(1, F + N, C) -> (1, F + N', C)   learned positions of a grid for another one, bicubic.

    The F before the grid stay. A table that is not of the grid `old` is given back as it is.
    """
    if table.dim() != 3 or table.shape[1] != first + old[0] * old[1]:
        return table
    grid = table[:, first:].unflatten(1, old).permute(0, 3, 1, 2).float()  # (1, C, rows, columns)
    resized = F.interpolate(grid, new, mode="bicubic", align_corners=False)
    return torch.cat((table[:, :first], resized.flatten(2).transpose(1, 2).to(table.dtype)), 1)
