"""`bigmodel bench`: the time and memory of a training step, and its share of the machine's peak."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Any

from bigmodel_cli.assemble import assemble, check_memory, source_of
from bigmodel_cli.bench.peak import peak_flops, peak_memory
from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.console import quantity, rate, say, seconds_of, sentence, table
from bigmodel_cli.convert.based import frozen_weights
from bigmodel_cli.data import random_batch
from bigmodel_cli.device import describe_device, pick_device, synchronize
from bigmodel_cli.lazy import load_torch, torch
from bigmodel_cli.models.describe import training_flops
from bigmodel_cli.spec import Spec
from bigmodel_cli.tasks import build_task
from bigmodel_cli.train.autotune import in_format
from bigmodel_cli.train.held import hold
from bigmodel_cli.train.objective import Objective
from bigmodel_cli.train.plan import Memory, flops_per_sample, memory_of
from bigmodel_cli.train.room import check_fits
from bigmodel_cli.train.setup import prepare
from bigmodel_cli.train.step import StepResult, batch_norm_explained, train_step

WARMUP = 3


@dataclass(frozen=True)
class Timing:
    """One benchmark's figures. Times are of a whole training step: forward, backward and update."""

    name: str
    precision: str
    memory_format: str
    batch_size: int
    median_s: float
    p95_s: float
    steps: int
    per_second: float
    unit: str
    parameters: int
    step_flops: int
    flops_per_second: float
    peak_flops_per_second: float
    memory: Memory  # foreseen, as by --dry-run
    peak_memory_bytes: int  # measured

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {**vars(self), "memory": self.memory.to_json(), "mfu": self.share}

    @property
    def share(self) -> float:
        """The FLOP/s as a part of the machine's peak (MFU); above 1 where its speed changed."""
        return self.flops_per_second / self.peak_flops_per_second

    def ratio(self, first: Timing) -> float | None:
        """The rate relative to the first one's; None where the units differ."""
        return self.per_second / first.per_second if self.unit == first.unit else None


@dataclass(frozen=True)
class BenchReport:
    """All timings of one call, and the device they were taken on."""

    device: str
    timings: list[Timing]

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        rows = [{**t.to_json(), "ratio_to_first": t.ratio(self.timings[0])} for t in self.timings]
        return {"device": self.device, "benchmarks": rows}

    def to_text(self) -> str:
        """Two tables for people: of time, and of memory."""
        columns = [
            "network",
            "computed in",
            "median",
            "p95",
            "rate",
            "to the first",
            "FLOP/s",
            "MFU",
            "parameters",
        ]
        ratios = [t.ratio(self.timings[0]) for t in self.timings]
        rows = [
            [
                t.name,
                t.precision + (" channels_last" if t.memory_format == "channels_last" else ""),
                seconds_of(t.median_s),
                seconds_of(t.p95_s),
                rate(t.per_second, t.unit),
                "-" if ratio is None else f"{ratio:.2f} x",
                quantity(t.flops_per_second, "FLOP/s"),
                f"{100 * t.share:.0f} %",
                f"{t.parameters:,}",
            ]
            for t, ratio in zip(self.timings, ratios, strict=True)
        ]
        if all(ratio is None for ratio in ratios[1:]):
            columns, *rows = [[*row[:5], *row[6:]] for row in (columns, *rows)]
        parts = list(self.timings[0].memory.to_text())
        memory = [
            [t.name, *t.memory.to_text().values(), quantity(t.peak_memory_bytes, "B")]
            for t in self.timings
        ]
        of_memory = table(["network", *parts, "peak measured"], memory)
        return (
            f"training steps on {self.device}\n{table(columns, rows)}{self._doubt()}\n\nmemory of"
            " training, foreseen in fp32 and without the data, and the peak of a"
            f" step\n{of_memory}"
        )

    def _doubt(self) -> str:
        """What is said where a share of the peak is impossible."""
        if all(t.share <= 1 for t in self.timings):
            return ""
        return "\n" + sentence(
            "MFU above 100 %: the machine was faster in the steps than in the matrix products that"
            " measure its peak, before them and after; other work slowed it: run it again alone"
        )


def bench(named: list[tuple[str, Spec, DatasetInfo]], device: str, seconds: float) -> BenchReport:
    """Time training steps of each network on random input of the right shape, for about `seconds`
    each.
    """
    load_torch()
    chosen = pick_device(device, say)
    with batch_norm_explained():
        timings = [_time(name, spec, info, chosen, seconds) for name, spec, info in named]
    return BenchReport(describe_device(chosen), timings)


def _time(name: str, spec: Spec, info: DatasetInfo, device: torch.device, seconds: float) -> Timing:
    found = check_memory(spec, info, device)
    memory = memory_of(spec, info, found, () if info.context is None else (info.context,))
    check_fits(spec, device, memory, info.context or 1)
    source = source_of(spec)
    model, task = assemble(spec, info, device, source), build_task(spec.task, info)
    if task.needs_reference:
        task.reference = model  # which costs as much as the checkpoint that it starts from
    rows = spec.train.rows(info.context)
    batches = [random_batch(info, task.reads, rows, device) for _ in range(spec.train.accumulate)]
    # what a run's checkpoints hold; without weights yet, as if there were some
    alone = spec.adapter is not None and (source is not None or spec.adapter.base is not None)
    left_out = frozen_weights(model) if alone else frozenset()
    spec, state = prepare(spec, model, task, lambda: batches[0], left_out)
    options = spec.train
    state.held = hold(model, state.left_out, spec.adapter, options.precision)
    batches = [in_format(batch, options.memory_format) for batch in batches]

    def step() -> StepResult:
        return train_step(state, Objective(task), options, batches, device, options.optimizer.lr)

    peak = peak_flops(device, options.precision)
    times: list[float] = []
    deadline = 0.0
    while len(times) < WARMUP + 5 or time.perf_counter() < deadline:
        if len(times) == WARMUP:
            deadline = time.perf_counter() + seconds
        synchronize(device)
        start = time.perf_counter()
        result = step()
        synchronize(device)
        times.append(time.perf_counter() - start)
        state.after_step()
    times = sorted(times[WARMUP:])
    median = statistics.median(times)
    samples = rows * spec.train.accumulate
    step_flops = flops_per_sample(training_flops, spec, info, found) * samples
    return Timing(
        name=name,
        precision=options.precision,
        memory_format=options.memory_format,
        batch_size=samples,
        median_s=median,
        p95_s=times[min(len(times) - 1, int(0.95 * len(times)))],
        steps=len(times),
        per_second=result.size / median,
        unit=task.unit,
        parameters=sum(p.numel() for p in model.parameters()),
        step_flops=step_flops,
        flops_per_second=step_flops / median,
        peak_flops_per_second=max(peak, peak_flops(device, options.precision)),
        memory=memory,
        peak_memory_bytes=peak_memory(
            state, step, [t for b in batches for t in b.values()], device
        ),
    )
