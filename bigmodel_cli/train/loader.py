"""Micro-batches on the device, from any step onwards; by loader workers where decoding is slow."""

from __future__ import annotations

from collections.abc import Generator, Iterator

from bigmodel_cli.device import is_cpu, sent
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.recipe import TrainOptions
from bigmodel_cli.train.autotune import in_format
from bigmodel_cli.train.batches import MicroBatches
from bigmodel_cli.train.workers import Workers


class BatchLoader:
    """Micro-batches on the device, from a step onwards; by loader workers where decoding is
    slow.
    """

    def __init__(
        self, micro: MicroBatches, options: TrainOptions, workers: int, device: torch.device
    ) -> None:
        self.batches, self.options, self.device = micro, options, device
        self.workers = workers
        self.loading: Workers | None = None
        if micro.split.resident and not workers:
            micro.split.to(device)

    def steps(self, start: int, end: int) -> Generator[list[dict[str, Tensor]]]:
        """The micro-batches of each step from `start` to `end` (exclusive)."""
        accumulate = self.options.accumulate
        stream = self.load(range(start * accumulate, end * accumulate))
        for _ in range(start, end):
            yield [self.to_device(next(stream)) for _ in range(accumulate)]

    def load(self, numbers: range) -> Iterator[dict[str, Tensor]]:
        """The micro-batches with these indices, in order."""
        if not self.workers:
            yield from (self.batches[k] for k in numbers)
            return
        self.close()
        loading = self.loading = Workers(
            self.batches, numbers, self.workers, self.device.type == "cuda"
        )
        try:
            for _ in numbers:
                yield loading.next()
        except BaseException:  # an error or a signal: do not wait for a worker that hangs
            loading.close(at_once=True)
            raise
        loading.close()

    def close(self) -> None:
        """End the loader workers, if any."""
        if self.loading is not None:
            self.loading.close()
            self.loading = None

    def to_device(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The batch on the device, images in the chosen memory format."""
        batch = on_device(batch, self.device)
        return (
            in_format(batch, "channels_last")
            if self.options.memory_format == "channels_last"
            else batch
        )


def on_device(batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """The batch on the device."""
    return batch if is_cpu(device) else {n: sent(t, device) for n, t in batch.items()}
