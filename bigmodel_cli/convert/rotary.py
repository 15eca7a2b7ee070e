"""Rotary positions in config.json: `rope_parameters`, and the older keys that it replaced."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bigmodel_cli.convert.config import Config
from bigmodel_cli.errors import CheckpointError

_YARN = {
    "original_max_position_embeddings": "trained",
    "beta_fast": "fast",
    "beta_slow": "slow",
    "truncate": "truncate",
    "mscale": "mscale",
    "mscale_all_dim": "mscale_all_dim",
    "attention_factor": "attention_factor",
}
"""Keys of YaRN in config.json -> options of `scaling: yarn`."""


def rotary(config: Config, base: float, layer_type: str | None = None) -> dict[str, Any]:
    """The position section of an attention.

    `base` is the family's default. Where the parameters differ by type of layer they are those of
    `layer_type`. Raises `CheckpointError` for a scaling that is not built.
    """
    values = config.maybe("rope_parameters", dict) or {}
    if layer_type is not None and layer_type in values:
        values = values[layer_type]
    older = config.maybe("rope_scaling", dict) or {}
    theta = config.maybe("rope_theta", float)
    fraction = config.maybe("partial_rotary_factor", float)
    values = {**older, **values}
    kind = values.pop("rope_type", None) or values.pop("type", None) or "default"
    found = {
        "type": "rotary",
        "base": float(values.pop("rope_theta", None) or theta or base),
        "fraction": float(values.pop("partial_rotary_factor", None) or fraction or 1.0),
        "scaling": _scaling(config, kind, values),
    }
    if values:
        raise CheckpointError(
            f"{config.file}: rope_parameters: {', '.join(sorted(values))}: not known for {kind}"
        )
    return {name: value for name, value in found.items() if value is not None}


def _scaling(config: Config, kind: str, values: dict[str, Any]) -> dict[str, Any] | None:
    """The scaling of this kind; takes the keys that it understands out of `values`."""
    if kind == "default":
        return None
    if kind == "linear":
        return {"type": "linear", "factor": float(values.pop("factor"))}
    if kind == "yarn":
        found = {ours: values.pop(theirs) for theirs, ours in _YARN.items() if theirs in values}
        return {"type": "yarn", "factor": float(values.pop("factor")), **found}
    raise CheckpointError(f"{config.file}: rope_parameters: {kind!r} is not built")


def rope_parameters(position: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse, for one position section."""
    found: dict[str, Any] = {"rope_type": "default", "rope_theta": position["base"]}
    if position["fraction"] != 1.0:
        found["partial_rotary_factor"] = position["fraction"]
    scaling = position["scaling"]
    if scaling is not None:
        found |= {"rope_type": scaling["type"], "factor": scaling["factor"]}
        names = {ours: theirs for theirs, ours in _YARN.items()}
        found |= {names[k]: v for k, v in scaling.items() if k in names and v is not None}
    return found
