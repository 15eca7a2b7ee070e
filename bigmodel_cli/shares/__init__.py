"""Tensor parallel: how a part's weights are divided among processes that compute it together.

A part says beside its code, for each of its weights, which axis is divided and what must stay
together on it (heads, hidden units, experts, tokens of the vocabulary), and where the processes'
results are summed. Divided, it is the same part with fewer heads or units: it computes on plain
tensors of its own process, so that fused kernels and compiled graphs see nothing of it. Nothing
here knows how processes reach one another.
"""

from __future__ import annotations

from bigmodel_cli.shares.cut import (
    PARTIAL,
    WHOLE,
    Cut,
    Run,
    Share,
    Shares,
    by_inputs,
    by_outputs,
    own_of,
)
from bigmodel_cli.shares.division import Divides, Division, Plan, Plans, by_parts, divide, says_so
from bigmodel_cli.shares.exchange import Exchange, SpreadsExperts
from bigmodel_cli.shares.team import ALONE, Team

__all__ = [
    "ALONE",
    "PARTIAL",
    "WHOLE",
    "Cut",
    "Divides",
    "Division",
    "Exchange",
    "Plan",
    "Plans",
    "Run",
    "Share",
    "Shares",
    "SpreadsExperts",
    "Team",
    "by_inputs",
    "by_outputs",
    "by_parts",
    "divide",
    "own_of",
    "says_so",
]
