"""The peak memory of a training step, measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bigmodel_cli.adapters import stored_as
from bigmodel_cli.device import is_cuda
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
    if is_cuda(device):
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        added = int(torch.cuda.max_memory_allocated(device)) - before
    else:
        with following([*kept, *batch]) as alive:
            step()
        added = max(alive.course, default=0)
    return sum(storages.values()) + added
