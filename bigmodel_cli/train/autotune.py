"""Precision, memory format and compilation, chosen by a short measurement where the spec says auto.

What is fastest differs by model and device (compiling a small CNN for a CPU makes it slower), so it
is measured, not assumed: the candidates take turns at a few forward and backward passes of the
first micro-batch. A candidate is chosen only if it was faster in every round, or in all but few of
many; where the rounds disagree there are more of them, and if they go on disagreeing the simplest
stays, so that noise does not decide, nor other work on the machine. The random state, the weights
and the buffers are restored afterwards. The choice is reported on stderr and recorded in the run's
spec, so that a resume and a repetition compute in the same way.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bigmodel_cli.device import autocast, is_cpu, synchronize
from bigmodel_cli.lazy import Module, Tensor, nn, torch
from bigmodel_cli.logits import Chunk, late
from bigmodel_cli.recipe import TrainOptions
from bigmodel_cli.tasks import Task

LEAST_ROUNDS, MOST_ROUNDS = 3, 13
"""Measured rounds of passes, after one to warm up; as many as `BUDGET` allows."""
BUDGET, LONGER = 0.3, 2.0
"""Seconds that the measurement may take in all, after the warm-up; and where rounds disagree."""
GAIN = 0.95
"""A candidate's median and least must be below this fraction of the simpler one's."""
LONG, ROWS = 0.12, 2
"""Seconds of a pass from which on the measurement takes fewer rows, and the least of them."""
SPARE = 6
"""Rounds that agree, for each that may not."""

Times = dict["ComputeMode", list[float]]
"""Seconds of each measured round, per candidate, the simplest first."""


@dataclass(frozen=True)
class ComputeMode:
    """One way to compute."""

    precision: str = "fp32"
    memory_format: str = "contiguous"

    def __str__(self) -> str:
        return self.precision + (", channels_last" if self.memory_format == "channels_last" else "")


def choose(
    model: Module,
    task: Task,
    batch: dict[str, Tensor],
    options: TrainOptions,
    say: Callable[[str], None],
    backward: bool = True,
) -> TrainOptions:
    """`options` with every auto replaced by what is fastest here for this model, in training or,
    without `backward`, in use.
    """
    device = next(model.parameters()).device
    candidates = _candidates(model, options, device)
    best = candidates[0]
    if len(candidates) > 1:
        batch = _shortened(model, task, batch, candidates[0], backward, options.loss_chunk)
        times = measure(
            lambda candidate: _one_pass(
                model, task, batch, candidate, device, backward, options.loss_chunk
            ),
            model,
            candidates,
        )
        best, close = decide(times)
        shown = "; ".join(f"{c} {1e3 * statistics.median(t):.1f} ms" for c, t in times.items())
        rounds = len(times[candidates[0]])
        how = "one pass" if rounds == 1 else f"median of {rounds} passes"
        why = "; it was close, so the plainer stays" if close else ""
        say(
            f"computing in {best} ({how}: {shown}{why}); pin"
            " train.precision and train.memory_format to repeat"
        )
    compiled = "on" if options.compile == "auto" and device.type == "cuda" else options.compile
    return options.model_copy(
        update={
            "precision": best.precision,
            "memory_format": best.memory_format,
            "compile": "off" if compiled == "auto" else compiled,
        }
    )


def _shortened(
    model: Module,
    task: Task,
    batch: dict[str, Tensor],
    plain: ComputeMode,
    backward: bool,
    chunk: Chunk,
) -> dict[str, Tensor]:
    """The batch, or so many of its rows that a pass is not long, as a pass of few rows foretells,
    and one of more; on a GPU, one of all.
    """
    device = next(model.parameters()).device
    rows = max(map(len, batch.values()), default=0)
    taken = [0.0]

    def seconds(count: int) -> float:
        part = first_rows(batch, count)

        def one_pass(candidate: ComputeMode) -> float:
            for _ in range(2):  # the first one says little
                taken[0] = _one_pass(model, task, part, candidate, device, backward, chunk)
            return taken[0]

        measure(one_pass, model, [plain])
        return max(taken[0], 1e-9)

    tried = min(rows, ROWS) if is_cpu(device) else rows
    first = seconds(tried)
    kept = min(rows, max(ROWS, int(tried * LONG / first)))
    if kept > tried:  # what a pass takes at least, of whatever size, counts once
        each = max((seconds(kept) - first) / (kept - tried), first / tried / 100)
        kept = min(rows, max(kept, tried + int((LONG - first) / each)))
    return batch if kept == rows else first_rows(batch, kept)


def first_rows(batch: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    """The first rows of a batch."""
    return {name: tensor[:count] for name, tensor in batch.items()}


def in_format(batch: dict[str, Tensor], memory_format: str) -> dict[str, Tensor]:
    """A batch whose images (B, C, H, W) are in this memory format."""
    layout = _layout(memory_format)
    return {n: t.contiguous(memory_format=layout) if t.dim() == 4 else t for n, t in batch.items()}


def _layout(memory_format: str) -> Any:
    return torch.channels_last if memory_format == "channels_last" else torch.contiguous_format


def apply_mode(model: Module, options: TrainOptions) -> None:
    """Convert the model to the chosen memory format, and compile it where that was chosen."""
    if options.memory_format == "channels_last":
        model.to(memory_format=torch.channels_last)
    if options.compile == "on":
        model.compile()


def _candidates(model: Module, options: TrainOptions, device: torch.device) -> list[ComputeMode]:
    """The candidates, the simplest first."""
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
    return [ComputeMode(p, f) for p in precisions for f in formats]


def decide(times: Times) -> tuple[ComputeMode, bool]:
    """The chosen candidate, and whether another had a lower median (it was close).

    One candidate beats a simpler one if it was faster in every round but one for each `SPARE`
    others, and its median and its least by `GAIN`.
    """
    plain, *others = times
    able = [c for c in others if _beats(times[c], times[plain])]
    best = plain
    for candidate in able:
        if best == plain or _beats(times[candidate], times[best]):
            best = candidate
    least = min(times, key=lambda c: statistics.median(times[c]))
    return best, least != best and list(times).index(least) > list(times).index(best)


def _beats(times: list[float], others: list[float]) -> bool:
    """Whether it was faster, by enough. A candidate that was dropped early has too few rounds."""
    if len(times) < len(others) or _lost(times, others) > (len(others) - 1) // SPARE:
        return False
    least = min(times) < GAIN * min(others)
    return least and statistics.median(times) < GAIN * statistics.median(others)


def _lost(times: list[float], others: list[float]) -> int:
    """The rounds of both in which it was not faster."""
    return sum(a >= b for a, b in zip(times, others, strict=False))


def _undecided(times: Times, running: list[ComputeMode]) -> bool:
    """Whether one of them looks faster than the simplest, though the rounds disagree."""
    plain = times[next(iter(times))]
    middle = GAIN * statistics.median(plain)
    return any(
        statistics.median(times[c]) < middle and not _beats(times[c], plain) for c in running
    )


def measure(
    one_pass: Callable[[ComputeMode], float],
    model: Module,
    candidates: list[ComputeMode],
    clock: Callable[[], float] = time.perf_counter,
) -> Times:
    """Seconds of each candidate's passes, in turns; one that loses two rounds to the simplest, and
    most of them, is dropped.
    """
    device = next(model.parameters()).device
    devices = [device] if device.type == "cuda" else []
    buffers = {name: tensor.clone() for name, tensor in model.named_buffers()}
    times: Times = {candidate: [] for candidate in candidates}
    try:
        with torch.random.fork_rng(devices=devices):
            for candidate in candidates:
                one_pass(candidate)  # to warm up
            start, running = clock(), candidates
            for number in range(MOST_ROUNDS):
                if len(running) == 1 or (
                    number >= LEAST_ROUNDS
                    and clock() - start > (LONGER if _undecided(times, running) else BUDGET)
                ):
                    break
                for candidate in running:
                    times[candidate].append(one_pass(candidate))
                plain = times[candidates[0]]
                lost = {c: _lost(times[c], plain) for c in running[1:]}
                running = [c for c in running if c not in lost or max(1, len(plain) / 2) >= lost[c]]
    finally:  # also out of memory: it is measured again with fewer samples
        with torch.no_grad():
            for name, tensor in model.named_buffers():
                tensor.copy_(buffers[name])
        for p in model.parameters():
            p.grad = None
        model.to(memory_format=torch.contiguous_format)
    return times


def _one_pass(
    model: Module,
    task: Task,
    batch: dict[str, Tensor],
    candidate: ComputeMode,
    device: torch.device,
    backward: bool,
    chunk: Chunk = "auto",
) -> float:
    layout = _layout(candidate.memory_format)
    model.to(memory_format=layout)
    batch = in_format(batch, candidate.memory_format)
    for p in model.parameters():
        p.grad = None
    synchronize(device)
    start = time.perf_counter()
    reading = late(chunk, backward and task.takes_late)
    with autocast(device, candidate.precision), torch.set_grad_enabled(backward), reading:
        outputs = task.forward(model, batch, training=backward)
        loss = task.loss(outputs, batch)[0] if backward else None
    if loss is not None:
        loss.backward()
    synchronize(device)
    return time.perf_counter() - start
