"""Seconds of a step and of its parts."""

from __future__ import annotations

import time
from collections.abc import Sequence

from bigmodel_cli.bench.result import WHOLE
from bigmodel_cli.device import synchronize
from bigmodel_cli.lazy import torch


class Laps:
    """Seconds of the parts of a step, each up to the mark at its end; unless `marked`, those of the
    step as a whole alone.

    A mark waits until the device has finished, which is why what has marks is slower on a GPU.
    """

    def __init__(self, device: torch.device, parts: Sequence[str], marked: bool = True) -> None:
        self.device, self.marked = device, marked
        self.seconds = dict.fromkeys(parts, 0.0)
        synchronize(device)
        self.start = self.last = time.perf_counter()

    def __call__(self, part: str) -> None:
        if not self.marked:
            return
        synchronize(self.device)
        now = time.perf_counter()
        self.seconds[part] += now - self.last
        self.last = now

    def done(self) -> dict[str, float]:
        """The parts, what is left as "rest", and the whole."""
        synchronize(self.device)
        whole = time.perf_counter() - self.start
        if not self.marked:
            return {WHOLE: whole}
        return {**self.seconds, "rest": whole - sum(self.seconds.values()), WHOLE: whole}
