"""Two ways of taking a step, from the same state: whether they do the same."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

from bigmodel_cli.device import is_cuda
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.train.state import TrainState

NEAR = 0.01
"""How far a recorded step's update may be from that of the same step, as a part of it: kernels that
add in any order differ a little.
"""


@dataclass(frozen=True)
class Snapshot:
    """All that a step changes."""

    tensors: list[Tensor]
    cpu: Tensor
    cuda: Tensor | None

    @classmethod
    def of(cls, state: TrainState) -> Snapshot:
        """A copy of what there is."""
        return cls([t.detach().clone() for t in changed(state)], *state.random())

    def restore(self, state: TrainState) -> None:
        """Put it back, where it was."""
        with torch.no_grad():
            for own, kept in zip(changed(state), self.tensors, strict=True):
                own.copy_(kept)
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda)


def changed(state: TrainState) -> list[Tensor]:
    """The tensors that a step changes, but for the moving average."""
    optimizer = state.optimizer
    weights = [p for p in state.model.parameters() if p.requires_grad]
    return [*weights, *optimizer.state_dict().values(), *state.buffers]


def near(one: Tensor, other: Tensor) -> bool:
    """Whether two steps' numbers are the same but for the order of sums."""
    return torch.allclose(one, other, rtol=1e-3, atol=1e-6)


def alike(before: Snapshot, after: Snapshot, again: Snapshot) -> bool:
    """Whether `again` is `after`, measured by how far that is from `before`."""
    for own, other in ((after.cpu, again.cpu), (after.cuda, again.cuda)):
        if own is not None and (other is None or not torch.equal(own, other)):
            return False
    moved_by = sum(_square(x, y) for x, y in zip(before.tensors, after.tensors, strict=True))
    apart = sum(_square(x, y) for x, y in zip(again.tensors, after.tensors, strict=True))
    return apart <= NEAR**2 * moved_by


def _square(one: Tensor, other: Tensor) -> float:
    return float((one.double() - other.double()).square().sum())


@contextlib.contextmanager
def waits(device: torch.device) -> Iterator[list[str]]:
    """Inside, operations that wait for a GPU, which are not printed."""
    found: list[str] = []
    if not is_cuda(device):
        yield found
        return
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode(before)
    for warning in seen:
        if "synchronizing CUDA operation" in str(warning.message):
            found.append(str(warning.message))
        else:
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
