"""The base classes of adapters and their options: a new one is a file with both and a table line.

An adapter changes a frozen weight W by a product of two narrow factors. A weight that holds several
matrices (queries, keys and values; experts) has factors for each, as if they stood alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, Self, TypeVar

from pydantic import Field

from bigmodel_cli.config import Count, Options, Positive, Probability
from bigmodel_cli.lazy import Module, Tensor, nn, torch
from bigmodel_cli.names import matches
from bigmodel_cli.roles import EXPERTS, GAIN, MATRIX, OUTER, Role

_V = TypeVar("_V")


class AnyAdapterOptions(Options):
    """Options of an adapter."""

    type: str
    base: Literal["nf4"] | None = Field(
        None,
        description=(
            "nf4: the frozen matrices of linear layers are held in 4 bits (QLoRA), by torchao; the"
            " weights that the run starts from must be a checkpoint's; slow without a GPU"
        ),
    )

    def folder(self) -> str | None:
        """The folder of PEFT's files that says all else; None where these options do."""
        return None

    def drops(self) -> bool:
        """Whether inputs are dropped in training."""
        return False

    def low_rank(self) -> LowRankOptions:
        """The options that build it, read from that folder where there is one."""
        raise NotImplementedError


class LowRankOptions(AnyAdapterOptions):
    """Options of an adapter that adds scale x B A to a weight, and trains A and B alone."""

    rank: Count = Field(8, description="rank of the factors (r)")
    alpha: Positive = Field(16.0, description="the product of the factors is scaled by alpha / r")
    dropout: Probability = Field(
        0.0, description="of the factors' input, where a layer or convolution reads one"
    )
    targets: Annotated[list[str], Field(min_length=1)] = Field(
        description=(
            "names or patterns of the weights to adapt, such as '*.qkv.q', blocks.0, '*.ffn'; a"
            " fused projection has the names of its parts below it"
        )
    )
    modules_to_save: list[str] = Field(
        [],
        description="names or patterns of further weights that are trained whole, such as head",
    )
    rank_pattern: dict[str, Count] = Field(
        {},
        description=(
            "other ranks by names or patterns, such as {'*.qkv.v': 16}; the first that fits counts"
        ),
    )
    alpha_pattern: dict[str, Positive] = Field(
        {}, description="other alphas by names or patterns; the first that fits counts"
    )
    path: str | None = Field(
        None, description="a folder of PEFT's files that the factors start from"
    )

    @property
    def scale(self) -> float:
        """What the product of the factors is multiplied by."""
        return self.alpha / self.rank

    def of(self, names: Sequence[str]) -> Self:
        """The options of a weight that is called so."""
        if not self.rank_pattern and not self.alpha_pattern:
            return self
        found = {
            "rank": _first(self.rank_pattern, names),
            "alpha": _first(self.alpha_pattern, names),
        }
        return self.model_copy(update={key: v for key, v in found.items() if v is not None})

    def measured(self, matrix: Tensor) -> Tensor | None:
        """What `Factors.fill` needs of a matrix (M, N) that is not kept: a number for each row."""
        return None

    def build(self, shape: torch.Size, role: Role, lookup: bool) -> Factors:
        """The factors of a matrix (M, N), or of E of them (E, M, N), not filled yet.

        `lookup`: its rows are looked up, as an embedding's are.
        """
        return Factors(self, shape, role, lookup)

    def to_peft(self) -> tuple[dict[str, object], int]:
        """The keys of PEFT's adapter_config.json that say what kind this is, and how many times
        the rank the factors have there.
        """
        return {}, 1

    def drops(self) -> bool:
        return self.dropout > 0

    def low_rank(self) -> LowRankOptions:
        return self


def _first(values: Mapping[str, _V], names: Sequence[str]) -> _V | None:
    """The value of the first pattern that means one of the names."""
    meant = (v for pattern, v in values.items() if any(matches(name, pattern) for name in names))
    return next(meant, None)


class Factors(Module):
    """The factors A (r, N) and B (M, r) of one matrix (M, N), or of each in a stack of E.

    B begins as zeros, so that nothing has changed before the first step. A begins as PyTorch's
    linear layers do; where rows are looked up from a standard normal distribution, as in PEFT.
    """

    def __init__(
        self, options: LowRankOptions, shape: torch.Size, role: Role, lookup: bool
    ) -> None:
        super().__init__()
        *stack, m, n = shape
        self.rank, self.scale, self.role, self.lookup = options.rank, options.scale, role, lookup
        self.lora_A = nn.Parameter(torch.zeros(*stack, options.rank, n))
        self.lora_B = nn.Parameter(torch.zeros(*stack, m, options.rank))

    def weight_roles(self) -> dict[str, Role]:
        """The factors of a hidden matrix are hidden matrices; what else is trained is a gain."""
        kind = EXPERTS if self.role.stacked else MATRIX if self.role.matrix else OUTER
        return {
            name: kind if name.startswith(("lora_A", "lora_B")) else GAIN
            for name, _ in self.named_parameters(recurse=False)
        }

    def fill(self, matrix: Tensor, measured: Tensor | None = None) -> None:
        """Draw the first values of the factors of this matrix; of one that is not kept, it has no
        numbers (on the meta device), and `measured` is what the options found in it.
        """
        with torch.no_grad():
            if self.lookup:
                self.lora_A.normal_()
            else:
                bound = self.lora_A.shape[-1] ** -0.5
                self.lora_A.uniform_(-bound, bound)

    def factors(self) -> tuple[Tensor, Tensor]:
        """A, scaled, and B, whose product is added to the matrix."""
        return self.lora_A * self.scale, self.lora_B

    def gain(self, matrix: Tensor) -> Tensor | None:
        """What the sum's rows (where they are looked up, its columns) are multiplied by, if
        anything.
        """
        return None

    def magnitudes(self) -> nn.Parameter | None:
        """The trained lengths of the sum's rows, or columns, if any."""
        return None

    def portable(self) -> tuple[Tensor, Tensor]:
        """A and B of a plain LoRA that computes the same, with this scale, on the same weights."""
        return self.lora_A.detach(), self.lora_B.detach()
