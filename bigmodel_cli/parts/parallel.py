"""Several mixers side by side in one block: their outputs are added."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from bigmodel_cli.config import Positive, Table
from bigmodel_cli.errors import Faults
from bigmodel_cli.lazy import Module, Tensor, nn
from bigmodel_cli.parts.context import SINGLE_DOCUMENT, LayerContext, SequenceInfo
from bigmodel_cli.parts.contract import (
    AnyMixerOptions,
    KeepsTensors,
    States,
    keeping_tensors,
    looks_ahead,
)

MIXERS = Table("mixer", AnyMixerOptions)
"""All mixers: filled in parts/__init__.py, and here since one of several may be any of them."""
Mixer = Annotated[AnyMixerOptions, MIXERS]


class ParallelOptions(AnyMixerOptions):
    """Several mixers that read the same input, such as attention and a state space (Falcon-H1)."""

    type: Literal["parallel"] = "parallel"
    mixers: Annotated[list[Mixer], Field(min_length=2)] = Field(
        description="the mixers, whose outputs are added",
        examples=[[{"type": "attention", "num_heads": 4}, {"type": "mamba2"}]],
    )
    scales: list[Positive] | None = Field(
        None, description="fixed factor on each mixer's output; 1 when left out"
    )

    @model_validator(mode="after")
    def _alike(self) -> ParallelOptions:
        if self.scales is not None and len(self.scales) != len(self.mixers):
            raise ValueError(f"scales: {len(self.scales)} for {len(self.mixers)} mixers")
        if any(looks_ahead(mixer) for mixer in self.mixers):
            raise ValueError(
                "mixers: causal: false is what attention in an encoder does; leave it out"
            )
        return self

    def placed(self, index: int) -> Self:
        mixers = [mixer.placed(index) for mixer in self.mixers]
        return self if mixers == self.mixers else self.model_copy(update={"mixers": mixers})

    def build(self, layer: LayerContext) -> Parallel:
        """The module. Raises `OptionError` naming the mixers that do not fit."""
        faults = Faults()
        mixers = [
            faults.build(f"mixers.{index}", mixer, layer) for index, mixer in enumerate(self.mixers)
        ]
        faults.check()
        return Parallel(mixers, self.scales or [1.0] * len(mixers))


class Parallel(Module):
    """(B, T, C) -> (B, T, C)   sum_i scale_i * mixer_i(x) (Zuo et al. 2025, Falcon-H1)."""

    context_fault = ""

    def __init__(self, mixers: list[Module], scales: list[float]) -> None:
        super().__init__()
        self.mixers, self.scales = nn.ModuleList(mixers), scales

    def new_cache(self, batch: int, max_len: int) -> dict[int, Any]:
        """An empty cache of each mixer."""
        return {
            index: mixer.new_cache(batch, max_len)  # type: ignore[operator]
            for index, mixer in enumerate(self.mixers)
        }

    def states(self) -> States:
        """Those of each mixer by "NUMBER.NAME"."""
        each = enumerate(self._keepers())
        return {f"{i}.{name}": shape for i, m in each for name, shape in m.states().items()}

    def cache_of(self, tensors: dict[str, Tensor]) -> dict[int, Any]:
        return {
            i: m.cache_of({name: tensors[f"{i}.{name}"] for name in m.states()})
            for i, m in enumerate(self._keepers())
        }

    def tensors_of(self, cache: dict[int, Any]) -> dict[str, Tensor]:
        each = enumerate(self._keepers())
        return {f"{i}.{n}": t for i, m in each for n, t in m.tensors_of(cache[i]).items()}

    def _keepers(self) -> list[KeepsTensors]:
        found = [keeping_tensors(mixer) for mixer in self.mixers]
        if None in found:
            name = type(self.mixers[found.index(None)]).__name__
            raise ValueError(f"mixers.{found.index(None)}: {name} keeps a cache of its own kind")
        return [part for part in found if part is not None]

    def forward(
        self,
        x: Tensor,
        sequence: SequenceInfo = SINGLE_DOCUMENT,
        cache: dict[int, Any] | None = None,
    ) -> Tensor:
        """All mixers; with a cache, x holds the positions that follow those in it."""
        total: Tensor | float = 0.0
        for index, (mixer, scale) in enumerate(zip(self.mixers, self.scales, strict=True)):
            y = mixer(x, sequence, None if cache is None else cache[index])
            total = total + (y if scale == 1.0 else y * scale)
        assert not isinstance(total, float)
        return total
