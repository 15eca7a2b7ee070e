"""Generation without certain tokens, as some published models ask for."""

from __future__ import annotations

from collections.abc import Sequence

from bigmodel_cli.lazy import Tensor
from bigmodel_cli.models import Generator
from bigmodel_cli.models.init import Cache


class Excluding(Generator):
    """A decoder in which these tokens have no probability; the others share what they had.

    `first` are excluded only right after what a text begins with (Whisper: a blank, and the end).
    """

    def __init__(self, model: Generator, tokens: Sequence[int], first: Sequence[int] = ()) -> None:
        self.model, self.tokens, self.limit = model, list(tokens), model.limit
        self.first = [*tokens, *first]

    def eval(self) -> object:
        return self.model.eval()

    def new_cache(self, batch: int, max_len: int | None = None) -> Cache:
        return self.model.new_cache(batch, max_len)

    def __call__(
        self,
        tokens: Tensor,
        cache: Cache | None = None,
        segments: Tensor | None = None,
        last: bool = False,
    ) -> Tensor:
        excluded = self.first if cache is None or not cache.length else self.tokens
        logits = self.model(tokens, cache, segments, last).clone()
        there = [token for token in excluded if token < logits.shape[-1]]
        logits[..., there] = float("-inf")
        return logits
