"""Vectors of texts, for search and comparison: `bigmodel predict --embed`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from bigmodel_cli.console import say
from bigmodel_cli.convert.sentences import Sentences, sentences
from bigmodel_cli.data import Item, Reader, input_of
from bigmodel_cli.device import autocast, keep_few_kernels
from bigmodel_cli.generation.batches import in_order
from bigmodel_cli.lazy import F, Tensor, torch
from bigmodel_cli.loaded import Loaded

DIGITS = 8
"""Significant digits of a number: fp32 has 7 or 8."""


def embed(loaded: Loaded, inputs: Iterable[str], word: str = "input") -> Iterator[dict[str, Any]]:
    """{"input", "embedding": [numbers]} for each text.

    As the folder of a published model says (see convert/sentences.py), else by the model's `pool`,
    not normalised. Raises `SpecError` for a model that gives none.
    """
    how = sentences(loaded.path)

    def answer(items: list[Item], batch: dict[str, Tensor]) -> Iterator[dict[str, Any]]:
        with torch.inference_mode(), autocast(loaded.device, loaded.precision):
            vectors = loaded.model.row_vectors(*loaded.model.arguments(batch), pool=how.pool)
        vectors = vectors.float()
        if how.normalised:
            vectors = F.normalize(vectors, dim=1)
        return ({"embedding": [float(f"{x:.{DIGITS}g}") for x in row]} for row in vectors.tolist())

    keep_few_kernels()  # texts are of many lengths
    if how.pool is not None:
        also = (how.normalised, "normalised"), (how.lower_case, "in lower case")
        said = [how.pool, *(name for chosen, name in also if chosen)]
        prompt = f"; each text begins with {how.prompt!r}" if how.prompt else ""
        say(f"embeddings: {', '.join(said)}{prompt}")
    kind = input_of(loaded.info)
    reader = kind.whole(loaded.spec.data, loaded.assets, how.longest)
    return in_order(Prepared(reader, how), inputs, answer, loaded.device, word)


class Prepared:
    """A reader of texts as the folder prepares them."""

    def __init__(self, reader: Reader, how: Sentences) -> None:
        self.reader, self.how, self.most = reader, how, reader.most

    def read(self, given: str, place: str) -> tuple[Any, bool]:
        """As the reader's own."""
        return self.reader.read(self.how.prepared(given), place)

    def batch(self, contents: Sequence[Any]) -> dict[str, Tensor]:
        """As the reader's own."""
        return self.reader.batch(contents)
