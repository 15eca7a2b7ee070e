"""Batches of the training data alone, as a run loads them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from bigmodel_cli.bench.doing import Opened, threads
from bigmodel_cli.bench.laps import Laps
from bigmodel_cli.bench.result import Facts, Work
from bigmodel_cli.console import say
from bigmodel_cli.data import open_data
from bigmodel_cli.device import describe_device
from bigmodel_cli.lazy import torch
from bigmodel_cli.models.footprint import following
from bigmodel_cli.tasks import build_task
from bigmodel_cli.train.batches import micro_batches
from bigmodel_cli.train.loader import BatchLoader
from bigmodel_cli.train.room import check_enough

LONG = 10**9
"""Steps of a loader: more than anybody times."""


class Loading:
    """The batches of training steps, read, augmented and put onto the device: without a model."""

    def __init__(self, opened: Opened, device: torch.device) -> None:
        """Raises `DataError` where the data is not there."""
        spec, self.device = opened.spec, device
        data = opened.data or open_data(spec.data, base=Path(), say=say, assets=opened.assets)
        split = data.split("train")
        check_enough(spec, split)
        self.options, self.info = spec.train, data.info
        self.task = build_task(spec.task, data.info)
        micro = micro_batches(split, spec.train)
        self.loader = BatchLoader(micro, spec.train, spec.data.loader_workers(), device)
        self.batches = self.loader.steps(0, LONG)
        self.size, self.steps = 0.0, 0

    def facts(self) -> Facts:
        return Facts(
            name="",
            doing="data",
            unit=self.task.unit,
            size=self.size / max(1, self.steps),
            batch_size=self.options.rows(self.info.context) * self.options.accumulate,
            precision="-",
            memory_format="contiguous",
            compiled=False,
            parameters=0,
            device=describe_device(self.device),
            threads=threads(),
            data="real",
            told={"loader_workers": self.loader.workers},
        )

    def step(self, marked: bool = True) -> Mapping[str, float]:
        laps = Laps(self.device, ("wait",), marked)
        batches = next(self.batches)
        laps("wait")
        found = laps.done()
        self.size += sum(float(self.task.size(batch)) for batch in batches)
        self.steps += 1
        return found

    def work(self) -> Work | None:
        """None: nothing is computed."""
        return None

    def peak_tensors(self) -> int:
        """Bytes of a step's batches, and of what this process makes them of."""
        with following([]) as alive:
            next(self.batches)
        return max(alive.course, default=0)

    def close(self) -> None:
        self.loader.close()
