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

    def fill(self, matrix: Tensor) -> None:
        super().fill(matrix)
        with torch.no_grad():
            self.magnitude.copy_(self.lengths(matrix))

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
            own = torch.linalg.vector_norm(weight, dim=-1).square()
            both = 2 * weight @ a.transpose(-2, -1) + b @ (a @ a.transpose(-2, -1))
            square: Tensor = own + (b * both).sum(-1)
            # a row of zeros has length 0
            return square.clamp(min=torch.finfo(square.dtype).tiny).sqrt()

    def magnitudes(self) -> nn.Parameter:
        return self.magnitude

    def gain(self, matrix: Tensor) -> Tensor:
        return self.magnitude / self.lengths(matrix)
