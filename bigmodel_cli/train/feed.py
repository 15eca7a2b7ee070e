"""Micro-batches on their way to the device, from any step onwards; through loader workers where decoding costs time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bigmodel_cli.data import Split
from bigmodel_cli.errors import DataError
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.recipe import TrainOptions
from bigmodel_cli.train.batches import micro_batches

LOADER_TIMEOUT = 120.0
"""Seconds without a batch after which the loader workers are given up."""


class Feed:
    """Micro-batches on the device, from a step onwards; through loader workers where decoding costs time."""

    def __init__(self, split: Split, options: TrainOptions, workers: int, device: torch.device) -> None:
        self.options, self.device = options, device
        self.workers = workers
        if split.resident and not workers:
            split.to(device)
        self.micro = micro_batches(split, options)
        self.channels_last = False

    def first(self) -> dict[str, Tensor]:
        """The first micro-batch of the run, to measure with."""
        return self.place(self.micro[0])

    def steps(self, start: int, end: int) -> Iterator[list[dict[str, Tensor]]]:
        """For each step from `start` to `end` (exclusive) its micro-batches."""
        accumulate = self.options.accumulate
        stream = self.load(range(start * accumulate, end * accumulate))
        for _ in range(start, end):
            yield [self.place(next(stream)) for _ in range(accumulate)]

    def load(self, numbers: range) -> Iterator[dict[str, Tensor]]:
        """The micro-batches with these numbers, in order."""
        if not self.workers:
            yield from (self.micro[k] for k in numbers)
            return
        from torch.utils.data import DataLoader

        dataset: Any = self.micro
        loader = DataLoader(
            dataset,
            batch_size=None,
            sampler=numbers,
            num_workers=self.workers,
            timeout=LOADER_TIMEOUT,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=_quiet_worker,
            generator=torch.Generator(),  # the workers' seed is not drawn from the stream that dropout uses
        )
        try:
            yield from loader
        except RuntimeError as error:
            if "DataLoader" not in str(error):
                raise
            raise DataError(
                f"a loader worker died or hung ({str(error).splitlines()[0]}); try data.workers: 0"
            ) from error

    def place(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The batch on the device, images in the chosen memory format."""
        if self.device.type != "cpu":
            batch = {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}
        if self.channels_last and "image" in batch:
            batch["image"] = batch["image"].contiguous(memory_format=torch.channels_last)
        return batch


def _quiet_worker(worker: int) -> None:
    """Signals are the main process's to handle: a worker ends with its parent."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
