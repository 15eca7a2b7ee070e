"""What a part may be beside a module: what those above ask of all parts of a model, and who of them
answers.

A part, a plugin's too, takes part in one of these by having its attributes and methods.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection
from typing import Any, Protocol, runtime_checkable

from bigmodel_cli.config import Options
from bigmodel_cli.lazy import Module, Tensor, torch
from bigmodel_cli.parts.context import LayerContext


class AnyMixerOptions(Options):
    """Options of a mixer, which is called with (x, sequence, cache)."""

    @abstractmethod
    def build(self, layer: LayerContext) -> Module:
        """The module for that place.

        Raises `ValueError` beginning with the option that does not fit.
        """


class AnyFFNOptions(Options):
    """Options of a feed-forward network, which is called with (x, sequence)."""

    @abstractmethod
    def build(self, layer: LayerContext) -> Module:
        """The module for that place.

        Raises `ValueError` beginning with the option that does not fit.
        """


class AnyNormOptions(Options):
    """Options of a normalisation, which is called with x."""

    @abstractmethod
    def build(self, dim: int) -> Module:
        """The module for `dim` channels."""


class AnyPositionOptions(Options):
    """Options of what is added to embeddings, which is called with (x, sequence)."""

    @abstractmethod
    def build(self, dim: int, max_len: int) -> Module | None:
        """The module for positions 0 to max_len - 1; None where there is nothing to add."""


@runtime_checkable
class CountsSteps(Protocol):
    """A part that counts what passes it within a step, such as a mixture of experts the load of
    each.
    """

    auxiliary: Tensor | None  # what is added to the mean loss of the micro-batch at hand

    def after_step(self) -> None:
        """The weights have moved, and a new step begins."""

    def forget_step(self) -> None:
        """The step changed nothing, and is made anew."""

    def statistics(self) -> dict[str, float]:
        """What there is to say of the step at hand, as metrics by their names."""


@runtime_checkable
class Attends(Protocol):
    """A part that hands its attention weights (B, H, T, S) to a probe while one is set."""

    probe: Callable[[Tensor], None] | None


@runtime_checkable
class BoundedLength(Protocol):
    """A part that may have a table or a cache of `max_len` positions."""

    needs_max_len: bool


@runtime_checkable
class Tabled(Protocol):
    """A part that may have a table of `max_len` positions."""

    has_table: bool


@runtime_checkable
class Selects(Protocol):
    """What a part keeps in a cache, where that knows how to select its rows."""

    def select(self, rows: Tensor) -> None:
        """Keep these rows, in this order."""


def counting_steps(model: Module, still: Collection[str] = ()) -> list[CountsSteps]:
    """The parts that count, without those that are `still`, by their names."""
    return [
        m for name, m in model.named_modules() if name not in still and isinstance(m, CountsSteps)
    ]


def attending(model: Module) -> dict[str, Attends]:
    """The parts that attend, by their names."""
    return {name: m for name, m in model.named_modules() if isinstance(m, Attends)}


def is_limited(model: Module) -> bool:
    """Whether a part has a table or a cache of `max_len` positions, beyond which nothing can be
    generated.
    """
    return any(isinstance(m, BoundedLength) and m.needs_max_len for m in model.modules())


def has_table(model: Module) -> bool:
    """Whether a part has a table of `max_len` positions."""
    return any(isinstance(m, Tabled) and m.has_table for m in model.modules())


def looks_ahead(options: Options) -> bool:
    """Whether a mixer's options say that positions see those after them: `causal: false`."""
    return dict(options).get("causal") is False


def selected(kept: Any, rows: Tensor) -> Any:
    """What a part keeps in a cache, of these rows: tensors have the row first, and an object may
    `select` by itself.
    """
    if torch.is_tensor(kept):
        return kept[rows]
    if isinstance(kept, Selects):
        kept.select(rows)
    elif isinstance(kept, dict):
        return {name: selected(value, rows) for name, value in kept.items()}
    else:
        for name, value in getattr(kept, "__dict__", {}).items():
            setattr(kept, name, selected(value, rows))
    return kept
