"""Bytes that a model's weights take in training: with gradients, optimizer state and average."""

from __future__ import annotations

from collections.abc import Iterable

from bigmodel_cli.roles import Weight
from bigmodel_cli.spec import Spec


def state_bytes(spec: Spec, weights: Iterable[Weight], saved: int = 0) -> int:
    """Bytes that weights, gradients, optimizer state and the moving average take."""
    return sum(kept_bytes(spec, weights, saved))


def kept_bytes(spec: Spec, weights: Iterable[Weight], saved: int = 0) -> tuple[int, int, int]:
    """(weights, gradients, optimizer state and average) in bytes: frozen weights have neither
    gradient nor optimizer state, and `saved` bytes of them are not needed (4 bits).
    """
    every, moved, state, averaged = kept_parts(spec, weights, saved)
    return every, moved, state + averaged


def kept_parts(spec: Spec, weights: Iterable[Weight], saved: int = 0) -> tuple[int, int, int, int]:
    """The same with the optimizer's state and the average apart."""
    sizes = [(w.tensor.numel() * w.tensor.element_size(), w) for w in weights]
    trained = [(size, w.role) for size, w in sizes if w.tensor.requires_grad]
    every, copies = sum(size for size, _ in sizes), spec.train.optimizer.state_copies
    state = sum(size * copies(role) for size, role in trained)
    moved = sum(size for size, _ in trained)
    averaged = moved if spec.adapter is not None else every
    return every - saved, moved, state, averaged * (spec.train.ema is not None)


def numbers_per_weight(spec: Spec) -> int:
    """How many numbers are kept per weight: itself, its gradient, the optimizer's, the average."""
    return 2 + spec.train.optimizer.state_per_param + (spec.train.ema is not None)
