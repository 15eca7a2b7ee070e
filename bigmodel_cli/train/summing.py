"""Sums of a step's gradients over processes that have all weights each, begun while the backward
pass goes on.

Gradients are summed in buckets, from the last weights to the first, which is how backward passes
come to them. All processes begin the same buckets in the same order, each once in every attempt at
a step: one that has no sample, or ran out of memory, gives zeros or what it has, and where one ran
out all drop what came of it. So nobody waits for an exchange that another one left out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

from bigmodel_cli.device import is_cpu
from bigmodel_cli.distributed import Sum, gathered, in_buckets, most_and_gathered, sum_
from bigmodel_cli.errors import (
    OutOfMemory,
    ResourceError,
    forget_frames,
    is_out_of_memory,
    memory_remedy,
)
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.train.passes import REMEDY
from bigmodel_cli.train.state import TrainState

LATE, SHORT = 1, 2
"""What processes tell one another of an attempt: gradients came late; memory was too little."""


IN_EXCHANGE = (
    "it was the exchange of gradients, which no smaller batch lessens: make the model smaller, or"
    " take another train.optimizer; the last checkpoint is as it was"
)


def overlaps(device: torch.device) -> bool:
    """Whether exchanges go on beside the backward pass; the sums are the same to the bit.

    On a CPU both are work of the same cores.
    """
    return not is_cpu(device)


class Summing:
    """The gradients of these weights in one attempt at a step; they leave the weights as their
    buckets are begun, so that memory holds one bucket more than the gradients.
    """

    def __init__(self, weights: Sequence[Tensor], device: torch.device) -> None:
        self.weights, self.overlapping = weights, overlaps(device)
        self.buckets = list(in_buckets(weights[::-1]))
        self.begun: list[Sum] = []
        self.unit = 1.0  # which gradients are multiplied by

    @contextlib.contextmanager
    def beside(self, unit: float, last: bool) -> Iterator[None]:
        """Inside is a backward pass, of gradients that are to be multiplied by `unit`. In the last
        one a bucket is begun when it has all its gradients, and those before it are begun.
        """
        self.unit = unit
        if not (last and self.overlapping):
            yield
            return
        awaited = [set(range(len(bucket))) for bucket in self.buckets]

        def noting(at: int, number: int) -> Callable[[Tensor], None]:
            def note(weight: Tensor) -> None:
                awaited[at].discard(number)
                while len(self.begun) < len(awaited) and not awaited[len(self.begun)]:
                    self._begin()

            return note

        handles = [
            weight.register_post_accumulate_grad_hook(noting(at, number))
            for at, bucket in enumerate(self.buckets)
            for number, weight in enumerate(bucket)
            if weight.requires_grad
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _begin(self) -> None:
        """Begin the next bucket."""
        bucket = self.buckets[len(self.begun)]
        self.begun.append(Sum(bucket, [p.grad for p in bucket], self.unit))
        for p in bucket:
            p.grad = None

    def begin_all(self) -> bool:
        """Begin the buckets that are not; whether a weight has a gradient that is in none, since it
        came after its bucket was begun.
        """
        while len(self.begun) < len(self.buckets):
            self._begin()
        return any(p.grad is not None for p in self.weights)

    def join(self, late: bool) -> None:
        """Give the weights the sums; `late`: a process has gradients that are in no bucket."""
        rest: list[Tensor] = []
        if late:
            rest = [
                torch.zeros_like(p) if p.grad is None else p.grad * self.unit for p in self.weights
            ]
            sum_(rest)
        for bucket, found in zip(self.buckets, self.begun, strict=True):
            for p, total in zip(bucket, found.wait(), strict=True):
                p.grad = total
        if late:
            torch._foreach_add_([p.grad for p in self.weights if p.grad is not None], rest)

    def drop(self) -> None:
        """Nobody needs the sums."""
        for found in self.begun:
            found.wait()
        self.begun.clear()


class Short:
    """Whether all processes had memory enough for what they did, so that they divide their
    micro-batches alike, and take the step again.

    Where weights are in parts the processes wait for one another in each pass, and the run ends
    instead.
    """

    def __init__(self, state: TrainState) -> None:
        self.alike = state.sharding is None
        self.reason = ""

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        """Inside a lack of memory is noted, and no more; nothing is waited for."""
        try:
            yield
        except Exception as error:
            if not (self.alike and is_out_of_memory(error)):
                raise
            forget_frames(error)
            self.reason = next(iter(str(error).splitlines()), "") or type(error).__name__

    def joined(self, own: Tensor, summing: Summing | None = None) -> Tensor:
        """(processes x N, ...)   the rows (N, ...) of all processes, in one exchange; the weights
        have their gradients' sums.

        Raises `OutOfMemory` in all where one had too little, and `ResourceError` where it is the
        exchange for which there is none: the others cannot take the step again without this one.
        """
        if not self.alike:
            return torch.cat(gathered(own))
        with memory_remedy(IN_EXCHANGE, ResourceError):
            return self._joined(own, summing)

    def _joined(self, own: Tensor, summing: Summing | None) -> Tensor:
        late = summing is not None and summing.begin_all()
        worst, every = most_and_gathered(SHORT if self.reason else LATE * late, own)
        if worst == SHORT:
            if summing is not None:
                summing.drop()
            raise OutOfMemory(f"out of memory ({self.reason or 'in another process'}); {REMEDY}")
        if summing is not None:
            summing.join(worst == LATE)
        return torch.cat(every)
