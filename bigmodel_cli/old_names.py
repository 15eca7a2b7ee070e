"""Names of options in earlier versions.

Recorded specs are read by this table; for a new spec the fault gives the present name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

OLD_NAMES = {
    "train": {"clip": "max_grad_norm", "micro_batch": "micro_batch_size"},
    "task.masked_lm": {
        "fraction": "mask_prob",
        "masked": "replace_mask",
        "swapped": "replace_random",
    },
    "task.masked_image": {"fraction": "mask_ratio"},
}
"""Section, or section and type -> old name -> present name."""


def with_present_names(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A recorded spec with its options under their present names."""
    renamed = dict(spec)
    for place, names in OLD_NAMES.items():
        section, _, kind = place.partition(".")
        options = renamed.get(section)
        if isinstance(options, Mapping) and kind in ("", options.get("type")):
            renamed[section] = {names.get(name, name): value for name, value in options.items()}
    return renamed


def former_names() -> dict[str, str]:
    """Path of an option -> its former names."""
    return {
        f"{place.partition('.')[0]}.{new}": old
        for place, names in OLD_NAMES.items()
        for old, new in names.items()
    }
