"""The class of a head as a letter, by thresholds that the views state."""

from __future__ import annotations

from bigmodel_cli.attend.look import Statistics
from bigmodel_cli.lazy import Tensor

PREVIOUS = 0.5
"""Least share of the weight on the position before the query's own."""
INDUCTION = 0.4
"""Least share on what followed earlier occurrences of the query's token."""
SINK = 0.5
"""Least share on the first key and beside the keys."""
LOCAL = 0.25
"""Largest mean distance, as a part of that of equal weights."""
COLUMN = 0.3
"""Least share of all queries' weight that goes to one key other than the first."""
UNIFORM = 0.9
"""Least entropy, as a part of that of equal weights."""

CLASSES = {
    "p": ("previous", f"previous >= {PREVIOUS}"),
    "i": ("induction", f"induction >= {INDUCTION}"),
    "s": ("sink", f"sink >= {SINK}"),
    "l": ("local", f"distance <= {LOCAL} of even"),
    "c": ("column", f"one key >= {COLUMN}"),
    "u": ("uniform", f"entropy >= {UNIFORM} of even"),
    "x": ("other", "none of these"),
}
"""Letter -> name and threshold, in the order in which they are asked: the first that holds."""


def letters(figures: Statistics, queries: int, keys: int, causal: bool) -> str:
    """A letter for each head of a layer of so many queries and keys."""
    equal = keys / 4 if causal else (keys + queries) / 6  # the mean distance of equal weights
    tests = (
        figures.previous >= PREVIOUS,
        figures.induction >= INDUCTION,
        figures.sink >= SINK,
        figures.distance <= LOCAL * equal,
        figures.column >= COLUMN,
        figures.uniform >= UNIFORM,
    )
    return "".join(_first(head, tests) for head in range(len(figures.sink)))


def _first(head: int, tests: tuple[Tensor, ...]) -> str:
    """The letter of the first test that holds; comparisons with NaN do not."""
    found = (letter for letter, test in zip(CLASSES, tests, strict=False) if bool(test[head]))
    return next(found, "x")
