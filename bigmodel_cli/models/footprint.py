"""Memory of a training step beside the weights, found on the meta device by following tensors."""

from __future__ import annotations

import weakref
from typing import Any

from bigmodel_cli.lazy import Module, Tensor, torch
from bigmodel_cli.logits import Chunk, cross_entropy, is_late, late


def step_peaks(model: Module, *example: Tensor, chunk: Chunk = "off") -> tuple[int, int]:
    """Peak bytes of a forward and a backward pass over `example`, gradients of weights included.

    Two numbers: the peak up to the middle of the backward pass, and the peak after it. In the
    backward pass through equal blocks the bytes change by the same amount with each block: the peak
    is at one of the ends, and each end's grows linearly with their number.

    `model` and `example` are on the meta device, in training; sizes are in the weights' precision.
    The loss keeps a gradient as large as the output, as logits/entropy.py does; late logits, of
    which `chunk` are computed at once, one as large as a piece.
    """
    weights = [p for p in model.parameters() if p.requires_grad]
    model.train()
    with following([*model.parameters(), *model.buffers(), *example]) as alive:
        with late(chunk):
            output = model(*example)
        start = len(alive.course)
        if is_late(output):
            where = output.hidden.shape[:-1]
            output = cross_entropy(output, torch.zeros(where, dtype=torch.int64, device="meta"))
        torch.autograd.grad(output, weights, torch.empty_like(output), allow_unused=True)
    middle = (start + len(alive.course)) // 2
    return max(alive.course[:middle], default=0), max(alive.course[middle:], default=0)


ACTIVATIONS = "activations"
"""The kind of what is not told apart."""


class Course:
    """The bytes of new storages, from operation to operation."""

    def __init__(self, known: list[Tensor]) -> None:
        self.now = self.peak = 0
        self.kind = ACTIVATIONS
        self.held: dict[str, int] = {}
        self.course: list[int] = []
        self.kinds: list[dict[str, int]] = []
        self.noted: dict[int, tuple[str, int]] = {}
        self.alive: dict[int, Any] = {
            t.untyped_storage()._cdata: t.untyped_storage() for t in known
        }

    def note(self, tensor: Tensor) -> None:
        """This storage, if it is new, until it is freed."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self.alive:
            return

        def freed(_: Any) -> None:
            self.add(*self.noted.pop(key), -1)
            del self.alive[key]

        self.alive[key] = weakref.ref(storage, freed)
        self.noted[key] = self.kind, size
        self.add(self.kind, size)

    def add(self, kind: str, size: int, times: int = 1) -> None:
        """So many bytes more, or less."""
        self.now += times * size
        self.held[kind] = self.held.get(kind, 0) + times * size
        self.peak = max(self.peak, self.now)

    def move(self, tensor: Tensor, kind: str) -> None:
        """What this tensor holds is of that kind from now on."""
        key = tensor.untyped_storage()._cdata
        if key in self.noted:
            before, size = self.noted[key]
            self.add(before, size, -1)
            self.add(kind, size)
            self.noted[key] = kind, size

    def hold(self, kind: str, size: int) -> None:
        """So many bytes more (or less, below 0) of a kind, which no operation makes."""
        self.add(kind, size)
        self.write(self.now)

    def write(self, peak: int) -> None:
        """An operation is over, which had this peak."""
        self.course.append(peak)
        self.kinds.append(dict(self.held))


def following(known: list[Tensor], device: str | None = None) -> Any:
    """A context whose `course` has the peak bytes of each operation, without `known` tensors;
    of this device alone where one is named ("cpu").

    `kinds` has as many bytes by kind: what is made while `kind` is set to a name belongs to that,
    until `move` gives it to another.
    """
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Following(Course, TorchDispatchMode):
        """Notes each new storage, and when it is freed."""

        def __init__(self) -> None:
            TorchDispatchMode.__init__(self)
            Course.__init__(self, known)

        def __torch_dispatch__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if function.namespace == "prim":  # what a tensor is asked, not computed
                return function(*args, **(kwargs or {}))
            self.peak = self.now
            result = function(*args, **(kwargs or {}))
            for leaf in tree_leaves(result):
                if isinstance(leaf, torch.Tensor) and (
                    device is None or leaf.device.type == device
                ):
                    self.note(leaf)
            self.write(self.peak)
            return result

    return Following()
