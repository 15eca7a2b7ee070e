"""The dry run: what a spec would cost, with the model built on the meta device."""

from __future__ import annotations

import contextlib
import gc
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bigmodel_cli.adapters import count_trained
from bigmodel_cli.assemble import Outline, kept_bytes
from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.console import named_values, quantity, table
from bigmodel_cli.data import Split, input_of
from bigmodel_cli.depths import rated, said
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.logits import Chunk
from bigmodel_cli.models.describe import Layer, describe, flops, training_flops
from bigmodel_cli.models.footprint import step_peaks
from bigmodel_cli.models.stacks import extended, in_whole
from bigmodel_cli.optim import describe_weights, summary
from bigmodel_cli.spec import Spec
from bigmodel_cli.train.batches import micro_batches

_BLOCK = re.compile(r"^(.*?\.\d+)(\..*)?$")
"""A path within a block: up to its first index, and the rest."""


@dataclass(frozen=True)
class Memory:
    """Bytes of training, in fp32 and without the data: what stays, and what a step needs beside."""

    weights: int
    gradients: int
    optimizer_state: int  # and the moving average of the weights
    activations: int  # and other temporary memory, at the peak
    batch: str  # size of a micro-batch, for people

    @property
    def state(self) -> int:
        """What stays during the run."""
        return self.weights + self.gradients + self.optimizer_state

    @property
    def peak(self) -> int:
        """The peak."""
        return self.state + self.activations

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {**vars(self), "peak": self.peak}

    def to_text(self) -> dict[str, str]:
        """The parts by name, for people."""
        return {
            name.replace("_", " "): quantity(n, "B")
            for name, n in self.to_json().items()
            if name != "batch"
        }


@dataclass(frozen=True)
class Plan:
    """A dry run's findings."""

    layers: list[Layer]
    parameters: int
    flops_per_sample: int  # forward
    training_flops_per_sample: int  # and backward
    memory: Memory
    steps: int | None  # None: by the clock, or the samples are not known
    minutes: float | None
    samples: int | None  # None: the data is not there
    weights: list[dict[str, Any]]  # of each: name, shape, optimizer, decay
    rates: list[str]  # what is trained faster, slower or later
    adapter: list[str]  # what it trains, part by part

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        layers = [{**vars(layer), "shape": list(layer.shape)} for layer in self.layers]
        memory = self.memory
        older = {
            "state_bytes": memory.state,
            "activation_bytes": memory.activations,
            "memory_bytes": memory.peak,
        }
        return {**vars(self), "layers": layers, "memory": memory.to_json(), **older}

    def to_text(self) -> str:
        """For people."""
        memory = self.memory.to_text()
        peak = memory.pop("peak")
        info = [
            ("parameters", f"{self.parameters:,}"),
            (
                "FLOPs per sample",
                (
                    f"{quantity(self.flops_per_sample, 'FLOP')} forward, "
                    f"{quantity(self.training_flops_per_sample, 'FLOP')} in training"
                ),
            ),
            (
                "memory",
                (
                    f"about {peak} at its peak, in fp32, with {self.memory.batch} at once, without"
                    f" the data: {', '.join(f'{name} {part}' for name, part in memory.items())}"
                ),
            ),
            ("steps", self._length()),
            ("optimizer", f"{summary(self.weights)} (each weight: --json)"),
            *(("", line) for line in self.rates),
            *(("" if i else "adapter", line) for i, line in enumerate(self.adapter)),
        ]
        layers = table(["layer", "type", "output", "parameters"], _rows(self.layers))
        return f"{layers}\n\n{named_values(info)}"

    def _length(self) -> str:
        if self.minutes is not None:
            steps = f"as many as {self.minutes:g} minutes of training take"
        else:
            steps = "unknown without the data" if self.steps is None else f"{self.steps:,}"
        return steps + (
            f", over {self.samples:,} training samples" if self.samples is not None else ""
        )


def _rows(layers: Sequence[Layer]) -> list[list[str]]:
    """The layers as rows of a table; three or more equal blocks are the first and one row for the
    others.
    """

    def kind(block: tuple[str, list[Layer]]) -> tuple[Any, ...]:
        name, inside = block
        return name.rstrip("0123456789"), [
            (x.path.removeprefix(name), x.type, x.shape, x.parameters) for x in inside
        ]

    blocks = [
        (n, list(inside))
        for n, inside in itertools.groupby(layers, lambda x: _BLOCK.sub(r"\1", x.path))
    ]
    rows: list[list[str]] = []
    for _, group in itertools.groupby(blocks, kind):
        alike = list(group)
        (_, first), others = alike[0], alike[1:]
        folded = len(others) > 1 and len(first) > 2
        shown = first if folded else [layer for _, inside in alike for layer in inside]
        rows += [[x.path, x.type, _shape(x), f"{x.parameters:,}"] for x in shown]
        if folded:
            count = len(others) * sum(x.parameters for x in first)
            rows.append(
                [
                    f"{others[0][0]} ... {others[-1][0]}",
                    "each alike",
                    _shape(first[-1]),
                    f"{count:,}",
                ]
            )
    return rows


def _shape(layer: Layer) -> str:
    return " x ".join(map(str, layer.shape))


def example(
    spec: Spec, info: DatasetInfo, batch: int, device: torch.device, lengths: tuple[int, ...] = ()
) -> tuple[Tensor, ...]:
    """Dummy arguments of a model: images (B, C, H, W), frames, tokens (B, T), or source and target.

    Rows of tokens and frames have these lengths (two for a source and a target), or the data's
    context. The task adds its further arguments.
    """
    length, *second = lengths or (info.context or 1,)
    kind = input_of(info)
    x = kind.random(batch, device, length)[kind.name]
    return spec.task.example(spec.model, info, x, *(second or [info.text_context or length]))


@contextlib.contextmanager
def without_collection() -> Iterator[None]:
    """Inside, garbage collection is off: it took a quarter of a plan's time, and frees nothing
    there.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def plan(spec: Spec, info: DatasetInfo, train: Split, found: Outline) -> Plan:
    """Everything that `--dry-run` shows."""
    meta = torch.device("meta")
    layers = describe(found.short, *example(spec, info, 1, meta))
    with spec.placing():
        moved = rated(found.short, found.weights, spec.train)
    weights = describe_weights(spec.train.optimizer, moved)
    steps = spec.train.steps
    if len(train):
        steps = spec.train.total_steps(micro_batches(train, spec.train).per_epoch)
    return Plan(
        layers=in_whole(
            found.stacks,
            layers,
            lambda layer: layer.path,
            lambda layer, path: replace(layer, path=path),
        ),
        parameters=sum(p.numel() for p in found.tensors),
        flops_per_sample=flops_per_sample(flops, spec, info, found),
        training_flops_per_sample=flops_per_sample(training_flops, spec, info, found),
        memory=memory_of(spec, info, found, train.longest_rows()),
        steps=steps,
        minutes=spec.train.minutes,
        samples=len(train) or None,
        weights=weights,
        rates=list(said(weights, spec.train, steps)),
        adapter=count_trained(found.short, spec.adapter.type) if spec.adapter is not None else [],
    )


def flops_per_sample(
    count: Callable[..., int], spec: Spec, info: DatasetInfo, found: Outline
) -> int:
    """What `count` (`flops` or `training_flops`) finds for one sample of the whole model."""
    first, *rest = [
        count(model, *example(spec, info, 1, torch.device("meta"))) for model in found.measured
    ]
    return extended(found.stacks, first, rest)


def memory_of(spec: Spec, info: DatasetInfo, found: Outline, lengths: tuple[int, ...]) -> Memory:
    """The memory of training; its peak is in a micro-batch's passes, or in the update."""
    rows = spec.train.rows(max(lengths, default=None))
    sizes = [p.numel() * p.element_size() for p in found.tensors if p.requires_grad]
    weights, gradients, optimizer = kept_bytes(spec, found.weights, found.saved)
    chunk: Chunk = spec.train.loss_chunk if spec.task.build(info).takes_late else "off"
    peaks = []
    for model in found.measured:
        if spec.train.checkpointing == "blocks":
            model.recompute()
        arguments = example(spec, info, rows, torch.device("meta"), lengths)
        peaks.append(step_peaks(model, *arguments, chunk=chunk))
    in_passes = max(
        extended(found.stacks, first, rest) for first, *rest in zip(*peaks, strict=True)
    )
    if spec.train.accumulate > 1:  # gradients of earlier micro-batches
        in_passes += gradients
    activations = max(in_passes - gradients, spec.train.optimizer.scratch(sizes))
    unit = (
        ""
        if input_of(info).one_size
        else f" of {' and '.join(f'{n:,}' for n in lengths or (info.context or 1,))}"
    )
    return Memory(weights, gradients, optimizer, activations, f"{rows:,} samples{unit}")
