"""How to compute: precision, memory format and compilation, chosen by a short measurement where the spec says auto.

What is fastest differs by model and device (compiling a small CNN for a CPU makes it slower), so it is measured, not
assumed: a few forward and backward passes of the first micro-batch for each candidate. The random state, the weights and
the buffers are as before afterwards. The choice is said on stderr and recorded in the run's spec, so that a resume and a
repetition compute in the same way.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bigmodel_cli.device import autocast, synchronize
from bigmodel_cli.lazy import Module, Tensor, nn, torch
from bigmodel_cli.recipe import TrainOptions
from bigmodel_cli.tasks import Task

ROUNDS = 5
BUDGET = 0.3
"""Seconds that the measurement may take in all, after one round of each candidate."""
GAIN = 0.95
"""A candidate must take less than this fraction of the plain one's time: noise does not cost precision."""


@dataclass(frozen=True)
class Choice:
    """One way to compute."""

    precision: str = "fp32"
    memory_format: str = "contiguous"

    def __str__(self) -> str:
        return self.precision + (", channels_last" if self.memory_format == "channels_last" else "")


def choose(
    model: Module, task: Task, batch: dict[str, Tensor], options: TrainOptions, say: Callable[[str], None]
) -> TrainOptions:
    """`options` with every auto replaced by what is fastest here for this model."""
    device = next(model.parameters()).device
    candidates = _candidates(model, options, device)
    best = candidates[0]
    if len(candidates) > 1:
        seconds = measure(model, task, batch, candidates)
        fastest = min(candidates, key=lambda c: seconds[c])
        best = fastest if seconds[fastest] < GAIN * seconds[best] else best
        shown = "; ".join(f"{c} {1e3 * seconds[c]:.1f} ms" for c in candidates)
        say(f"computing in {best} (measured per pass: {shown}); pin train.precision and train.memory_format to repeat")
    compiled = "on" if options.compile == "auto" and device.type == "cuda" else options.compile
    return options.model_copy(
        update={
            "precision": best.precision,
            "memory_format": best.memory_format,
            "compile": "off" if compiled == "auto" else compiled,
        }
    )


def apply(model: Module, options: TrainOptions) -> None:
    """Bring the model into the chosen memory format, and compile it where that was chosen."""
    if options.memory_format == "channels_last":
        model.to(memory_format=torch.channels_last)
    if options.compile == "on":
        model.compile()


def _candidates(model: Module, options: TrainOptions, device: torch.device) -> list[Choice]:
    """What may be chosen, the plainest first."""
    precisions = [options.precision]
    if options.precision == "auto":
        precisions = ["fp32"]
        if device.type == "cpu" or (device.type == "cuda" and torch.cuda.is_bf16_supported()):
            precisions.append("bf16")
        elif device.type == "cuda":
            precisions.append("fp16")
    formats = [options.memory_format]
    if options.memory_format == "auto":
        convolutional = any(isinstance(m, nn.Conv2d) for m in model.modules())
        formats = ["contiguous", "channels_last"] if convolutional else ["contiguous"]
    return [Choice(p, f) for p in precisions for f in formats]


def measure(model: Module, task: Task, batch: dict[str, Tensor], candidates: list[Choice]) -> dict[Choice, float]:
    """Seconds of one forward and backward pass per candidate: the least of a few interleaved rounds."""
    device = next(model.parameters()).device
    devices = [device] if device.type == "cuda" else []
    buffers = {name: tensor.clone() for name, tensor in model.named_buffers()}
    seconds: dict[Choice, float] = {}
    deadline: float | None = None
    with torch.random.fork_rng(devices=devices):
        for round_number in range(ROUNDS + 1):
            for candidate in candidates:
                taken = _one_pass(model, task, batch, candidate, device)
                if round_number > 0:  # the first round is the warm-up
                    seconds[candidate] = min(seconds.get(candidate, taken), taken)
            if round_number == 0:
                deadline = time.perf_counter() + BUDGET
            elif deadline is not None and time.perf_counter() > deadline:
                break
    with torch.no_grad():
        for name, tensor in model.named_buffers():
            tensor.copy_(buffers[name])
    for p in model.parameters():
        p.grad = None
    model.to(memory_format=torch.contiguous_format)
    return seconds


def _one_pass(model: Module, task: Task, batch: dict[str, Tensor], candidate: Choice, device: torch.device) -> float:
    layout: Any = torch.channels_last if candidate.memory_format == "channels_last" else torch.contiguous_format
    if "image" in batch:
        model.to(memory_format=layout)
        batch = {**batch, "image": batch["image"].contiguous(memory_format=layout)}
    for p in model.parameters():
        p.grad = None
    synchronize(device)
    start = time.perf_counter()
    with autocast(device, candidate.precision):
        loss, _ = task.loss(model, batch)
    loss.backward()
    synchronize(device)
    return time.perf_counter() - start
