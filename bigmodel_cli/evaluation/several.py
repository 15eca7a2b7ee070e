"""A command on a trained model in several processes: they meet, each has its share of the items,
all end as one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from bigmodel_cli import distributed
from bigmodel_cli.console import say
from bigmodel_cli.device import pick_device
from bigmodel_cli.distributed import voice
from bigmodel_cli.distributed.peers import Fault
from bigmodel_cli.errors import ProcessError, status_of
from bigmodel_cli.lazy import load_torch

LIMIT = 600.0
"""Seconds without a sign of life after which a process is taken for dead."""


@contextlib.contextmanager
def several(device: str, *, tensors: bool = True) -> Iterator[str]:
    """Inside, the processes share a command's items; gives the device of this one. Without
    `tensors` they exchange lines alone.

    Raises `ProcessError` where another one is lost or fails.
    """
    load_torch()
    peers = distributed.meet(LIMIT)
    if peers is None:
        yield device
        return
    peers.on_end = _say_end
    try:
        own = distributed.device_of(device)
        if tensors:
            distributed.begin(pick_device(own, lambda _: None), LIMIT)
        yield own
    except BaseException as error:
        # none waits for a step, as a training's do at a signal: the first end ends all
        found = peers.settle(error, status_of(error), stopped=False)
        peers.end(status_of(found), str(found))
        if found is error:
            raise
        if peers.fault is not None and peers.speaks_for_first(peers.fault):
            voice.speak()
        raise ProcessError(str(found), status_of(found)) from None
    peers.end(0, "")
    distributed.end()


def _say_end(fault: Fault) -> None:
    """Say how it ends: the main thread does not."""
    voice.speak()
    say(f"bigmodel: {fault.message}")
