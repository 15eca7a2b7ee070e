"""Position-wise feed-forward networks."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from bigmodel_cli.config import Count, Options, Probability
from bigmodel_cli.lazy import F, Module, Tensor, nn


class _FFNOptions(Options):
    hidden: Count | None = Field(
        None, description="width of the hidden layer; 4 x dim when left out (gated: 8/3 x dim)"
    )
    bias: bool = Field(True, description="learn biases")
    dropout: Probability = Field(0.0, description="of the hidden layer")


class GeluFFNOptions(_FFNOptions):
    """Two layers with a GELU between them (Hendrycks and Gimpel 2016), as in GPT-2 and BERT."""

    type: Literal["gelu"] = "gelu"
    approximate: Literal["none", "tanh"] = Field(
        "none", description="none: the exact form; tanh: GPT-2's approximation"
    )

    def build(self, dim: int) -> FeedForward:
        """The module for `dim` channels."""
        return FeedForward(dim, self.hidden or 4 * dim, self.bias, self.dropout, f"gelu_{self.approximate}")


class ReluFFNOptions(_FFNOptions):
    """Two layers with a ReLU between them, as in the original Transformer (Vaswani et al. 2017)."""

    type: Literal["relu"] = "relu"

    def build(self, dim: int) -> FeedForward:
        """The module for `dim` channels."""
        return FeedForward(dim, self.hidden or 4 * dim, self.bias, self.dropout, "relu")


class GatedFFNOptions(_FFNOptions):
    """SwiGLU: the hidden layer is gated by a SiLU of another projection (Shazeer 2020), as in Llama."""

    type: Literal["swiglu"] = "swiglu"
    bias: bool = Field(False, description="learn biases")

    def build(self, dim: int) -> GatedFeedForward:
        """The module for `dim` channels."""
        return GatedFeedForward(dim, self.hidden or 8 * ((dim + 2) // 3), self.bias, self.dropout)


class FeedForward(Module):
    """(B, T, C) -> (B, T, C)   down(act(up(x))) (Vaswani et al. 2017, section 3.3)."""

    def __init__(self, dim: int, hidden: int, bias: bool, dropout: float, activation: str) -> None:
        super().__init__()
        self.up = nn.Linear(dim, hidden, bias=bias)
        self.down = nn.Linear(hidden, dim, bias=bias)
        self.dropout, self.activation = dropout, activation

    def forward(self, x: Tensor) -> Tensor:
        """Each position by itself."""
        x = self.up(x)
        x = F.relu(x) if self.activation == "relu" else F.gelu(x, approximate=self.activation.removeprefix("gelu_"))
        y: Tensor = self.down(F.dropout(x, self.dropout, self.training))
        return y


class GatedFeedForward(Module):
    """(B, T, C) -> (B, T, C)   down(silu(gate(x)) * up(x)) (Shazeer 2020, "GLU Variants Improve Transformer")."""

    def __init__(self, dim: int, hidden: int, bias: bool, dropout: float) -> None:
        super().__init__()
        self.gate = nn.Linear(dim, hidden, bias=bias)
        self.up = nn.Linear(dim, hidden, bias=bias)
        self.down = nn.Linear(hidden, dim, bias=bias)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """Each position by itself."""
        x = F.silu(self.gate(x)) * self.up(x)
        y: Tensor = self.down(F.dropout(x, self.dropout, self.training))
        return y
