"""What parts may offer beside `forward`: optional protocols, and questions to all parts of a model.

A part, a plugin's too, implements a protocol by having its attributes and methods.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection
from typing import Any, Protocol, runtime_checkable

from bigmodel_cli.config import Options
from bigmodel_cli.lazy import Module, Tensor, torch
from bigmodel_cli.parts.context import LayerContext
from bigmodel_cli.parts.mixing import MixingWatcher
from bigmodel_cli.parts.watched import RoutingWatcher, Watcher


class AnyMixerOptions(Options):
    """Options of a mixer, which is called with (x, sequence, cache)."""

    @abstractmethod
    def build(self, layer: LayerContext) -> Module:
        """The module for this layer.

        Raises `ValueError` whose message begins with the option that does not fit.
        """


class AnyFFNOptions(Options):
    """Options of a feed-forward network, which is called with (x, sequence)."""

    @abstractmethod
    def build(self, layer: LayerContext) -> Module:
        """The module for this layer.

        Raises `ValueError` whose message begins with the option that does not fit.
        """


class AnyNormOptions(Options):
    """Options of a normalisation, which is called with x."""

    @abstractmethod
    def build(self, dim: int) -> Module:
        """The module for `dim` channels."""


class AnyPositionOptions(Options):
    """Options of a position embedding, which is called with (x, sequence)."""

    @abstractmethod
    def build(self, dim: int, max_len: int) -> Module | None:
        """The module for positions 0 to max_len - 1; None where there is nothing to add."""


@runtime_checkable
class CountsSteps(Protocol):
    """A part that counts within a step, such as the load of each expert."""

    auxiliary: Tensor | None  # added to the mean loss of the current micro-batch, see CountsAhead

    def after_step(self) -> None:
        """Called after the weights were updated."""

    def forget_step(self) -> None:
        """Called where the step changed nothing and is repeated."""

    def statistics(self) -> dict[str, float]:
        """Metrics of the current step, by name."""


@runtime_checkable
class CountsAhead(CountsSteps, Protocol):
    """A part whose auxiliary loss is of counts over all samples of a step.

    Where a step has several micro-batches, these pass through once without gradients, the part is
    asked what it counted, and told that before they pass again. `auxiliary` is then the part of
    the micro-batch in the step's, and is added to the mean loss of the step.
    """

    needs_counts: bool

    def counts(self) -> Tensor:
        """What was counted since the step began."""

    def foresee(self, counts: Tensor) -> None:
        """The counts of the whole step, until it is over or forgotten."""


@runtime_checkable
class CountsTogether(CountsSteps, Protocol):
    """A part that counts samples, so that counts of several processes are summed in each step."""

    def counts(self) -> Tensor:
        """What was counted since the step began."""

    def count_all(self, counts: Tensor) -> None:
        """That was counted since the step began, by all processes."""


@runtime_checkable
class Attends(Protocol):
    """A part that hands each call of attention to a watcher while one is set."""

    watcher: Watcher | None

    def value_sizes(self, v: Tensor) -> Tensor | None:
        """(B, H, S)   how long each value is in the stream; None where that is not defined."""


@runtime_checkable
class Mixes(Protocol):
    """A part that implies a matrix over positions, and hands each call to a watcher that is set."""

    mixing_watcher: MixingWatcher | None


@runtime_checkable
class Routes(Protocol):
    """A part that sends tokens to experts, and hands each call to a watcher that is set."""

    routing_watcher: RoutingWatcher | None


@runtime_checkable
class DividesRows(Protocol):
    """A module that can compute some positions of each row, of which other processes have the rest
    (row_share.py): each by itself, or from `SequenceInfo.share.whole` of what it gathers. Or a task
    whose loss is a sum over them.

    Its own class says so: one that inherits it is asked to say it again.
    """

    @property
    def context_fault(self) -> str:
        """The option that does not allow it, and its value, for a message; "" where all do."""


@runtime_checkable
class ReadInPart(Protocol):
    """A part of whose weights a few tokens read not all."""

    def taken(self, tokens: int) -> dict[str, float]:
        """The part of each such weight, by name, that so many tokens read."""


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
    """A part's cache that selects its rows itself."""

    def select(self, rows: Tensor) -> None:
        """Keep these rows, in this order."""


def tensors_of(kept: Any) -> list[Tensor]:
    """The tensors of a part's cache, also those inside its objects."""
    if torch.is_tensor(kept):
        return [kept]
    if isinstance(kept, list | tuple):
        return [tensor for value in kept for tensor in tensors_of(value)]
    inside = kept if isinstance(kept, dict) else _held(kept)
    return [tensor for value in inside.values() for tensor in tensors_of(value)]


def _held(kept: Any) -> dict[str, Any]:
    """What an object of a part's cache holds, by name."""
    return getattr(kept, "__dict__", {})


States = dict[str, tuple[int | None, ...]]
"""Name -> the shape of a tensor without the batch; None is the axis of the positions so far."""


@runtime_checkable
class KeepsTensors(Protocol):
    """A part whose cache is tensors alone, which an exported graph takes and gives back."""

    def states(self) -> States:
        """The tensors of the cache."""

    def cache_of(self, tensors: dict[str, Tensor]) -> Any:
        """A cache with these; those of no positions yet have an axis of length 0."""

    def tensors_of(self, cache: Any) -> dict[str, Tensor]:
        """The tensors of such a cache."""


def fault_in_rows(what: object, kind: type | None = None) -> str | None:
    """What a module, or a task, says of that; None where its own class, or `kind`, does not."""
    says = isinstance(what, DividesRows) and "context_fault" in vars(kind or type(what))
    return what.context_fault if says and isinstance(what, DividesRows) else None


def read_in_part(part: Module, tokens: int) -> dict[str, float]:
    """The part of each of its own weights, by name, that so many tokens read, where not all."""
    return part.taken(tokens) if isinstance(part, ReadInPart) else {}


def keeping_tensors(part: Module) -> KeepsTensors | None:
    """The part where its cache is tensors, else None."""
    return part if isinstance(part, KeepsTensors) else None


def counting_steps(model: Module, still: Collection[str] = ()) -> list[CountsSteps]:
    """The parts that count, without those whose names are in `still`."""
    return [
        m for name, m in model.named_modules() if name not in still and isinstance(m, CountsSteps)
    ]


def counting_ahead(parts: Collection[CountsSteps]) -> list[CountsAhead]:
    """Those of them whose auxiliary losses need the counts of the whole step."""
    return [part for part in parts if isinstance(part, CountsAhead) and part.needs_counts]


def counting_together(parts: Collection[CountsSteps]) -> list[CountsTogether]:
    """Those of them whose counts can be summed over processes."""
    return [part for part in parts if isinstance(part, CountsTogether)]


def attending(model: Module) -> dict[str, Attends]:
    """The parts that attend, by their names."""
    return {name: m for name, m in model.named_modules() if isinstance(m, Attends)}


def mixing(model: Module) -> dict[str, Mixes]:
    """The parts that imply a matrix over positions, by their names."""
    return {name: m for name, m in model.named_modules() if isinstance(m, Mixes)}


def routing(model: Module) -> dict[str, Routes]:
    """The parts that send tokens to experts, by their names."""
    return {name: m for name, m in model.named_modules() if isinstance(m, Routes)}


def is_limited(model: Module) -> bool:
    """Whether a part has a table or a cache that limits generation to `max_len` positions."""
    return any(isinstance(m, BoundedLength) and m.needs_max_len for m in model.modules())


def has_table(model: Module) -> bool:
    """Whether a part has a table of `max_len` positions."""
    return any(isinstance(m, Tabled) and m.has_table for m in model.modules())


def looks_ahead(options: Options) -> bool:
    """Whether a mixer's options say `causal: false`: positions see those after them."""
    return dict(options).get("causal") is False


@runtime_checkable
class Grows(Protocol):
    """A part whose table grows with the positions that are asked for."""

    def grow(self, length: int) -> None:
        """Compute the table for that many positions."""


def grow_tables(model: Module, length: int) -> None:
    """Let tables grow to that many positions, as a recorded graph needs them from the beginning."""
    for part in model.modules():
        if isinstance(part, Grows):
            part.grow(length)


def selected(kept: Any, rows: Tensor) -> Any:
    """These rows of a part's cache: of tensors along axis 0, of an object by its own `select`."""
    if torch.is_tensor(kept):
        return kept[rows]
    if isinstance(kept, Selects):
        kept.select(rows)
    elif isinstance(kept, dict):
        return {name: selected(value, rows) for name, value in kept.items()}
    else:
        for name, value in _held(kept).items():
            setattr(kept, name, selected(value, rows))
    return kept
