"""Whole steps as CUDA graphs, where Python takes longer to call the device than that to compute.

A step of a small model is hundreds of short kernels. Recorded once, all of them are started by one
call, with what changes from step to step in tensors that stay where they are: the batch, and the
optimizer's few numbers. Random numbers go on from the generator's state, as they do without.

A recording is tried before it is used: a step is taken from the same state both ways, which are to
agree, and be worth it. What cannot be recorded (a part that asks the device for a number) is left
as it was.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Protocol

from bigmodel_cli.device import is_cuda, synchronize
from bigmodel_cli.distributed import world
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.optim import RecordableOptimizer, moved
from bigmodel_cli.recipe import TrainOptions
from bigmodel_cli.train.objective import Objective
from bigmodel_cli.train.passes import passes
from bigmodel_cli.train.state import TrainState
from bigmodel_cli.train.step import divided, queued_step
from bigmodel_cli.train.twice import Snapshot, alike, changed, near, waits

BEFORE = 3
"""Steps of one form that precede its recording: kernels are chosen and compiled in them."""
MOST = 4
"""Forms of batches that are recorded: each keeps the memory of a step."""
GAIN = 0.97
"""The most of a step's time that a recorded one may take."""
Batches = list[dict[str, Tensor]]


class NotTheSameError(Exception):
    """A recording cannot be used."""


class Recorder(Protocol):
    """Records what a function starts on the device, to be started again."""

    def record(self, what: Callable[[], Tensor]) -> Tensor:
        """The function's result, whose values are there after each `replay`."""

    def replay(self) -> None:
        """Start it."""


class CudaGraph:
    """A recorder of CUDA (Gray 2019, "Getting started with CUDA graphs")."""

    def __init__(self) -> None:
        self.graph = torch.cuda.CUDAGraph()

    def record(self, what: Callable[[], Tensor]) -> Tensor:
        # a loader's thread may pin memory meanwhile, which concerns that thread alone
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            return what()

    def replay(self) -> None:
        self.graph.replay()


@dataclass
class Recorded:
    """A step that was recorded: where it reads, and what came out."""

    recorder: Recorder
    batches: Batches
    numbers: Tensor
    result: Tensor

    def run(self, micro_batches: Batches, numbers: Tensor) -> Tensor:
        """The step with this batch and the optimizer's numbers; the numbers of `queued_step`."""
        for own, given in zip(self.batches, micro_batches, strict=True):
            for name, tensor in own.items():
                tensor.copy_(given[name], non_blocking=True)
        self.numbers.copy_(numbers, non_blocking=True)
        self.recorder.replay()
        return self.result.clone()


class Graphs:
    """Called as `queued_step`, of which it repeats recordings where these are faster.

    `said` is told once what was done, and why not.
    """

    def __init__(
        self,
        said: Callable[[str], None],
        recorder: Callable[[], Recorder] = CudaGraph,
        always: bool = False,
    ) -> None:
        self.said, self.recorder, self.always = said, recorder, always
        self.seen: dict[Hashable, int] = {}
        self.kept: dict[Hashable, Recorded | None] = {}

    def __call__(
        self,
        state: TrainState,
        objective: Objective,
        options: TrainOptions,
        micro_batches: Batches,
        device: torch.device,
        lr: float,
    ) -> Tensor:
        """The step's numbers for `StepResult.of`, as `queued_step` gives them."""
        optimizer = state.optimizer.recordable()
        if optimizer is None or state.balanced:
            return queued_step(state, objective, options, micro_batches, device, lr)
        form = (optimizer.phase(), *map(_form, micro_batches))
        found = self.kept.get(form)
        if found is not None:
            optimizer.count()
            result = found.run(micro_batches, moved(optimizer.numbers(lr), device))
            state.update_ema()
            return result
        self.seen[form] = self.seen.get(form, 0) + 1
        step = _Step(state, optimizer, objective, options, micro_batches, device, lr)
        if form in self.kept or self.seen[form] <= BEFORE or len(self.kept) >= MOST:
            return step.plain()
        self.kept[form] = None
        if step.too_large():
            self.said("steps are not recorded (train.cuda_graphs): that needs more memory")
            return step.plain()
        result, self.kept[form] = step.recorded(self.recorder, self.always, self.said)
        return result


def taking(
    options: TrainOptions, device: torch.device, said: Callable[[str], None]
) -> Callable[..., Tensor]:
    """What takes the steps that are not waited for: `queued_step`, or recordings of it."""
    wanted = options.cuda_graphs == "auto" and not options.deterministic
    return Graphs(said) if is_cuda(device) and wanted and world().alone else queued_step


@dataclass
class _Step:
    """One step, to be taken and recorded."""

    state: TrainState
    optimizer: RecordableOptimizer
    objective: Objective
    options: TrainOptions
    micro_batches: Batches
    device: torch.device
    lr: float

    def plain(self) -> Tensor:
        """`queued_step`."""
        return queued_step(
            self.state, self.objective, self.options, self.micro_batches, self.device, self.lr
        )

    def too_large(self) -> bool:
        """Whether there is no memory for a second step's tensors and two copies of the state."""
        if not is_cuda(self.device):
            return False
        torch.cuda.empty_cache()
        stays = torch.cuda.memory_allocated(self.device)
        own = torch.cuda.max_memory_allocated(self.device) - stays
        copies = 2 * sum(t.numel() * t.element_size() for t in changed(self.state))
        return own + copies > 0.8 * torch.cuda.mem_get_info(self.device)[0]

    def recorded(
        self, recorder: Callable[[], Recorder], always: bool, said: Callable[[str], None]
    ) -> tuple[Tensor, Recorded | None]:
        """Take the step as it is; and its recording, where that does the same in less time."""
        state, ema = self.state, self.state.ema_decay
        state.ema_decay = None  # the average moves once, by the step as it is
        before = Snapshot.of(state)
        try:
            with waits(self.device) as waited:
                taken, result = self._timed(self.plain)
        finally:
            state.ema_decay = ema
        after = Snapshot.of(state)
        try:
            if waited:  # seen before, since CUDA is not well after a recording that breaks off
                raise NotTheSameError("a part waits for the device, to see a number of it")
            found = self._recording(recorder())
            for _ in range(2):  # the first one brings the recording to the device
                before.restore(state)
                seconds, again = self._timed(lambda: found.run(self.micro_batches, found.numbers))
            if not (near(again, result) and alike(before, after, Snapshot.of(state))):
                raise NotTheSameError("repeated it is another step than that which was recorded")
        except Exception as error:  # whatever a part does that cannot be recorded
            said(f"steps are not recorded (train.cuda_graphs): {str(error).splitlines()[0]}")
            seconds = math.inf
        self.optimizer.clear()
        after.restore(state)
        state.update_ema()
        if seconds > GAIN * taken and not (always and seconds < math.inf):
            return result, None
        said(
            f"steps are recorded and repeated (train.cuda_graphs): {1e3 * seconds:.2f} ms instead"
            f" of {1e3 * taken:.2f}"
        )
        return result, found

    def _recording(self, recorder: Recorder) -> Recorded:
        """Of the step that was just taken, whose number the optimizer has."""
        batches = [{n: t.clone() for n, t in batch.items()} for batch in self.micro_batches]
        numbers = moved(self.optimizer.numbers(self.lr), self.device)
        most, chance = self.options.max_grad_norm, torch.get_rng_state()

        def whole() -> Tensor:
            sums, unit = passes(self.state, self.objective, self.options, batches, self.device)
            result, divisor = divided(sums, unit, most)
            self.optimizer.update(numbers.unbind(), divisor)
            self.optimizer.clear()
            return result

        found = Recorded(recorder, batches, numbers, recorder.record(whole))
        if not torch.equal(chance, torch.get_rng_state()):
            raise NotTheSameError("a part draws random numbers on the CPU, which would be repeated")
        return found

    def _timed(self, what: Callable[[], Tensor]) -> tuple[float, Tensor]:
        """(seconds until the device has finished, the result)."""
        synchronize(self.device)
        start = time.perf_counter()
        result = what()
        synchronize(self.device)
        return time.perf_counter() - start, result


def _form(batch: dict[str, Tensor]) -> Hashable:
    """What batches of one recording have in common."""
    return tuple((name, t.shape, t.dtype) for name, t in batch.items())
