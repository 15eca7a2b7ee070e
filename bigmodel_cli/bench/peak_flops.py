"""The machine's peak FLOP/s, measured by a large matrix product."""

from __future__ import annotations

import functools
import time

from bigmodel_cli.device import dtype_of, synchronize
from bigmodel_cli.lazy import torch


@functools.cache
def peak_flops(device: torch.device, precision: str) -> float:
    """FLOP/s of a square matrix product in that precision: the best of several, after a warm-up."""
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
