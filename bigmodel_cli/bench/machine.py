"""Which machine, and which versions: what a result is compared by later."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from bigmodel_cli import __version__
from bigmodel_cli.lazy import torch

CPUINFO = Path("/proc/cpuinfo")


def machine() -> dict[str, Any]:
    """As plain values."""
    return {
        "system": platform.system(),
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0))
        if platform.system() == "Linux"
        else os.cpu_count() or 1,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "bigmodel": __version__,
    }


def processor() -> str:
    """Its name, as the system gives it."""
    try:
        lines = CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
