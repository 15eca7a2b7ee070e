"""Training steps, as `pretrain` takes them: wait for data, forward, backward, update."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from bigmodel_cli.assemble import assemble, check_memory, source_of
from bigmodel_cli.bench.doing import Opened, threads
from bigmodel_cli.bench.laps import Laps
from bigmodel_cli.bench.peak import peak_memory
from bigmodel_cli.bench.result import Facts, Work
from bigmodel_cli.bench.work import work_of
from bigmodel_cli.console import say
from bigmodel_cli.convert.based import frozen_weights
from bigmodel_cli.data import random_batch
from bigmodel_cli.device import describe_device
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.models.describe import training_flops
from bigmodel_cli.spec import Spec
from bigmodel_cli.tasks import Task, build_task
from bigmodel_cli.train.autotune import in_format
from bigmodel_cli.train.batches import micro_batches
from bigmodel_cli.train.graphs import taking
from bigmodel_cli.train.held import hold
from bigmodel_cli.train.loader import BatchLoader
from bigmodel_cli.train.objective import Objective, fuses
from bigmodel_cli.train.plan import flops_per_sample, memory_of
from bigmodel_cli.train.room import check_enough, check_fits
from bigmodel_cli.train.setup import prepare
from bigmodel_cli.train.step import StepResult, can_queue, train_step

PARTS = ("wait", "forward", "backward", "update")
LONG = 10**9
"""Steps of a loader: more than anybody times."""
Batches = list[dict[str, Tensor]]


class Training:
    """Steps on the target's own batches where its data is there, on random ones else."""

    def __init__(self, opened: Opened, device: torch.device) -> None:
        spec, info = opened.spec, opened.info
        self.info, self.device = info, device
        self.outlined = check_memory(spec, info, device)
        longest = opened.data.split("train").longest_rows() if opened.data is not None else ()
        lengths = longest or (() if info.context is None else (info.context,))
        self.memory = memory_of(spec, info, self.outlined, lengths)
        check_fits(spec, device, self.memory, max(lengths, default=1))
        source = source_of(spec)
        self.model, task = assemble(spec, info, device, source), build_task(spec.task, info)
        if task.needs_reference:
            task.reference = self.model  # which costs as much as the checkpoint it starts from
        self.loader = _loader(spec, opened, device)
        first = self._drawn(spec, task) if self.loader is None else next(self.loader.steps(0, 1))
        # what a run's checkpoints hold; without weights yet, as if there were some
        alone = spec.adapter is not None and (source is not None or spec.adapter.base is not None)
        left_out = frozen_weights(self.model) if alone else frozenset()
        self.spec, self.state = prepare(spec, self.model, task, lambda: first[0], left_out)
        options = self.spec.train
        self.state.held = hold(self.model, left_out, spec.adapter, options.precision)
        self.batches = self._steps(first)
        self.objective = Objective(task, options.loss_chunk, fuses(options, device))
        self.queued = can_queue(self.state, options, device)
        self.taking = taking(options, device, say)
        self.size, self.steps = 0.0, 0

    def _drawn(self, spec: Spec, task: Task) -> Batches:
        rows = spec.train.rows(self.info.context)
        return [
            random_batch(self.info, task.reads, rows, self.device)
            for _ in range(spec.train.accumulate)
        ]

    def _steps(self, first: Batches) -> Iterator[Batches]:
        """The batches of each step."""
        if self.loader is not None:
            self.loader.options = self.spec.train
            return iter(self.loader.steps(0, LONG))
        drawn = [in_format(batch, self.spec.train.memory_format) for batch in first]
        return iter(lambda: drawn, None)

    def facts(self) -> Facts:
        options, size = self.spec.train, self.size / max(1, self.steps)
        return Facts(
            name="",
            doing="training",
            unit=self.objective.task.unit,
            size=size,
            batch_size=options.rows(self.info.context) * options.accumulate,
            precision=options.precision,
            memory_format=options.memory_format,
            compiled=options.compile == "on",
            parameters=sum(p.numel() for p in self.model.parameters()),
            device=describe_device(self.device),
            threads=threads(),
            data="random" if self.loader is None else "real",
            foreseen=self.memory.to_json(),
        )

    def step(self, marked: bool = True) -> Mapping[str, float]:
        laps = Laps(self.device, PARTS, marked)
        batches = next(self.batches)
        laps("wait")
        options = self.spec.train
        rate = options.optimizer.lr
        own = (self.state, self.objective, options, batches, self.device, rate)
        if marked or not self.queued:
            result = train_step(*own, laps)
            found = laps.done()
        else:
            numbers = self.taking(*own)
            found = laps.done()
            result = StepResult.of(numbers.tolist())
        self.state.after_step()
        self.size, self.steps = self.size + result.size, self.steps + 1
        return found

    def peak_tensors(self) -> int:
        batches = next(self.batches)
        options = self.spec.train
        return peak_memory(
            self.state,
            lambda: train_step(
                self.state, self.objective, options, batches, self.device, options.optimizer.lr
            ),
            [tensor for batch in batches for tensor in batch.values()],
            self.device,
        )

    def once(self) -> Callable[[], None]:
        """A step on a batch that is there."""
        options, batches = self.spec.train, next(self.batches)

        def run() -> None:
            rate = options.optimizer.lr
            train_step(self.state, self.objective, options, batches, self.device, rate)
            self.state.after_step()

        return run

    def work(self) -> Work:
        options, run = self.spec.train, self.once()
        samples = options.rows(self.info.context) * options.accumulate
        return work_of(
            self.step,
            run,
            flops_per_sample(training_flops, self.spec, self.info, self.outlined) * samples,
            self.device,
            options.precision,
            compiled=options.compile == "on",
        )

    def close(self) -> None:
        if self.loader is not None:
            self.loader.close()


def _loader(spec: Spec, opened: Opened, device: torch.device) -> BatchLoader | None:
    """The run's own batches; None where its data is not there."""
    if opened.data is None:
        return None
    split = opened.data.split("train")
    check_enough(spec, split)
    micro = micro_batches(split, spec.train)
    return BatchLoader(micro, spec.train, spec.data.loader_workers(), device)
