"""What encoders end in: logits of tokens, and what a label is read from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from pydantic import Field

from bigmodel_cli.config import Options, Probability
from bigmodel_cli.lazy import F, Module, Tensor, nn, torch
from bigmodel_cli.logits import logits_of
from bigmodel_cli.models.vocabulary import LogitsShare, by_vocabulary
from bigmodel_cli.parts import Norm
from bigmodel_cli.shares import ALONE, Shares, Team


class PoolerOptions(Options):
    """A dense layer between what the blocks give and the logits of a label."""

    activation: Literal["tanh", "relu", "gelu"] = Field(
        "tanh", description="what follows it: tanh in BERT, relu in DistilBERT, gelu in ModernBERT"
    )
    bias: bool = Field(True, description="learn a bias")
    norm: Norm | None = Field(None, description="after the activation, as in ModernBERT")
    dropout: Probability = Field(0.0, description="before the layer, as in RoBERTa")
    tags: bool = Field(False, description="also before the tags of words, as in ModernBERT")


POOLED: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": lambda x: x.tanh(),
    "relu": lambda x: F.relu(x),
    "gelu": lambda x: F.gelu(x),
}


class TokenHead(Module):
    """(B, T, C) -> (B, T, V)   logits(norm(gelu(dense(x)))) (Devlin et al. 2019)."""

    team: Team = ALONE
    context_fault = ""

    def __init__(self, dim: int, vocab: int, norm: Norm, bias: bool = True) -> None:
        super().__init__()
        self.vocab = vocab
        self.dense = nn.Linear(dim, dim, bias=bias)
        self.norm = norm.build(dim)
        self.logits: nn.Linear | LogitsShare = nn.Linear(dim, vocab)

    def shares(self) -> Shares:
        """By tokens of the vocabulary; the dense layer before it is small."""
        return by_vocabulary(self, {"logits": self.vocab})

    def narrow(self, team: Team) -> None:
        self.team, self.logits = team, LogitsShare(self.logits, self.vocab, team)

    def forward(self, x: Tensor) -> Tensor:
        """The logits of each position."""
        x = self.norm(F.gelu(self.dense(x)))
        y: Tensor = logits_of(x, self.logits, self.logits.out_features)
        return y


def mean_of_real(x: Tensor, real: Tensor) -> Tensor:
    """(B, T, C), (B, T) bool -> (B, C)   the mean over the positions that are not padding."""
    kind = torch.promote_types(x.dtype, torch.float32)  # bf16 counts no further than 256
    weight = real[..., None].to(kind)
    return ((x * weight).sum(1) / weight.sum(1).clamp(min=1)).to(x.dtype)
