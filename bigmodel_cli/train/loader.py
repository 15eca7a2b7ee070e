"""Micro-batches on the device, from any step onwards; by loader workers where decoding is slow."""

from __future__ import annotations

from collections.abc import Generator, Iterator

from bigmodel_cli.device import is_cpu, sent
from bigmodel_cli.distributed import loading
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.recipe import TrainOptions
from bigmodel_cli.train.autotune import in_format
from bigmodel_cli.train.batches import MicroBatches, Shares
from bigmodel_cli.train.together import check_division
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
        check_division(options, loading())
        self.own = Shares(micro, options.accumulate, loading())
        self.loading: Workers | None = None
        if micro.split.resident and not workers:
            micro.split.to(device)

    def steps(self, start: int, end: int) -> Generator[list[dict[str, Tensor]]]:
        """This process's micro-batches of each step from `start` to `end` (exclusive)."""
        each = self.own.each
        stream = self.load(range(start * each, end * each))
        for _ in range(start, end):
            yield [self.to_device(b) for b in (next(stream) for _ in range(each)) if b]

    def load(self, numbers: range) -> Iterator[dict[str, Tensor]]:
        """This process's micro-batches with these indices, in order."""
        if not self.workers:
            yield from (self.own[k] for k in numbers)
            return
        self.close()
        loading = self.loading = Workers(
            self.own, numbers, self.workers, self.device.type == "cuda"
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
