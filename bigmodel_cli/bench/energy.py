"""Joules that a device used, where the system tells them to anybody: NVML of NVIDIA's GPUs, RAPL of
processors.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bigmodel_cli.device import is_cuda
from bigmodel_cli.lazy import torch

POWERCAP = Path("/sys/class/powercap")
WHOLE = "psys"
"""The name of a zone of the whole machine, in which those of the processors are counted too."""
PARTS = ("dram",)
"""Names of zones inside a processor's which that does not count."""


class Meter:
    """The energy of a device; of a CPU that of all processors and, where it is told, of memory."""

    def __init__(self, device: torch.device, powercap: Path = POWERCAP) -> None:
        self.gpu = _nvidia(device) if is_cuda(device) else None
        self.zones = {} if is_cuda(device) else _zones(powercap)

    def read(self) -> Mapping[Any, float]:
        """Joules so far, of each counter; {} where there is none that can be read."""
        found: dict[Any, float] = {}
        with contextlib.suppress(Exception):  # NVML's own; a driver that has gone
            if self.gpu is not None:
                library, handle = self.gpu
                found[library] = library.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3
        for zone in self.zones:
            with contextlib.suppress(OSError, ValueError):
                found[zone] = int((zone / "energy_uj").read_text()) / 1e6
        return found

    def joules(self, before: Mapping[Any, float], after: Mapping[Any, float]) -> float | None:
        """Between two readings; None where nothing was read. A counter that is full begins anew."""
        if not before or before.keys() != after.keys():
            return None
        used = 0.0
        for counter, start in before.items():
            more = after[counter] - start
            used += more if more >= 0 else more + self.zones.get(counter, 0.0)
        return used if used > 0 else None


def _zones(powercap: Path) -> dict[Path, float]:
    """The counters that can be read, and the joules at which each begins anew
    (Documentation/power/powercap in Linux).
    """
    found: dict[Path, float] = {}
    with contextlib.suppress(OSError):
        for zone in sorted(powercap.glob("intel-rapl:*")):
            with contextlib.suppress(OSError, ValueError):
                name, inside = (zone / "name").read_text().strip(), zone.name.count(":") > 1
                if (name not in PARTS) if inside else (name == WHOLE):
                    continue
                int((zone / "energy_uj").read_text())
                found[zone] = int((zone / "max_energy_range_uj").read_text()) / 1e6
    return found


def _nvidia(device: torch.device) -> tuple[Any, Any] | None:
    """NVML and the device's handle; None where there is no NVML (package nvidia-ml-py)."""
    with contextlib.suppress(Exception):
        library = importlib.import_module("pynvml")
        library.nvmlInit()
        uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        handle = library.nvmlDeviceGetHandleByUUID(uuid)
        library.nvmlDeviceGetTotalEnergyConsumption(handle)
        return library, handle
    return None
