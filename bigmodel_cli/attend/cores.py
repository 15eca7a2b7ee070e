"""Heads side by side on a CPU's cores, each by operations of one thread.

An operation on a tile is too short to be shared by threads without waiting for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from bigmodel_cli.lazy import torch

MOST = 8
"""Threads, between whose operations only one at a time runs Python."""

Each = Callable[[Callable[[slice], None], Sequence[slice]], None]
"""Call a function with each of these heads, in any order or at once."""


@contextmanager
def on_cores(device: torch.device, wanted: bool) -> Iterator[Each]:
    """Inside, heads are taken by as many threads as operations would have; one by one elsewhere
    than on a CPU, and where it is not `wanted`.
    """
    threads = torch.get_num_threads()
    count = min(threads, MOST)
    if device.type != "cpu" or count < 2 or not wanted:
        yield _one_by_one
        return
    inference, each = torch.is_inference_mode_enabled(), threads // count

    def all_of(function: Callable[[slice], None], heads: Sequence[slice]) -> None:
        def call(some: slice) -> None:
            with torch.inference_mode(inference), torch.no_grad():
                function(some)

        if len(heads) > 1:
            list(pool.map(call, heads))  # which raises what one of them raised
        else:
            _one_by_one(function, heads)

    try:
        torch.set_num_threads(each)  # of this thread too: idle ones of it would take the cores
        with ThreadPoolExecutor(count, "heads", torch.set_num_threads, (each,)) as pool:
            yield all_of
    finally:
        torch.set_num_threads(threads)


def _one_by_one(function: Callable[[slice], None], heads: Sequence[slice]) -> None:
    for each in heads:
        function(each)
