"""Lazy torch: names that cost nothing until a tensor is needed.

A part's options are in the same file as the part, and a faulty spec must be answered faster than
`import torch` takes. So the files that declare both write ``from bigmodel_cli.lazy import F,
Module, nn, torch``, and stay ordinary PyTorch in every other way.

`load_torch` imports torch, replaces the stand-ins by the real modules wherever they were imported,
and gives `Module` its base class; after that no stand-in is left. It runs by itself at the first
use of a stand-in. An annotation may name torch freely (annotations are not evaluated); what runs at
import time, such as a decorator, may not.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    import torch.nn.functional as F
    from torch import Tensor, nn
    from torch.nn import Module
else:

    class _StandIn:
        def __init__(self, target: str) -> None:
            self.target = target

        def __getattr__(self, name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            load_torch()
            return getattr(importlib.import_module(self.target), name)

    class _Unloaded:
        """Base of `Module` before torch is loaded."""

        def __init__(self) -> None:
            load_torch()  # from now on the instance's class derives from torch's Module
            importlib.import_module("torch.nn").Module.__init__(self)

    class Module(_Unloaded):
        """`torch.nn.Module`, once torch is loaded."""

    torch = _StandIn("torch")
    nn = _StandIn("torch.nn")
    F = _StandIn("torch.nn.functional")
    Tensor = Any

_loaded = False

SPINS = 10_000
"""How often a thread of the CPU looks for work before it sleeps: a tenth of a millisecond."""


def sleep_soon() -> None:
    """Let OpenMP's threads of GCC's library, which torch computes with, sleep when they wait long.

    By default they wait three milliseconds and more, awake. Where other work takes one of the
    cores, that keeps it from the thread that the others wait for: a small step then takes up to
    sixty times as long. Settings in the environment are left alone.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))  # read when torch is loaded


def load_torch() -> None:
    """Import torch and replace every stand-in in this package by the real module. Idempotent."""
    global _loaded
    if _loaded:
        return
    sleep_soon()
    stand_ins = {id(globals()[name]): globals()[name].target for name in ("torch", "nn", "F")}
    real = {key: importlib.import_module(target) for key, target in stand_ins.items()}
    Module.__bases__ = (importlib.import_module("torch.nn").Module,)
    for module in [m for m in list(sys.modules.values()) if hasattr(m, "__dict__")]:
        names = vars(module)
        for name in ("torch", "nn", "F"):
            if id(names.get(name)) in real:
                names[name] = real[id(names[name])]
    _loaded = True


__all__ = ["F", "Module", "Tensor", "load_torch", "nn", "torch"]
