"""Mean and deviation for normalising inputs: none, a checkpoint's, or those of the training
split.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.data.order import Ints, permute

Moments = tuple[tuple[float, ...], tuple[float, ...]]
"""(mean, deviation), one of each per channel; () twice where nothing is normalised."""
LEAST = 1e-3
"""Least deviation, so that a constant input is not divided by zero."""


def normalisation(
    wanted: bool, before: DatasetInfo | None, measure: Callable[[], list[tuple[float, float]]]
) -> Moments:
    """None unless `wanted`; a checkpoint's where its inputs are alike; else as measured: (mean,
    variance) per channel.
    """
    if not wanted:
        return (), ()
    if before is not None:
        return before.mean, before.std
    measured = measure()
    mean, std = (
        tuple(round(m, 6) for m, _ in measured),
        tuple(round(max(LEAST, v**0.5), 6) for _, v in measured),
    )
    return mean, std


def sampled(count: int, most: int) -> Ints:
    """The numbers of at most `most` of `count` items, always the same."""
    return permute(np.arange(min(most, count)), count, (0, 1))
