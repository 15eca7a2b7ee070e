"""What every model answers to those who train it, generate with it and look into it; and what its
options answer.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Protocol

from pydantic import Field

from bigmodel_cli.config import Count, DatasetInfo, Options
from bigmodel_cli.errors import SpecError
from bigmodel_cli.lazy import Module, Tensor
from bigmodel_cli.models.init import UNLIMITED, Cache


class Generator(Protocol):
    """A decoder that `generate` and `beam_search` write with: it takes at most `limit` positions."""

    limit: int

    def eval(self) -> object:
        """Without dropout from here on."""

    def new_cache(self, batch: int, max_len: int | None = None) -> Cache:
        """An empty cache."""

    def __call__(
        self, tokens: Tensor, cache: Cache | None = None, segments: Tensor | None = None
    ) -> Tensor:
        """Logits (B, T, V) of tokens (B, T) that follow what is in the cache."""


class Model(Module):
    """Base of all models.

    What is not overridden here is the answer of a network that labels images.
    """

    inputs: tuple[str, ...] = ("image",)
    """Names in a batch, in the order of the call; a batch may be without those after the first."""
    max_len: int = UNLIMITED
    """The longest sequence that it is built for."""
    limit: int = UNLIMITED
    """The most positions that it can be called with, where a table or a cache ends."""
    can_generate: bool = False
    """Whether it writes text."""
    is_encoder_decoder: ClassVar[bool] = False
    """Whether it reads a source before it writes."""
    grid: tuple[int, int] | None = None
    """Rows and columns of patches, for one that looks at an image by attention; `first` tokens
    stand before them.
    """
    first: int = 0

    def arguments(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """What it is called with for a batch."""
        first, *others = self.inputs
        return (batch[first], *(batch[name] for name in others if name in batch))

    def output_layers(self) -> tuple[str, ...]:
        """Prefixes of the weights that a new task starts afresh."""
        raise NotImplementedError

    def generator(self, source: Tensor | None = None) -> Generator:
        """What writes text: after reading the sources (B, S), for an encoder-decoder."""
        raise NotImplementedError

    def last_feature_layer(self) -> Module:
        """The last module whose output is an image (B, K, h, w), for Grad-CAM. Raises `SpecError`
        where there is none.
        """
        raise SpecError("this network has no convolution to look at")


class AnyModelOptions(Options):
    """Options of a model."""

    type: str
    outputs: ClassVar[tuple[str, ...]]
    """What models of this type can compute, as tasks call it in their `output`."""
    two_sided: ClassVar[str | None] = None
    """The path below which positions see those after them too."""

    @abstractmethod
    def build(self, info: DatasetInfo) -> Model:
        """The model for data as `info` describes it, with freshly drawn weights.

        Raises `SpecError` where they do not fit.
        """

    def check_output(self, output: str, task: str) -> None:
        """Raise `ValueError` where this model cannot compute an output for a task, though others of
        its type can.
        """

    def longest(self) -> int | None:
        """The longest sequence that is given (`max_len`); None where it is left to the data, or
        there is none.
        """
        return dict(self).get("max_len")

    def with_longest(self, length: int) -> AnyModelOptions:
        """The same with this longest sequence, where it is left open."""
        is_open = "max_len" in type(self).model_fields and self.longest() is None
        return self.model_copy(update={"max_len": length}) if is_open else self

    def width(self) -> int | None:
        """The width of the residual stream; None for a network without one."""
        return None

    def without_download(self) -> AnyModelOptions:
        """The same network without pretrained weights to fetch, for one whose weights come from
        elsewhere.
        """
        return self


class SkeletonOptions(AnyModelOptions):
    """Options of a model whose parts stand in blocks around one residual stream."""

    dim: Count = Field(description="width of the residual stream (C)")

    def width(self) -> int:
        """C."""
        return self.dim
