"""Watching a model while it runs: each call of attention, with its part."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from bigmodel_cli.lazy import Module, Tensor
from bigmodel_cli.parts.contract import Attends, attending, mixing
from bigmodel_cli.parts.mixing import MixingCall
from bigmodel_cli.parts.watched import AttentionCall

Each = Callable[[str, Attends, AttentionCall], Tensor | None]
"""Is given the name of a part, the part and a call; what it returns replaces the call's output."""


EachMixing = Callable[[str, MixingCall], Tensor | None]
"""The same of mixers that are not attention; without the part."""


@contextmanager
def watch(model: Module, each: Each) -> Iterator[None]:
    """Inside, `each` is given every call of attention, in the order of the forward pass.

    The model may be run in any way: by a task, with caches, in generation. Fused kernels stay, and
    nothing of a call is kept, so that one layer at a time is in memory. A part that runs several
    times (shared by layers) is given each time.
    """
    found = attending(model)
    before = {name: part.watcher for name, part in found.items()}
    try:
        for name, part in found.items():
            part.watcher = partial(each, name, part)
        yield
    finally:
        for name, part in found.items():
            part.watcher = before[name]


@contextmanager
def watch_mixing(model: Module, each: EachMixing) -> Iterator[None]:
    """Inside, `each` is given every call of a mixer that implies a matrix over positions."""
    found = mixing(model)
    before = {name: part.mixing_watcher for name, part in found.items()}
    try:
        for name, part in found.items():
            part.mixing_watcher = partial(each, name)
        yield
    finally:
        for name, part in found.items():
            part.mixing_watcher = before[name]
