"""Options, their bounds, and what the data tells the model: what every room is configured by."""

from __future__ import annotations

from bigmodel_cli.config.bounds import (
    MOST_BEAMS,
    PADDING,
    Beams,
    Count,
    Fraction,
    Natural,
    NonNegative,
    Positive,
    Probability,
    Seed,
    Steps,
)
from bigmodel_cli.config.dataset import (
    MOST_FILTERS,
    MOST_PIXELS,
    MOST_RATE,
    NO_DATASET,
    DatasetInfo,
    MelConfig,
)
from bigmodel_cli.config.options import Options, Table, classes_in, required, typed

__all__ = [
    "MOST_BEAMS",
    "MOST_FILTERS",
    "MOST_PIXELS",
    "MOST_RATE",
    "NO_DATASET",
    "PADDING",
    "Beams",
    "Count",
    "DatasetInfo",
    "Fraction",
    "MelConfig",
    "Natural",
    "NonNegative",
    "Options",
    "Positive",
    "Probability",
    "Seed",
    "Steps",
    "Table",
    "classes_in",
    "required",
    "typed",
]
