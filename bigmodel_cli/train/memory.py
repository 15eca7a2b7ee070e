"""What a spec would cost, found without allocating it: the model is built on the meta device."""

from __future__ import annotations

import contextlib
import gc
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from bigmodel_cli.config import Facts
from bigmodel_cli.console import named_values, quantity, table
from bigmodel_cli.data import Split, input_of
from bigmodel_cli.device import total_memory
from bigmodel_cli.errors import SpecError
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.models import Model
from bigmodel_cli.models.describe import Layer, describe, flops, training_flops
from bigmodel_cli.models.footprint import step_peaks
from bigmodel_cli.models.sizing import Oversize, watched
from bigmodel_cli.models.stacks import Stack, extended, in_whole, shortened
from bigmodel_cli.optim import describe_weights, summary
from bigmodel_cli.roles import Weight, named_weights
from bigmodel_cli.spec import Spec, build_model
from bigmodel_cli.train.batches import micro_batches
from bigmodel_cli.train.frozen import freeze

ABSURD = 1 << 17
"""A number in a model's options that makes one count its weights before any is made."""


@dataclass(frozen=True)
class Outline:
    """A model on the meta device, its weights frozen as the spec says, with long stacks of equal blocks cut short.

    `short` is the model with short ones, `more` are those with a block more of each long stack; `weights` are the whole model's.
    Nothing is cut where weights are frozen by the names of their blocks.
    """

    stacks: list[Stack]
    short: Model
    more: list[Model]
    weights: list[Weight]

    @property
    def measured(self) -> list[Model]:
        """What is run to know what the whole would cost."""
        return [self.short, *self.more]

    @property
    def tensors(self) -> list[Tensor]:
        """The weights themselves, without storage; equal blocks have the same ones."""
        return [weight.tensor for weight in self.weights]


@dataclass(frozen=True)
class Plan:
    """A dry run's findings. Bytes are of fp32.

    `state_bytes` stay during the whole run; `activation_bytes` come and go within a step: the most that are alive at once.
    """

    layers: list[Layer]
    parameters: int
    flops_per_sample: int  # forward
    training_flops_per_sample: int  # and backward
    state_bytes: int  # weights, gradients, optimizer state, averages
    activation_bytes: int  # and what else a step needs beside them
    steps: int
    samples: int
    weights: list[dict[str, Any]]  # of each: name, shape, which optimizer moves it, whether it decays

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        layers = [{**vars(layer), "shape": list(layer.shape)} for layer in self.layers]
        return {**vars(self), "layers": layers, "memory_bytes": self.state_bytes + self.activation_bytes}

    def to_text(self) -> str:
        """For people."""
        rows = [[x.path, x.type, " x ".join(map(str, x.shape)), f"{x.parameters:,}"] for x in self.layers]
        memory = self.state_bytes + self.activation_bytes
        facts = [
            ("parameters", f"{self.parameters:,}"),
            (
                "FLOPs per sample",
                f"{quantity(self.flops_per_sample, 'FLOP')} forward, "
                f"{quantity(self.training_flops_per_sample, 'FLOP')} in training",
            ),
            (
                "memory",
                f"about {quantity(memory, 'B')}: {quantity(self.state_bytes, 'B')} for weights, gradients "
                f"and optimizer, {quantity(self.activation_bytes, 'B')} for activations in fp32",
            ),
            ("steps", f"{self.steps:,}, over {self.samples:,} training samples"),
            ("optimizer", f"{summary(self.weights)} (each weight: --json)"),
        ]
        return f"{table(['layer', 'type', 'output', 'parameters'], rows)}\n\n{named_values(facts)}"


def example(
    spec: Spec, facts: Facts, batch: int, device: torch.device, lengths: tuple[int, ...] = ()
) -> tuple[Tensor, ...]:
    """What a model is called with, in the right shapes: images (B, C, H, W), frames, tokens (B, T), or those of two sides.

    Rows of tokens and frames are of these lengths (two for a source and a target), or as long as the data's context. The task
    says what else a model is called with.
    """
    length, *second = lengths or (facts.context or 1,)
    kind = input_of(facts)
    x = kind.random(batch, device, length)[kind.name]
    return spec.task.example(spec.model, facts, x, *(second or [length]))


def build_on_meta(spec: Spec, facts: Facts) -> Model:
    """The model without storage. Raises `SpecError` where it does not fit the data."""
    with watched(math.inf) as watch:
        try:
            with torch.device("meta"):
                return build_model(spec, facts)
        except RuntimeError as error:  # sizes whose product does not fit an integer
            needed = 4 * math.prod(watch.shape) * _copies(spec)
            shape, text = " x ".join(f"{n:,}" for n in watch.shape), str(error).splitlines()[0]
    raise SpecError(
        f"model: too large for any machine: one tensor of {shape} numbers needs {quantity(needed, 'B')} with its gradient and "
        f"the optimizer's state ({text}); make the model smaller"
    )


def build_within(spec: Spec, facts: Facts, device: torch.device) -> Model:
    """The model with its first weights, given up before there are more than fit the device (`SpecError`).

    Weights are counted as memory is asked for them, since building twice, once on the meta device, would cost more start-up time
    than half of torch: operations on it import the compiler. Only a model that seems too large is counted there, exactly.
    """
    if _largest(spec.model.model_dump()) > ABSURD:  # filling what fits until the rest does not would take minutes
        check_memory(spec, facts, device)
    try:
        with watched(total_memory(device) // _copies(spec)):
            return build_model(spec, facts)
    except (RuntimeError, MemoryError, Oversize) as error:  # the allocator's refusal, or ours
        refused = error
    check_memory(spec, facts, device)
    if not isinstance(refused, Oversize):
        raise refused
    return build_model(spec, facts)  # what was counted beside the weights is no part of them


def _largest(values: Any) -> int:
    """The largest whole number in plain values."""
    if isinstance(values, dict | list):
        return max((_largest(v) for v in (values.values() if isinstance(values, dict) else values)), default=0)
    return values if isinstance(values, int) else 0


def state_bytes(spec: Spec, weights: Iterable[Tensor]) -> int:
    """Bytes that weights, gradients, optimizer state and the moving average take."""
    return sum(p.numel() * p.element_size() for p in weights) * _copies(spec)


def _copies(spec: Spec) -> int:
    """How many numbers are kept for each weight: itself, its gradient, the optimizer's, the average."""
    return 2 + spec.train.optimizer.copies + (spec.train.ema is not None)


def outline(spec: Spec, facts: Facts) -> Outline:
    """The model without storage. Raises `SpecError` where it does not fit the data, or one of its tensors any machine."""
    short, stacks, more = shortened(spec.model)
    cut = bool(more) and not spec.init.freeze
    try:
        built = [
            build_on_meta(spec.model_copy(update={"model": options}), facts)
            for options in ([short, *more] if cut else [spec.model])
        ]
    except SpecError:
        build_on_meta(spec, facts)  # whose blocks have the numbers that the file gives them
        raise
    for model in built:
        freeze(model, spec.init)
    weights = named_weights(built[0])
    if not cut:
        return Outline([], built[0], [], weights)
    whole = in_whole(stacks, weights, lambda weight: weight.name, lambda weight, name: replace(weight, name=name))
    return Outline(stacks, built[0], built[1:], whole)


def check_memory(spec: Spec, facts: Facts, device: torch.device) -> Outline:
    """The model's outline, after refusing one that cannot fit the device (`SpecError`)."""
    found = outline(spec, facts)
    needed, there = state_bytes(spec, found.tensors), total_memory(device)
    if needed > there:
        count = sum(p.numel() for p in found.tensors)
        raise SpecError(
            f"model: {count:,} parameters need {quantity(needed, 'B')} for weights, gradients and optimizer, and {device} has "
            f"{quantity(there, 'B')}; make the model smaller"
        )
    return found


@contextlib.contextmanager
def without_collection() -> Iterator[None]:
    """Inside, no cycles of objects are looked for: a plan's millions live to its end, and looking took a quarter of its time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def plan(spec: Spec, facts: Facts, train: Split, found: Outline) -> Plan:
    """Everything that `--dry-run` shows."""
    meta, state, lengths = torch.device("meta"), state_bytes(spec, found.tensors), train.longest_rows()
    layers = describe(found.short, *example(spec, facts, 1, meta))
    return Plan(
        layers=in_whole(found.stacks, layers, lambda layer: layer.path, lambda layer, path: replace(layer, path=path)),
        parameters=sum(p.numel() for p in found.tensors),
        flops_per_sample=flops_per_sample(flops, spec, facts, found),
        training_flops_per_sample=flops_per_sample(training_flops, spec, facts, found),
        state_bytes=state,
        activation_bytes=peak_bytes(spec, facts, found, lengths) - state,
        steps=spec.train.total_steps(micro_batches(train, spec.train).per_epoch),
        samples=len(train),
        weights=describe_weights(spec.train.optimizer, found.weights),
    )


def flops_per_sample(count: Callable[..., int], spec: Spec, facts: Facts, found: Outline) -> int:
    """What `count` (`flops` or `training_flops`) finds for one sample of the whole model."""
    first, *rest = [count(model, *example(spec, facts, 1, torch.device("meta"))) for model in found.measured]
    return extended(found.stacks, first, rest)


def peak_bytes(spec: Spec, facts: Facts, found: Outline, lengths: tuple[int, ...]) -> int:
    """The most bytes in use at once: in the forward and backward pass of a full micro-batch, or in the update that follows it."""
    rows = spec.train.rows(max(lengths, default=None))
    sizes = [p.numel() * p.element_size() for p in found.tensors if p.requires_grad]
    gradients = sum(sizes)
    peaks = [step_peaks(m, *example(spec, facts, rows, torch.device("meta"), lengths)) for m in found.measured]
    in_passes = max(extended(found.stacks, first, rest) for first, *rest in zip(*peaks, strict=True))
    if spec.train.accumulate > 1:  # those of the micro-batches before
        in_passes += gradients
    return (
        state_bytes(spec, found.tensors) - gradients + max(in_passes, gradients + spec.train.optimizer.scratch(sizes))
    )
