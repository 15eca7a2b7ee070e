"""DoRA: magnitude and direction of a weight are trained apart."""

from __future__ import annotations

from typing import Literal

from bigmodel_cli.adapters.base import Factors, LowRankOptions
from bigmodel_cli.device import full_precision
from bigmodel_cli.lazy import Tensor, nn, torch
from bigmodel_cli.roles import Role


class DoRAOptions(LowRankOptions):
    """Weight-decomposed LoRA (Liu et al. 2024): the sum's rows have trained lengths.

    Of an embedding it is the columns that have, as in PEFT.
    """

    type: Literal["dora"] = "dora"

    def measured(self, matrix: Tensor) -> Tensor:
        """The length of each row: that of the sum before the first step."""
        return torch.cat([_length(_square(part.float())) for part in matrix.detach().split(256)])

    def build(self, shape: torch.Size, role: Role, lookup: bool) -> Factors:
        return Directions(self, shape, role, lookup)

    def to_peft(self) -> tuple[dict[str, object], int]:
        return {"use_dora": True}, 1


class Directions(Factors):
    """Factors, and the length of each row (M) of the sum; (N) of each column where rows are looked
    up.

    As in the paper's section 4.3, the length of the sum is a constant in the backward pass.
    """

    def __init__(
        self, options: LowRankOptions, shape: torch.Size, role: Role, lookup: bool
    ) -> None:
        super().__init__(options, shape, role, lookup)
        *stack, m, n = shape
        self.magnitude = nn.Parameter(torch.ones(*stack, n if lookup else m))

    def fill(self, matrix: Tensor, measured: Tensor | None = None) -> None:
        super().fill(matrix)
        with torch.no_grad():
            self.magnitude.copy_(self.lengths(matrix) if measured is None else measured)

    def lengths(self, matrix: Tensor) -> Tensor:
        """The length of each row w + b A of the sum (of each column, where rows are looked up).

        Its square is |w|^2 + b (2 A w + A A^T b): the sum itself would take as much memory and
        time as the matrix.
        """
        with torch.no_grad(), full_precision(matrix.device):
            a, b = self.factors()
            if self.lookup:  # columns: as rows of the transposed sum
                matrix, a, b = matrix.transpose(-2, -1), b.transpose(-2, -1), a.transpose(-2, -1)
            weight = matrix.to(a.dtype)
            both = 2 * weight @ a.transpose(-2, -1) + b @ (a @ a.transpose(-2, -1))
            return _length(_square(weight) + (b * both).sum(-1))

    def magnitudes(self) -> nn.Parameter:
        return self.magnitude

    def gain(self, matrix: Tensor) -> Tensor:
        return self.magnitude / self.lengths(matrix)


def _square(matrix: Tensor) -> Tensor:
    """The squared length of each row, (..., N) -> (...)."""
    square: Tensor = torch.linalg.vector_norm(matrix, dim=-1).square()
    return square


def _length(square: Tensor) -> Tensor:
    """Its root, which a row of zeros has too."""
    return square.clamp(min=torch.finfo(square.dtype).tiny).sqrt()
