"""Which samples make up each step: a function of the step's number alone, so that a resume is a seek.

Micro-batch k holds the samples number k * B ... (k + 1) * B - 1 of an endless stream; sample number i belongs to epoch
i // n and is entry i % n of that epoch's permutation. A micro-batch may reach from one epoch into the next.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from bigmodel_cli.data import Split
from bigmodel_cli.data.base import join
from bigmodel_cli.data.order import Ints, permute
from bigmodel_cli.errors import DataError
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.recipe import TrainOptions

BLOCK = 1 << 14
"""Entries of a permutation that are computed at once."""
LOADER_TIMEOUT = 120.0
"""Seconds without a batch after which the loader workers are given up."""


class MicroBatches:
    """The stream of micro-batches as an indexable: `self[k]` is micro-batch k. What loader workers run."""

    def __init__(self, split: Split, size: int, seed: int) -> None:
        self.split, self.size, self.seed = split, size, seed
        self.kept: tuple[tuple[int, int], Ints] = ((-1, -1), np.zeros(0, np.int64))

    def __getitem__(self, k: int) -> dict[str, Tensor]:
        n, first = len(self.split), k * self.size
        pieces = []
        while first < (k + 1) * self.size:
            epoch, offset = divmod(first, n)
            count = min((k + 1) * self.size - first, n - offset, BLOCK - offset % BLOCK)
            within = offset % BLOCK
            samples = self.block(epoch, offset // BLOCK)[within : within + count]
            pieces.append(self.split.batch(samples, epoch, self.seed, True))
            first += count
        return pieces[0] if len(pieces) == 1 else join(pieces)

    def block(self, epoch: int, number: int) -> Ints:
        """A stretch of the epoch's permutation; the current one is kept, since computing a few entries costs as much."""
        if self.kept[0] != (epoch, number):
            n = len(self.split)
            entries = np.arange(number * BLOCK, min(n, (number + 1) * BLOCK))
            self.kept = ((epoch, number), permute(entries, n, (self.seed, epoch)))
        return self.kept[1]


class Feed:
    """Micro-batches on the device, from a step onwards; through loader workers where decoding costs time."""

    def __init__(self, split: Split, options: TrainOptions, workers: int, device: torch.device) -> None:
        self.options, self.device = options, device
        self.workers = workers
        if split.resident and not workers:
            split.to(device)
        self.micro = MicroBatches(split, options.micro_batch or options.batch_size, options.seed)
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
