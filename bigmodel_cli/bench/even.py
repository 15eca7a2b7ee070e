"""What a network decides by its numbers, answered where there are none."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from bigmodel_cli.lazy import Tensor, torch

LIFTING = ("lift_fresh", "lift_fresh_copy")
"""What puts a constant on paper."""


class Even:
    """Answers to what a network asks of its numbers."""

    mode: Any = None

    def answers(self) -> Mapping[str, Any]:
        """By the operations' names."""
        return {
            "bincount": self.counts,
            "nonzero": self.places,
            "_local_scalar_dense": self.number,
            "equal": self.differ,
        }

    def really(self, function: Any, args: Sequence[Any], kwargs: Any) -> Any:
        """What an operation makes of numbers that are there, as the counts of experts' rows are."""
        from torch._subclasses.fake_tensor import FakeTensor

        first, name = args[0] if args else None, function._overloadpacket.__name__
        real = isinstance(first, torch.Tensor) and not isinstance(first, FakeTensor)
        if not real or name in LIFTING:
            return NotImplemented
        with self._real():
            return function(*args, **(kwargs or {}))

    def places(self, mask: Tensor) -> Tensor:
        """Every one."""
        return torch.empty(mask.numel(), mask.dim(), dtype=torch.long, device=mask.device)

    def changes(self) -> Mapping[str, Any]:
        """Other arguments, by the operations' names."""
        return {"index": self.every}

    def every(self, x: Tensor, chosen: Sequence[Tensor | None]) -> Sequence[Any]:
        """The same with every place of a mask."""
        found: list[Tensor | None] = []
        for mask in chosen:
            if mask is None or mask.dtype != torch.bool:
                found.append(mask)
                continue
            place = torch.empty(mask.numel(), dtype=torch.long, device=mask.device)
            found += [place] * mask.dim()
        return x, found

    def counts(self, chosen: Tensor, weights: object = None, minlength: int = 0) -> Tensor:
        """As many rows for each expert, as real numbers."""
        each, more = divmod(chosen.numel(), minlength)
        with self._real():
            return torch.tensor([each + (n < more) for n in range(minlength)])

    def number(self, tensor: Tensor) -> float | bool:
        """True, or 1."""
        return True if tensor.dtype == torch.bool else 1

    def differ(self, *tensors: Tensor) -> bool:
        """Drawn numbers differ."""
        return False

    def _real(self) -> contextlib.AbstractContextManager[object]:
        from torch._subclasses.fake_tensor import unset_fake_temporarily

        return unset_fake_temporarily()


class Untimed:
    """A timer of operations that take no time."""

    def end(self) -> None:
        """Nothing was begun."""

    def seconds(self) -> float:
        """None."""
        return 0.0
