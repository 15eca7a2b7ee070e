"""The base classes of optimizers and their options: a new one is a file with both and a table line.

Our own few lines around PyTorch's fused and foreach kernels: `torch.optim.Optimizer` imports the
compiler on first use, which costs as much start-up time as half of torch itself, and its state has
no names. Here the state is keyed by the parameter's name, so that a checkpoint can be read by a
person, and the scale of the gradient (sums, not means) is applied inside the update.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar

from pydantic import Field

from bigmodel_cli.config import Options, Positive
from bigmodel_cli.device import is_cuda, sent
from bigmodel_cli.errors import SpecError
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.roles import Role, Weight

Number = float | Tensor


class AnyOptimizerOptions(Options):
    """Options of an optimizer."""

    type: str
    lr: Positive = Field(description="peak learning rate")
    state_per_param: ClassVar[int]
    """Most copies of a weight in the optimizer's state."""
    averages: ClassVar[bool] = False
    """Whether the optimizer itself averages the weights that are evaluated and saved."""

    def state_copies(self, role: Role) -> int:
        """Copies of a weight of that role in the optimizer's state."""
        return self.state_per_param

    def scratch(self, sizes: list[int]) -> int:
        """Temporary bytes of an update of weights of these sizes in bytes: the scaled gradients."""
        return sum(sizes)

    @abstractmethod
    def build(self, weights: Iterable[Weight]) -> Optimizer:
        """The optimizer of these weights."""

    def remarks(self, last: float) -> list[str]:
        """Warnings about a run whose learning rate ends at this fraction of its peak."""
        return []

    def mover(self, role: Role) -> tuple[str, float]:
        """Which optimizer moves a weight of that role, and with how much decay."""
        return self.type, dict(self).get("weight_decay", 0.0) if role.decayed else 0.0


class Optimizer(ABC):
    """Base of all optimizers: weights in groups of one decay and rate, and named state tensors.

    Raises `SpecError` for a weight with gaps between its numbers, as a slice of another tensor has:
    fused kernels would move what lies in them.
    """

    slots: tuple[str, ...] = ()

    def __init__(self, weight_decay: float, weights: Iterable[Weight]) -> None:
        self.weights = [w for w in weights if w.tensor.requires_grad]
        self.names = [w.name for w in self.weights]
        self.parameters = [w.tensor for w in self.weights]
        for name, p in zip(self.names, self.parameters, strict=True):
            if torch.empty_like(p).stride() != p.stride():
                raise SpecError(
                    f"{name}: its numbers do not lie side by side (strides {p.stride()} of"
                    f" {tuple(p.shape)}); let the part make it with .contiguous()"
                )
        kinds: dict[tuple[bool, float, int], list[int]] = {}
        for i, w in enumerate(self.weights):
            kinds.setdefault((w.role.decayed, w.rate, w.start), []).append(i)
        # (weights, their decay, multiple of the learning rate, and start), those with decay first
        self.groups = [
            (group, weight_decay if decayed else 0.0, rate, start)
            for (decayed, rate, start), group in sorted(
                kinds.items(), key=lambda kind: not kind[0][0]
            )
        ]
        self.state = {slot: [torch.zeros_like(p) for p in self.parameters] for slot in self.slots}
        # Weights to evaluate and save instead of the parameters, by name.
        self.averaged: dict[str, torch.Tensor] = {}
        self.steps = 0

    def due(self) -> Iterator[tuple[list[int], float, float, int]]:
        """(weights, decay, multiple of the learning rate, own step from 1 on) of this step."""
        for group, decay, rate, start in self.groups:
            if self.steps > start:
                yield group, decay, rate, self.steps - start

    def wake(self) -> None:
        """Compute gradients in the next step for the weights that it updates, and no others."""
        for w in self.weights:
            w.tensor.requires_grad_(w.start <= self.steps)

    def gradients(self) -> list[torch.Tensor]:
        """The gradients, in the order of `parameters`; zeros for a parameter that has none."""
        for p in self.parameters:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        return [p.grad for p in self.parameters if p.grad is not None]

    def moving(self) -> list[torch.Tensor]:
        """The weights that the next step updates."""
        return [w.tensor for w in self.weights if w.start <= self.steps]

    def moving_gradients(self) -> list[torch.Tensor]:
        """Their gradients, of those that have one."""
        return [p.grad for p in self.moving() if p.grad is not None]

    def set_gradients(self, gradients: Sequence[torch.Tensor]) -> None:
        """Give each weight of `moving` its gradient."""
        for p, gradient in zip(self.moving(), gradients, strict=True):
            p.grad = gradient

    def scale(self, divisor: float | torch.Tensor, device: torch.device) -> torch.Tensor:
        """()   what fused kernels divide gradients by, in fp32."""
        if isinstance(divisor, torch.Tensor):
            return divisor.to(device, torch.float32)
        return torch.full((), divisor, dtype=torch.float32, device=device)

    def clear(self) -> None:
        """Forget the gradients."""
        for p in self.parameters:
            p.grad = None

    def state_dict(self) -> dict[str, torch.Tensor]:
        """State tensors under '<slot>.<parameter name>'; the step count is the run's own."""
        return {
            f"{slot}.{n}": t
            for slot, ts in self.state.items()
            for n, t in zip(self.names, ts, strict=True)
        }

    def load_state_dict(self, tensors: dict[str, torch.Tensor], steps: int) -> None:
        """Restore a saved state.

        Raises `KeyError` or `RuntimeError` where names or shapes differ.
        """
        for slot, own in self.state.items():
            for name, tensor in zip(self.names, own, strict=True):
                tensor.copy_(tensors[f"{slot}.{name}"])
        self.steps = steps

    @abstractmethod
    def step(self, lr: float, divisor: float | torch.Tensor) -> None:
        """Update the parameters with their gradients divided by `divisor`, a number or () on their
        device.
        """

    def recordable(self) -> RecordableOptimizer | None:
        """The same, where its steps can be recorded."""
        return None


class RecordableOptimizer(Optimizer):
    """An optimizer whose step can be recorded once, and repeated (train/graphs.py): a few numbers
    are all that changes from step to step, and on a GPU these are tensors there.
    """

    def step(self, lr: float, divisor: float | torch.Tensor) -> None:
        self.count()
        numbers: Sequence[Number] = self.numbers(lr)
        if numbers and is_cuda(self.device):
            numbers = moved(numbers, self.device).unbind()
        self.update(numbers, divisor)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.parameters[0].device if self.parameters else torch.device("cpu")

    def recordable(self) -> RecordableOptimizer | None:
        return self

    def count(self) -> None:
        """One more step, of which the others tell."""
        self.steps += 1

    @abstractmethod
    def numbers(self, lr: float) -> list[float]:
        """What of this step depends on its number and on `lr`."""

    @abstractmethod
    def update(self, numbers: Sequence[Number], divisor: Number) -> None:
        """This step: asks the device for nothing.

        Its `numbers` and the divisor are () in fp32 there, or numbers on a CPU.
        """

    def phase(self) -> tuple[bool, ...]:
        """Which groups the next step moves."""
        return tuple(self.steps >= start for *_, start in self.groups)


def moved(numbers: Sequence[Number], device: torch.device) -> torch.Tensor:
    """(N,) fp32   the numbers on the device, without a wait for it."""
    return sent(torch.tensor(numbers, dtype=torch.float32), device)


def in_memory_order(
    weights: list[torch.Tensor], gradients: list[torch.Tensor], *state: list[torch.Tensor]
) -> list[list[torch.Tensor]]:
    """The same lists for a fused kernel: gradients lie as their weights do, and convolutions'
    weights that lie channels last are views in that order, with their state.

    On a CPU PyTorch's kernels (2.14) copy what is not contiguous, there and back, which takes
    longer than the update, and read a gradient that lies otherwise than its weight in a wrong
    order.
    """
    found: list[list[torch.Tensor]] = [[] for _ in range(2 + len(state))]
    for p, g, *own in zip(weights, gradients, *state, strict=True):
        if g.stride() != p.stride():
            g = torch.empty_like(p).copy_(g)
        last = p.dim() == 4 and p.device.type == "cpu" and not p.is_contiguous()
        last = last and p.is_contiguous(memory_format=torch.channels_last)
        last = last and all(t.stride() == p.stride() for t in own)
        for kept, t in zip(found, (p, g, *own), strict=True):
            kept.append(t.permute(0, 2, 3, 1) if last else t)
    return found


def total_norm(tensors: list[torch.Tensor]) -> torch.Tensor:
    """The Euclidean norm of all values of all tensors, as one number on their device."""
    if not tensors:
        return torch.zeros(())
    norm: torch.Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors)))
    return norm
