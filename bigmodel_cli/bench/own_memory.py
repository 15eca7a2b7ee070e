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
