"""All tables: the choices for the slots of a spec.

Plugins have joined them once this file is imported.
"""

from __future__ import annotations

from typing import Any

from bigmodel_cli.adapters import ADAPTERS
from bigmodel_cli.config import Table
from bigmodel_cli.data import SOURCES
from bigmodel_cli.models import MODELS
from bigmodel_cli.optim import OPTIMIZERS
from bigmodel_cli.parts import FFNS, HEAD_POSITIONS, MIXERS, NORMS, POSITIONS
from bigmodel_cli.plugins import join
from bigmodel_cli.schedules import SCHEDULES
from bigmodel_cli.tasks import TASKS
from bigmodel_cli.trackers import TRACKERS

TABLES: tuple[Table[Any], ...] = (
    MODELS,
    MIXERS,
    FFNS,
    NORMS,
    POSITIONS,
    HEAD_POSITIONS,
    TASKS,
    SOURCES,
    OPTIMIZERS,
    SCHEDULES,
    TRACKERS,
    ADAPTERS,
)
join(TABLES)
