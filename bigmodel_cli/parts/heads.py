"""What attention to oneself and to a memory share: heads, their projections, norms and gate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from bigmodel_cli.config import Count, Options, Positive, Probability
from bigmodel_cli.lazy import Tensor, nn, torch
from bigmodel_cli.parts.attending import AttentionPart
from bigmodel_cli.parts.context import LayerContext
from bigmodel_cli.parts.norm import RMSNorm
from bigmodel_cli.shares import (
    PARTIAL,
    WHOLE,
    Run,
    Shares,
    Team,
    by_inputs,
    by_outputs,
    own_of,
)

Projection = Literal["q", "k", "v", "o", "g"]
PROJECTIONS: tuple[Projection, ...] = ("q", "k", "v", "o", "g")


class QKNormOptions(Options):
    """RMSNorm of queries and keys before they are turned (Henry et al. 2020)."""

    over: Literal["head", "full"] = Field(
        "head", description="of each head (Qwen 3), or of all heads together (OLMo 2)"
    )
    eps: Positive = Field(1e-6, description="added to the mean square")
    offset: bool = Field(
        False, description="the scale is 1 + weight, and the weight starts at 0 (Gemma 3)"
    )

    def build(self, heads: int, width: int) -> RMSNorm:
        """The module for so many heads of this width."""
        return RMSNorm(width if self.over == "head" else heads * width, self.eps, self.offset)


class HeadOptions(Options):
    """Options that attention and cross-attention share."""

    num_heads: Count = Field(description="query heads (H)")
    kv_heads: Count | None = Field(
        None, description="key/value heads (G); as many as num_heads when left out"
    )
    head_dim: Count | None = Field(
        None, description="width of a head (D); dim / num_heads when left out"
    )
    gate: Literal["none", "head", "full"] = Field(
        "none",
        description=(
            "what the heads give is multiplied by a sigmoid of x: one per head, or one per channel"
            " (Qiu et al. 2025; Qwen 3.5)"
        ),
    )
    bias: bool | list[Projection] = Field(
        True,
        description=(
            "learn biases in the projections, all of them or those listed: queries, keys, values,"
            " output, gate (Qwen 2: [q, k, v])"
        ),
    )
    qk_norm: bool | QKNormOptions = Field(
        False, description="RMSNorm of queries and keys; true: of each head (Qwen 3)"
    )
    softcap: Positive | None = Field(
        None, description="scores are squashed into +-softcap by tanh (Gemma 2)"
    )
    dropout: Probability = Field(0.0, description="of the attention weights")
    scale: Positive | None = Field(
        None, description="what scores are multiplied by; 1 / sqrt(D) when left out"
    )

    @field_validator("bias")
    @classmethod
    def _one_way_of_saying_it(
        cls, bias: bool | list[Projection], info: ValidationInfo
    ) -> bool | list[Projection]:
        """A list of all is true, of none false; in between it is in the order of `Projection`."""
        if isinstance(bias, bool):
            return bias
        there = [p for p in PROJECTIONS if p != "g" or info.data.get("gate") != "none"]
        if odd := [p for p in bias if p not in there or bias.count(p) > 1]:
            why = "twice" if odd[0] in there else "there is no gate"
            raise ValueError(f"{odd[0]}: {why}")
        return len(bias) == len(there) or (bool(bias) and [p for p in there if p in bias])

    @field_validator("qk_norm")
    @classmethod
    def _usual(cls, norm: bool | QKNormOptions) -> bool | QKNormOptions:
        return True if norm == QKNormOptions() else norm

    @model_validator(mode="after")
    def _groups(self) -> HeadOptions:
        if self.kv_heads is not None and self.num_heads % self.kv_heads:
            raise ValueError(
                f"num_heads {self.num_heads} is not a multiple of kv_heads {self.kv_heads}"
            )
        return self

    def settled(self, dim: int) -> dict[str, Any]:
        width = self.width(dim)
        usual = self.scale == width**-0.5
        return {
            "kv_heads": self.kv_heads or self.num_heads,
            "head_dim": width,
            "scale": None if usual else self.scale,
        }

    def has_bias(self, projection: Projection) -> bool:
        """Whether this projection learns a bias."""
        return self.bias if isinstance(self.bias, bool) else projection in self.bias

    def normalised(self) -> QKNormOptions | None:
        """How queries and keys are normalised, if they are."""
        return QKNormOptions() if self.qk_norm is True else self.qk_norm or None

    def width(self, dim: int) -> int:
        """The width of a head. Raises `ValueError` where the heads do not divide `dim`."""
        if self.head_dim is None and dim % self.num_heads:
            raise ValueError(
                f"num_heads: {self.num_heads} heads do not divide dim {dim}; give head_dim, or"
                " other numbers"
            )
        return self.head_dim or dim // self.num_heads

    def rows(self, dim: int) -> dict[Projection, int]:
        """The outputs of each projection of x, in the order in which they share a matrix."""
        width, groups = self.width(dim), self.kv_heads or self.num_heads
        rows: dict[Projection, int] = {
            "q": self.num_heads * width, "k": groups * width, "v": groups * width,
        }  # fmt: skip
        if self.gate != "none":
            rows["g"] = self.num_heads * (width if self.gate == "full" else 1)
        return rows


class HeadsPart(AttentionPart):
    """Attention with projections of x to heads; several share a matrix, one below the other.

    A matrix has the bias of all its projections where all learn one; where only some do, theirs are
    `q_bias`, `k_bias`, ... of the part.
    """

    def __init__(self, options: HeadOptions, layer: LayerContext) -> None:
        super().__init__()
        self.options = options
        self.heads, self.groups = options.num_heads, options.kv_heads or options.num_heads
        self.head_dim = options.width(layer.dim)
        self.dropout = options.dropout
        self.rows = options.rows(layer.dim)
        self.own_biases: set[str] = set()

    def projected(self, dim: int, *names: Projection) -> nn.Linear:
        """The layer of these projections, biases included."""
        biased = [name for name in names if self.options.has_bias(name)]
        if len(biased) < len(names):
            self.own_biases.update(biased)
            for name in biased:
                bias = nn.Parameter(torch.zeros(self.rows[name]))
                self.register_parameter(f"{name}_bias", bias)
        rows = sum(self.rows[name] for name in names)
        return nn.Linear(dim, rows, bias=len(biased) == len(names))

    def add_output(self, dim: int) -> None:
        """The last projection, and the norms of queries and keys."""
        self.out = nn.Linear(self.rows["q"], dim, bias=self.options.has_bias("o"))
        norm = self.options.normalised()
        self.q_norm = norm.build(self.heads, self.head_dim) if norm is not None else None
        self.k_norm = norm.build(self.groups, self.head_dim) if norm is not None else None

    def runs(self, *names: Projection) -> list[Run]:
        """What stays together of these projections: heads, or key/value heads."""
        found = []
        for name in names:
            few = name in ("k", "v")
            units = self.groups if few else self.heads
            what = "key/value heads" if few else "heads"
            found.append(Run(what, units, self.rows[name] // units, repeated=few))
        return found

    def shares_of(self, layers: Mapping[str, tuple[Projection, ...]]) -> Shares:
        """By heads, with the projections in each of the layers.

        A norm of each head is read by all; one of all heads goes with them.
        """
        self.check_undropped()
        every: Shares = {f"{name}_bias": by_outputs(*self.runs(name)) for name in self.rows}
        for layer, names in layers.items():
            every |= {f"{layer}.{w}": by_outputs(*self.runs(*names)) for w in ("weight", "bias")}
        of_all = self.norms_all()
        every["q_norm.weight"] = by_outputs(*self.runs("q")) if of_all else PARTIAL
        every["k_norm.weight"] = by_outputs(*self.runs("k")) if of_all else PARTIAL
        every |= {"sinks": by_outputs(Run("heads", self.heads))}
        every |= {"out.weight": by_inputs(*self.runs("q")), "out.bias": WHOLE}
        return own_of(self, every)

    def norms_all(self) -> bool:
        """Whether queries and keys are normalised over all heads together."""
        norm = self.options.normalised()
        return norm is not None and norm.over == "full"

    def narrow(self, team: Team) -> None:
        """Go on with this process's heads."""
        if self.norms_all():
            for part in (self.q_norm, self.k_norm):
                if part is not None:
                    part.team = team
        runs = dict(zip(self.rows, self.runs(*self.rows), strict=True))
        own = {name: len(run.share(team.rank, team.size)) for name, run in runs.items()}
        self.rows = {name: own[name] * run.width for name, run in runs.items()}
        self.heads, self.groups, self.team = own["q"], own["k"], team

    def pieces(self, y: Tensor, *names: Projection) -> list[Tensor]:
        """(B, T, rows) -> the (B, T, ...) of each projection, out of what the layer gives."""
        found = list(y.split([self.rows[name] for name in names], -1))
        for index, name in enumerate(names):
            if name in self.own_biases:
                found[index] = found[index] + self.get_parameter(f"{name}_bias").to(y.dtype)
        return found

    def of_heads(self, x: Tensor, norm: RMSNorm | None = None) -> Tensor:
        """(B, T, heads * D) -> (B, heads, T, D)   normalised where there is a norm."""
        over_head = norm is not None and norm.weight.shape[0] == self.head_dim
        if norm is not None and not over_head:
            x = norm(x)
        x = x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        return norm(x) if norm is not None and over_head else x
