"""Measured peaks: the memory of a training step, and the FLOP/s of the machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from bigmodel_cli.adapters import stored_as
from bigmodel_cli.device import dtype_of, synchronize
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.models.footprint import following
from bigmodel_cli.train.state import TrainState


def peak_memory(
    state: TrainState, step: Callable[[], object], batch: Sequence[Tensor], device: torch.device
) -> int:
    """Peak bytes while `step` runs on this batch: all that training keeps, and what the step adds.

    On CUDA PyTorch's allocator counts; elsewhere all tensors of the step are followed.
    """
    kept = [
        *(t for p in state.model.parameters() for t in stored_as(p)),
        *state.model.buffers(),
        *state.optimizer.state_dict().values(),
        *state.ema.values(),
    ]
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in kept}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        added = int(torch.cuda.max_memory_allocated(device)) - before
    else:
        with following([*kept, *batch]) as alive:
            step()
        added = max(alive.course, default=0)
    return sum(storages.values()) + added


def peak_flops(device: torch.device, precision: str) -> float:
    """FLOP/s of a square matrix product in that precision: the best of several, after a warm-up.

    As fast as the machine is now: a share of it is honest where it is measured beside what it is a
    share of.
    """
    size = 8192 if device.type == "cuda" else 1024
    a = torch.randn(size, size, device=device).to(dtype_of(precision))
    b = torch.randn(size, size, device=device).to(dtype_of(precision))
    best = float("inf")
    for _ in range(8):
        synchronize(device)
        start = time.perf_counter()
        a @ b
        synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
