"""Embeddings of a vocabulary that is divided among processes."""

from __future__ import annotations

from collections.abc import Mapping

from bigmodel_cli.lazy import F, Module, Tensor, nn
from bigmodel_cli.logits import LogitsShare, tokens
from bigmodel_cli.shares import Shares, Team, by_outputs, own_of


class TableShare(Module):
    """(...) -> (..., C)   an embedding, of whose V rows this process has some."""

    weight: Tensor
    num_embeddings: int
    embedding_dim: int

    def __init__(self, table: nn.Embedding | TableShare, team: Team) -> None:
        super().__init__()
        self.weight = table.weight
        self.num_embeddings, self.embedding_dim = table.num_embeddings, table.embedding_dim
        self.team = team
        self.first = tokens(table.num_embeddings).share(team.rank, team.size).start

    def forward(self, numbers: Tensor) -> Tensor:
        """The rows of tokens, from whichever process has them."""
        place, last = numbers - self.first, self.weight.shape[0] - 1
        inside = (place >= 0) & (place <= last)
        place = place.clamp(0, last)
        return self.team.summed(F.embedding(place, self.weight) * inside[..., None])


def by_vocabulary(model: Module, layers: Mapping[str, int]) -> Shares:
    """The shares of embeddings and last layers, by name, with the size of their vocabulary."""
    found = {
        f"{name}.{w}": by_outputs(tokens(vocab))
        for name, vocab in layers.items()
        for w in ("weight", "bias")
    }
    return own_of(model, found)


__all__ = ["LogitsShare", "TableShare", "by_vocabulary"]
