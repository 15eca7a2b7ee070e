"""Heads side by side on a CPU's cores, each by operations of one thread.

An operation on a tile is too short to be shared by threads, which would wait for each other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import pairwise

from bigmodel_cli.lazy import torch

MOST = 8
"""Threads, between whose operations only one at a time runs Python."""
AHEAD = 4
"""Calls of a thread that may wait for it."""

Work = Callable[[slice], None]


class Cores:
    """Calls work with heads: groups of them at the same time, one group's calls in their order."""

    def __init__(self, groups: list[tuple[slice, ThreadPoolExecutor | None]]) -> None:
        self.groups = groups
        self.inference = torch.is_inference_mode_enabled()
        self.begun = deque[list[Future[None]]]()

    def start(self, work: Work) -> None:
        """Call `work` with each group of heads, now or before `finish` returns."""
        begun = []
        for heads, thread in self.groups:
            if thread is None:
                work(heads)
            else:
                begun.append(thread.submit(self._called, work, heads))
        self.begun.append(begun)
        while len(self.begun) > AHEAD:
            self._wait()

    def finish(self) -> None:
        """Wait until all work is done; raises what it raised."""
        while self.begun:
            self._wait()

    def _wait(self) -> None:
        for each in self.begun.popleft():
            each.result()

    def _called(self, work: Work, heads: slice) -> None:
        with torch.inference_mode(self.inference), torch.no_grad():
            work(heads)


@contextmanager
def on_cores(device: torch.device, heads: int, large: bool) -> Iterator[Cores]:
    """Inside, so many threads work as an operation would have; all heads are one group where a
    layer is not `large`, and elsewhere than on a CPU.
    """
    threads = torch.get_num_threads()
    count = min(threads, MOST, heads)
    if device.type != "cpu" or count < 2 or not large:
        yield Cores([(slice(0, heads), None)])
        return
    each, bounds = threads // count, [heads * i // count for i in range(count + 1)]
    try:
        torch.set_num_threads(each)  # of this thread too: idle ones of it would take the cores
        with ExitStack() as stack:
            groups = list[tuple[slice, ThreadPoolExecutor | None]]()
            for first, end in pairwise(bounds):
                thread = ThreadPoolExecutor(1, "heads", torch.set_num_threads, (each,))
                groups.append((slice(first, end), stack.enter_context(thread)))
            yield Cores(groups)
    finally:
        torch.set_num_threads(threads)
