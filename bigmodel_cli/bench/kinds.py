"""The kinds of work that `bench` times, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bigmodel_cli.bench.doing import Doing, Opened
from bigmodel_cli.bench.evaluation import Evaluation
from bigmodel_cli.bench.generation import Generation
from bigmodel_cli.bench.inference import Inference
from bigmodel_cli.bench.loading import Loading
from bigmodel_cli.bench.training import Training
from bigmodel_cli.lazy import torch
from bigmodel_cli.overrides import Override

BATCH = "--batch"


@dataclass(frozen=True)
class Kind:
    """A kind of work: how it begins, and what is said of it.

    `title` heads its table. `batch` are the options of a spec that a number of samples at once
    sets, `sizes` the numbers that are timed where none is asked for (none: as the spec says), and
    `built_in` those of the built-in set that can do it.
    """

    title: str
    begin: Callable[[Opened, torch.device], Doing]
    batch: Sequence[str] = ("train.batch_size",)
    sizes: Sequence[int] = ()
    built_in: Sequence[str] = ("cnn", "decoder")

    def of_batch(self, size: int) -> list[Override]:
        """Overrides for so many samples at once."""
        whole = [Override("train.micro_batch_size", None, BATCH)]
        return [*whole, *(Override(path, size, BATCH) for path in self.batch)]


KINDS: dict[str, Kind] = {
    "training": Kind("training steps", Training),
    "inference": Kind("forward passes", Inference),
    "generation": Kind("written texts", Generation, sizes=(1, 16), built_in=("decoder",)),
    "evaluation": Kind("batches of a validation", Evaluation, ("train.validation_batch",)),
    "data": Kind("loaded batches", Loading, built_in=()),
}
