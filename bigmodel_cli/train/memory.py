"""What a spec would cost, found without allocating it: the model is built on the meta device."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from bigmodel_cli.assemble import Outline, state_bytes
from bigmodel_cli.config import Facts
from bigmodel_cli.console import quantity, table
from bigmodel_cli.data import Split, input_of
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.models.describe import Layer, describe, flops, training_flops
from bigmodel_cli.models.footprint import step_peaks
from bigmodel_cli.models.stacks import extended, in_whole
from bigmodel_cli.optim import describe_weights, summary
from bigmodel_cli.spec import Spec
from bigmodel_cli.train.batches import micro_batches


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
        return "\n".join(
            [
                table(["layer", "type", "output", "parameters"], rows),
                "",
                f"parameters        {self.parameters:,}",
                f"FLOPs per sample  {quantity(self.flops_per_sample, 'FLOP')} forward, "
                f"{quantity(self.training_flops_per_sample, 'FLOP')} in training",
                f"memory            about {quantity(memory, 'B')}: {quantity(self.state_bytes, 'B')} for weights, gradients "
                f"and optimizer, {quantity(self.activation_bytes, 'B')} for activations in fp32",
                f"steps             {self.steps:,}, over {self.samples:,} training samples",
                f"optimizer         {summary(self.weights)} (each weight: --json)",
            ]
        )


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
