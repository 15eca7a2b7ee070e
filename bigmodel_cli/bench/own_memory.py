"""The memory of this process: its peak above what it had at some moment."""

from __future__ import annotations

import contextlib
import re
import resource
import sys
from pathlib import Path

from bigmodel_cli.lazy import torch
from bigmodel_cli.models.footprint import step_peaks

SELF = Path("/proc/self")
_KB = re.compile(r"^(VmHWM|VmRSS|VmData):\s+(\d+) kB", re.MULTILINE)


class OwnMemory:
    """The peak since this was made, less the memory at that moment, in bytes.

    On Linux the peak so far is forgotten first (proc_pid_clear_refs(5)). Where that is not possible
    it may have been above what comes later, which then counts as less.
    """

    def __init__(self, proc: Path = SELF) -> None:
        self.proc = proc
        with contextlib.suppress(OSError):
            (proc / "clear_refs").write_text("5")
        self.before = self._now().get("VmRSS", _highest())

    def peak(self) -> int:
        """Bytes; at least 0."""
        return max(0, self._now().get("VmHWM", _highest()) - self.before)

    def _now(self) -> dict[str, int]:
        return status(self.proc)


def status(proc: Path = SELF) -> dict[str, int]:
    """Bytes of this process by their names in /proc: {} where the system has none."""
    try:
        text = (proc / "status").read_text()
    except OSError:
        return {}
    return {name: int(size) * 1024 for name, size in _KB.findall(text)}


def _highest() -> int:
    """The most that the process ever had: in bytes on macOS, in kB elsewhere (getrusage(2))."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def free_memory(proc: Path = Path("/proc"), group: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes that a process can still take: what the machine has available, within the limits of its
    control group and of `ulimit -d`; None where the system does not tell.
    """
    found = [_available(proc), _in_group(group)]
    soft, _ = resource.getrlimit(resource.RLIMIT_DATA)
    if soft != resource.RLIM_INFINITY:
        found.append(soft)
    known = [n for n in found if n is not None]
    return min(known, default=None)


def _available(proc: Path) -> int | None:
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB", (proc / "meminfo").read_text(), re.M)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def _in_group(group: Path) -> int | None:
    """What is left of the control group's limit, caches that can be dropped not counted."""
    try:
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
        kept = re.search(r"^inactive_file (\d+)", (group / "memory.stat").read_text(), re.M)
    except (OSError, ValueError):  # no limit is "max"
        return None
    return max(0, limit - used + (int(kept[1]) if kept else 0))


def limit_memory(room: int) -> None:
    """Let allocations fail beyond so many bytes more, rather than the system kill a process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = status().get("VmData", 0) + room
    limits = [n for n in (wanted, soft, hard) if n != resource.RLIM_INFINITY]
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_DATA, (min(limits), hard))


def load_tools() -> None:
    """Load what measuring needs: 160 MB that are not the timed work's."""
    meta = torch.device("meta")
    step_peaks(torch.nn.Linear(1, 1, device=meta), torch.zeros(1, 1, device=meta))
