"""What the files of a run's other processes are called."""

from __future__ import annotations

import re

LOGS = re.compile(r"rank-[0-9]{5,}\.log\Z")


def log_name(rank: int) -> str:
    """The file of what that process printed."""
    return f"rank-{rank:05d}.log"
