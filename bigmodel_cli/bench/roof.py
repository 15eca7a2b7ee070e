"""The machine's peaks, measured: FLOP/s of matrix products, and bytes/s of copies."""

from __future__ import annotations

import time
from collections.abc import Callable

from bigmodel_cli.device import dtype_of, synchronize
from bigmodel_cli.lazy import torch

TRIES = 8


def matrix_rate(device: torch.device, precision: str) -> float:
    """FLOP/s of a square matrix product in that precision: the best of several.

    As fast as the machine is now: a share of it is honest where it is measured beside what it is a
    share of.
    """
    size = 8192 if device.type == "cuda" else 1024
    a = torch.randn(size, size, device=device).to(dtype_of(precision))
    b = torch.randn(size, size, device=device).to(dtype_of(precision))
    return 2 * size**3 / _best(lambda: a @ b, device)


def copy_rate(device: torch.device) -> float:
    """Bytes/s that a copy of a large tensor reads and writes: the best of several."""
    size = 1 << (30 if device.type == "cuda" else 27)
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / _best(lambda: target.copy_(source), device)


def _best(work: Callable[[], object], device: torch.device) -> float:
    """The least seconds that it takes, of several tries."""
    best = float("inf")
    for _ in range(TRIES):
        synchronize(device)
        start = time.perf_counter()
        work()
        synchronize(device)
        best = min(best, time.perf_counter() - start)
    return best
