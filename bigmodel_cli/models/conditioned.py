"""An encoder-decoder's decoder as one that generates by itself."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.models.init import Cache

if TYPE_CHECKING:
    from bigmodel_cli.models.seq2seq import AnySeq2Seq


class ConditionedDecoder:
    """A decoder conditioned on its sources, with the interface of a decoder alone."""

    def __init__(self, model: AnySeq2Seq, source: tuple[Tensor, ...]) -> None:
        self.model, self.limit = model, model.limit
        with torch.no_grad():
            self.read = model.eval().encode(*source)

    def eval(self) -> None:
        """Nothing to do: it is in evaluation mode."""

    def new_cache(self, batch: int, max_len: int | None = None) -> Cache:
        """An empty cache with the encoded sources."""
        return replace(self.model.new_cache(batch, max_len), memory=self.read)

    def __call__(
        self,
        tokens: Tensor,
        cache: Cache | None = None,
        segments: Tensor | None = None,
        last: bool = False,
    ) -> Tensor:
        """Logits (B, T, V), or (B, 1, V), of tokens that continue the cache."""
        read = self.read if cache is None else cache.memory
        return self.model.decode(tokens, read, cache, last)
