"""A model in use, without gradients: what inference, evaluation and generation have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bigmodel_cli.assemble import assemble, outline, source_of
from bigmodel_cli.bench.doing import Opened, threads
from bigmodel_cli.bench.laps import Laps
from bigmodel_cli.bench.result import Facts, Work
from bigmodel_cli.bench.work import work_of
from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.console import say
from bigmodel_cli.data import Split, random_batch
from bigmodel_cli.device import describe_device, is_cuda
from bigmodel_cli.evaluation.evaluator import similar
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.models import Model
from bigmodel_cli.models.describe import flops
from bigmodel_cli.models.footprint import following
from bigmodel_cli.spec import Spec
from bigmodel_cli.tasks import Task, build_task
from bigmodel_cli.train.autotune import apply_mode, choose, in_format
from bigmodel_cli.train.plan import flops_per_sample

SPLITS = ("val", "test", "train")
"""Where batches are from: the first of these that the data has."""
Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Used:
    """A model in evaluation mode, on its device, and how it computes."""

    spec: Spec
    info: DatasetInfo
    model: Model
    task: Task
    device: torch.device
    precision: str
    memory_format: str

    @property
    def weights(self) -> int:
        """Bytes of its weights, each once."""
        return sum(p.numel() * p.element_size() for p in self.model.parameters())

    def facts(self, doing: str, batch_size: int, size: float, data: str) -> Facts:
        """What is known of work with it; `size` is that of a step in the task's unit."""
        return Facts(
            name="",
            doing=doing,
            unit=self.task.unit,
            size=size,
            batch_size=batch_size,
            precision=self.precision,
            memory_format=self.memory_format,
            compiled=self.spec.train.compile == "on",
            parameters=sum(p.numel() for p in self.model.parameters()),
            device=describe_device(self.device),
            threads=threads(),
            data=data,
            foreseen={"weights": self.weights},
        )

    def work(
        self,
        samples: float,
        step: Callable[[], Mapping[str, float]],
        run: Callable[[], object],
        must_read: float | None = None,
    ) -> Work:
        """That of forward passes over so many samples; `step`, `run` and `must_read` as `work_of`
        takes them.
        """
        outlined = outline(self.spec, self.info)
        return work_of(
            step,
            run,
            flops_per_sample(flops, self.spec, self.info, outlined) * samples,
            self.device,
            self.precision,
            compiled=self.spec.train.compile == "on",
            must_read=must_read,
        )

    def peak(self, step: Callable[[], object]) -> int:
        """Peak bytes while `step` runs: the weights, and all that it holds beside them."""
        kept = [*self.model.parameters(), *self.model.buffers()]
        storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in kept}
        if is_cuda(self.device):
            torch.cuda.reset_peak_memory_stats(self.device)
            before = torch.cuda.memory_allocated(self.device)
            step()
            added = int(torch.cuda.max_memory_allocated(self.device)) - before
        else:
            with following(kept) as alive:
                step()
            added = max(alive.course, default=0)
        return sum(storages.values()) + added


def used(opened: Opened, device: torch.device, rows: int) -> Used:
    """The target's model for use: a checkpoint's with its weights, as `predict` and `eval` compute
    with it, or a spec's as drawn, in what is fastest here where the spec says auto.

    It is compiled only where the spec says so. `rows` of a batch are passed to find what is
    fastest.
    """
    spec, info = opened.spec, opened.info
    if opened.load is not None:
        loaded = opened.load(device)
        compiled(loaded.model, loaded.spec)
        return Used(
            loaded.spec,
            loaded.info,
            loaded.model,
            loaded.task,
            device,
            loaded.precision,
            "contiguous",
        )
    model, task = assemble(spec, info, device, source_of(spec)), build_task(spec.task, info)
    if task.needs_reference:
        task.reference = model
    model.eval()
    asked = spec.train.compile
    spec = spec.model_copy(
        update={
            "train": spec.train.model_copy(update={"compile": "on" if asked == "on" else "off"})
        }
    )
    options = spec.train
    if "auto" in (options.precision, options.memory_format):
        batch = random_batch(info, task.reads, rows, device)
        options = choose(model, task, batch, options, say, backward=False)
        model.eval()
    apply_mode(model, options)
    spec = spec.model_copy(update={"train": options})
    return Used(spec, info, model, task, device, options.precision, options.memory_format)


def compiled(model: Model, spec: Spec) -> None:
    """Compile it where the spec says so."""
    if spec.train.compile == "on":
        model.compile()


def batches(opened: Opened, used: Used, rows: int) -> Iterator[Batch]:
    """Batches of so many rows without end, on the CPU: the target's own in the order in which
    `eval` takes them, over and over where they are few, or one that is drawn.
    """
    split = split_of(opened)
    if split is None:
        drawn = random_batch(used.info, used.task.reads, rows, torch.device("cpu"))
        while True:
            yield drawn
    order, first = similar(split), 0
    while True:
        yield split.batch(np.take(order, range(first, first + rows), mode="wrap"), 0, 0, False)
        first = (first + rows) % len(order)


def split_of(opened: Opened) -> Split | None:
    """The split whose items are taken; None where the data is not there."""
    if opened.data is None:
        return None
    return opened.data.split(next(s for s in SPLITS if s in opened.data.splits))


class Passes:
    """Forward passes over batches."""

    parts: tuple[str, ...] = ("wait", "forward")
    doing = "inference"

    def __init__(self, opened: Opened, device: torch.device) -> None:
        self.device, self.data = device, "random" if opened.data is None else "real"
        self.rows = self.rows_of(opened)
        self.used = used(opened, device, self.rows)
        self.batches = batches(opened, self.used, self.rows)
        self.size, self.samples, self.steps = 0.0, 0, 0

    def rows_of(self, opened: Opened) -> int:
        """Samples at once."""
        return opened.spec.train.rows(opened.info.context)

    def facts(self) -> Facts:
        count = max(1, self.steps)
        return self.used.facts(self.doing, self.rows, self.size / count, self.data)

    def step(self, marked: bool = True) -> Mapping[str, float]:
        laps = Laps(self.device, self.parts, marked)
        batch = next(self.batches)
        with torch.inference_mode():
            self.passed(batch, laps)
        found = laps.done()
        self.size += float(self.used.task.size(batch))
        self.samples += len(next(iter(batch.values())))
        self.steps += 1
        return found

    def passed(self, batch: Batch, laps: Callable[[str], None]) -> Any:
        """What is done with a batch, once it is there."""
        raise NotImplementedError

    def moved(self, batch: Batch) -> Batch:
        """The batch on the device, in the chosen format."""
        batch = {name: tensor.to(self.device) for name, tensor in batch.items()}
        return in_format(batch, self.used.memory_format)

    def work(self) -> Work | None:
        return self.used.work(self.samples / max(1, self.steps), self.step, self._run())

    def peak_tensors(self) -> int:
        return self.used.peak(self._run())

    def _run(self) -> Callable[[], None]:
        """The pass over a batch that is there."""
        batch = next(self.batches)

        def run() -> None:
            with torch.inference_mode():
                self.passed(batch, lambda part: None)

        return run

    def close(self) -> None:
        """Nothing was started."""
