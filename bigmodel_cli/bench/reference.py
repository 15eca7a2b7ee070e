"""A fixed piece of work beside what is timed, by which results of different days are compared."""

from __future__ import annotations

import time

from bigmodel_cli.device import synchronize
from bigmodel_cli.lazy import torch

SIZE, PRODUCTS, COPIED = 192, 24, 1 << 22
"""Products of matrices of that size, and bytes copied: a few milliseconds on a core."""


class Reference:
    """The work: matrix products in fp32, and a copy that caches do not hold."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.a = torch.ones(SIZE, SIZE, device=device)
        self.product = torch.empty_like(self.a)
        self.source = torch.ones(COPIED, dtype=torch.uint8, device=device)
        self.target = torch.empty_like(self.source)

    def seconds(self) -> float:
        """How long it takes now."""
        synchronize(self.device)
        start = time.perf_counter()
        with torch.no_grad():
            for _ in range(PRODUCTS):
                torch.mm(self.a, self.a, out=self.product)
            self.target.copy_(self.source)
        synchronize(self.device)
        return time.perf_counter() - start
