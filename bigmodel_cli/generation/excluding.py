"""Generation without certain tokens, as some published models ask for."""

from __future__ import annotations

from collections.abc import Sequence

from bigmodel_cli.lazy import Tensor
from bigmodel_cli.models import Generator
from bigmodel_cli.models.init import Cache


class Excluding(Generator):
    """A decoder in which these tokens have no probability; the others share what they had."""

    def __init__(self, model: Generator, tokens: Sequence[int]) -> None:
        self.model, self.tokens, self.limit = model, list(tokens), model.limit

    def eval(self) -> object:
        return self.model.eval()

    def new_cache(self, batch: int, max_len: int | None = None) -> Cache:
        return self.model.new_cache(batch, max_len)

    def __call__(
        self, tokens: Tensor, cache: Cache | None = None, segments: Tensor | None = None
    ) -> Tensor:
        logits = self.model(tokens, cache, segments).clone()
        there = [token for token in self.tokens if token < logits.shape[-1]]
        logits[..., there] = float("-inf")
        return logits
