"""PiSSA: LoRA that begins with a weight's principal singular values."""

from __future__ import annotations

from typing import Literal

from pydantic import field_validator

from bigmodel_cli.adapters.base import Factors, LowRankOptions
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.roles import Role


class PiSSAOptions(LowRankOptions):
    """Principal singular values and vectors are trained, the rest is frozen (Meng et al. 2024)."""

    type: Literal["pissa"] = "pissa"

    @field_validator("base")
    @classmethod
    def _whole(cls, base: str | None) -> str | None:
        if base is not None:
            raise ValueError(
                "pissa trains a weight's principal part, and what is left of it would have to be"
                " held in 4 bits, not the weight; take type: lora, or leave base out"
            )
        return base

    def build(self, shape: torch.Size, role: Role, lookup: bool) -> Factors:
        return Principal(self, shape, role, lookup)

    def to_peft(self) -> tuple[dict[str, object], int]:
        return {}, 2  # a plain LoRA of twice the rank, on the weights as they were


class Principal(Factors):
    """Factors that begin as the principal part of the matrix, from which that part is taken.

    The weight stays as it is; the part's first value (A0, B0) is kept and subtracted, so that the
    sum is W - scale x B0 A0 + scale x B A. A checkpoint and a tied weight need no second copy.
    """

    first_A: Tensor
    first_B: Tensor

    def __init__(
        self, options: LowRankOptions, shape: torch.Size, role: Role, lookup: bool
    ) -> None:
        super().__init__(options, shape, role, lookup)
        self.register_buffer("first_A", torch.zeros_like(self.lora_A))
        self.register_buffer("first_B", torch.zeros_like(self.lora_B))

    def fill(self, matrix: Tensor, measured: Tensor | None = None) -> None:
        with torch.no_grad():
            u, s, v = torch.linalg.svd(matrix.float(), full_matrices=False)
            root = (s[..., : self.rank] / self.scale).sqrt()
            self.lora_A.copy_(root[..., None] * v[..., : self.rank, :])
            self.lora_B.copy_(u[..., : self.rank] * root[..., None, :])
            self.first_A.copy_(self.lora_A)
            self.first_B.copy_(self.lora_B)

    def factors(self) -> tuple[Tensor, Tensor]:
        a, b = self._both()
        return a * self.scale, b

    def portable(self) -> tuple[Tensor, Tensor]:
        a, b = self._both()
        return a.detach(), b.detach()

    def _both(self) -> tuple[Tensor, Tensor]:
        return (
            torch.cat((self.lora_A, self.first_A), -2),
            torch.cat((self.lora_B, -self.first_B), -1),
        )
