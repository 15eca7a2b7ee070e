"""Position-wise feed-forward networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from pydantic import Field

from bigmodel_cli.config import Count, Options, Positive, Probability
from bigmodel_cli.lazy import F, Module, Tensor, nn
from bigmodel_cli.parts.context import SINGLE_DOCUMENT, LayerContext, SequenceInfo
from bigmodel_cli.parts.contract import AnyFFNOptions
from bigmodel_cli.parts.dropout import dropout
from bigmodel_cli.parts.recomputed import recomputed
from bigmodel_cli.shares import (
    ALONE,
    WHOLE,
    Run,
    Shares,
    Team,
    by_inputs,
    by_outputs,
    own_of,
)


class ClampOptions(Options):
    """SwiGLU with bounds: (up + 1) * gate * sigmoid(alpha * gate) (Agarwal et al. 2025, gpt-oss).

    The gate is at most `limit`, and up within +-limit.
    """

    limit: Positive = Field(7.0, description="largest gate, and largest up to both sides")
    alpha: Positive = Field(1.702, description="what the gate is multiplied by in the sigmoid")


class _FFNOptions(AnyFFNOptions):
    type: str
    hidden: Count | None = Field(
        None, description="width of the hidden layer; 4 x dim when left out (gated: 8/3 x dim)"
    )
    bias: bool = Field(True, description="learn biases")
    dropout: Probability = Field(0.0, description="of the hidden layer")

    @property
    def activation(self) -> str:
        """The name in `ACTIVATIONS`."""
        return self.type

    def width(self, dim: int) -> int:
        """The width of the hidden layer."""
        return self.hidden or 4 * dim

    def settled(self, dim: int) -> dict[str, Any]:
        return {"hidden": self.width(dim)}

    def build(self, layer: LayerContext) -> FeedForward:
        hidden = self.width(layer.dim)
        return FeedForward(layer.dim, hidden, self.bias, self.dropout, self.activation)


class GeluFFNOptions(_FFNOptions):
    """Two layers with a GELU between them (Hendrycks and Gimpel 2016), as in GPT-2 and BERT."""

    type: Literal["gelu"] = "gelu"
    approximate: Literal["none", "tanh"] = Field(
        "none", description="none: the exact form; tanh: GPT-2's approximation"
    )

    @property
    def activation(self) -> str:
        return f"gelu_{self.approximate}"


class ReluFFNOptions(_FFNOptions):
    """Two layers with a ReLU between them, as in the original Transformer (Vaswani et al. 2017)."""

    type: Literal["relu"] = "relu"


class SquaredReluFFNOptions(_FFNOptions):
    """Two layers with a squared ReLU between them (So et al. 2021, Primer)."""

    type: Literal["relu2"] = "relu2"


class SiluFFNOptions(_FFNOptions):
    """Two layers with a SiLU between them (Swish: Ramachandran et al. 2017), as in OPUS-MT."""

    type: Literal["silu"] = "silu"


class _GatedFFNOptions(_FFNOptions):
    bias: bool = Field(False, description="learn biases")

    def width(self, dim: int) -> int:
        return self.hidden or 8 * ((dim + 2) // 3)

    def build(self, layer: LayerContext) -> FeedForward:
        hidden = self.width(layer.dim)
        return FeedForward(layer.dim, hidden, self.bias, self.dropout, self.activation, gated=True)


class SwiGLUOptions(_GatedFFNOptions):
    """SwiGLU (Shazeer 2020): a hidden layer gated by the SiLU of another one, as in Llama."""

    type: Literal["swiglu"] = "swiglu"


class GeGLUOptions(_GatedFFNOptions):
    """GeGLU (Shazeer 2020): gated by the GELU of another projection, as in Gemma and T5 1.1."""

    type: Literal["geglu"] = "geglu"
    approximate: Literal["none", "tanh"] = Field(
        "tanh", description="none: the exact GELU, as in ModernBERT; tanh: its approximation"
    )

    @property
    def activation(self) -> str:
        return f"gelu_{self.approximate}"


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": lambda x: F.relu(x),
    "relu2": lambda x: F.relu(x).square(),
    "silu": lambda x: F.silu(x),
    "gelu_none": lambda x: F.gelu(x),
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "swiglu": lambda x: F.silu(x),
}


class FeedForward(Module):
    """(B, T, C) -> (B, T, C)   down(act(up(x))), or gated down(act(gate(x)) * up(x)).

    Vaswani et al. 2017, section 3.3; Shazeer 2020.
    """

    context_fault = ""
    team: Team = ALONE

    def __init__(
        self,
        dim: int,
        hidden: int,
        bias: bool,
        dropout: float,
        activation: str,
        gated: bool = False,
    ) -> None:
        super().__init__()
        self.gate = nn.Linear(dim, hidden, bias=bias) if gated else None
        self.up = nn.Linear(dim, hidden, bias=bias)
        self.down = nn.Linear(hidden, dim, bias=bias)
        self.dropout, self.activation = dropout, ACTIVATIONS[activation]

    def shares(self) -> Shares:
        """By hidden units."""
        units = Run("hidden units", self.up.out_features)
        every: Shares = {
            f"{n}.{w}": by_outputs(units) for n in ("gate", "up") for w in ("weight", "bias")
        }
        return own_of(self, {**every, "down.weight": by_inputs(units), "down.bias": WHOLE})

    def narrow(self, team: Team) -> None:
        self.team = team

    def gated(self, gate: Tensor, up: Tensor) -> Tensor:
        """The hidden layer of a gated network."""
        return self.activation(gate) * up

    def forward(self, x: Tensor, sequence: SequenceInfo = SINGLE_DOCUMENT) -> Tensor:
        """Each position by itself."""
        x = self.team.enter(x)
        x = (
            self.activation(self.up(x))
            if self.gate is None
            else recomputed(self.gated, self.gate(x), self.up(x))
        )
        return self.team.leave(self.down, dropout(x, self.dropout, self.training, self.team))
