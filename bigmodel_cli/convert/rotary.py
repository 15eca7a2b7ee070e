"""Rotary positions in config.json: `rope_parameters`, and the older keys that it replaced."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bigmodel_cli.checkpoints.files import clipped
from bigmodel_cli.convert.config import Config
from bigmodel_cli.errors import CheckpointError

FULL, SLIDING = "full_attention", "sliding_attention"
"""Types of layers: without and with a window."""
_TRAINED = "original_max_position_embeddings"
_KEYS = {
    "linear": {"factor": "factor"},
    "llama3": {
        "factor": "factor",
        _TRAINED: "trained",
        "low_freq_factor": "low_freq_factor",
        "high_freq_factor": "high_freq_factor",
    },
    "yarn": {
        "factor": "factor",
        _TRAINED: "trained",
        "beta_fast": "fast",
        "beta_slow": "slow",
        "truncate": "truncate",
        "mscale": "mscale",
        "mscale_all_dim": "mscale_all_dim",
        "attention_factor": "attention_factor",
    },
}
"""Kinds of scaling: keys in config.json -> options of ours."""
_CHANGING = (
    ": its angles change with the longest text at hand, so that what a text gives would depend on"
    " its neighbours, and on what was cached before it grew; use another checkpoint"
)
_WHY = dict.fromkeys(("dynamic", "longrope", "su"), _CHANGING)
"""Why kinds of scaling are not built: transformers follows them, and is not exact there."""
_USUAL = {"fast": 32.0, "slow": 1.0, "truncate": True, "mscale": 1.0, "mscale_all_dim": 0.0}
"""What options mean whose keys are not there; the others are None."""


def rotary(
    config: Config,
    base: float,
    layer_type: str | None = None,
    fraction: float = 1.0,
    unused: tuple[str, ...] = (),
) -> dict[str, Any]:
    """The position section of an attention.

    `base` and `fraction` are the family's defaults. Where the parameters differ by type of layer
    they are those of `layer_type`. `unused` keys change nothing. Raises `CheckpointError` for a
    scaling that is not built.
    """
    values = config.maybe("rope_parameters", dict) or {}
    older = config.maybe("rope_scaling", dict) or {}
    if values and older and values != older:
        raise CheckpointError(
            f"{config.file}: rope_scaling and rope_parameters are both there, and differ"
        )
    if layer_type is not None and layer_type in values:
        values = Config(values, config.file).get(layer_type, dict)
    theta = config.maybe("rope_theta", float)
    fraction = config.maybe("partial_rotary_factor", float) or fraction
    values = {key: value for key, value in (values or older).items() if key not in unused}
    return _position(config, values, theta or base, fraction)


def layered_rotary(
    config: Config, layer_type: str, bases: Mapping[str, float], keys: Mapping[str, str]
) -> dict[str, Any]:
    """The position section of a layer of this type, where each type has its own.

    `bases` are the family's defaults by type, `keys` the older keys that give them; in the older
    form the scaling is that of full attention. Raises `CheckpointError`.
    """
    values = config.maybe("rope_parameters", dict)
    scaling = config.maybe("rope_scaling", dict)
    given = {kind: config.maybe(key, float) for kind, key in keys.items()}
    if values is None:
        older = scaling if scaling is not None and layer_type == FULL else {}
        return _position(config, older, given.get(layer_type) or bases[layer_type])
    if scaling is not None or any(base is not None for base in given.values()):
        raise CheckpointError(
            f"{config.file}: rope_parameters is there beside older keys that say the same"
        )
    if values.keys() - bases.keys():
        raise CheckpointError(
            f"{config.file}: rope_parameters: expected those of {', '.join(bases)}, found"
            f" {', '.join(map(str, values))}"
        )
    own = Config(values, config.file).maybe(layer_type, dict) or {}
    if own.get("truncate") is False:
        raise CheckpointError(
            f"{config.file}: rope_parameters: truncate: false of one type of layer is not built"
            " (transformers overlooks it)"
        )
    return _position(config, own, bases[layer_type])


def _position(
    config: Config, values: Mapping[str, Any], base: float, fraction: float = 1.0
) -> dict[str, Any]:
    """The section for these parameters; those that are not there have these values."""
    left = Config({name: v for name, v in values.items() if v is not None}, config.file)
    kind = left.maybe("rope_type", str) or left.maybe("type", str) or "default"
    left.asked |= {"rope_type", "type"}
    found: dict[str, Any] = {
        "type": "rotary",
        "base": left.get("rope_theta", float, base),
        "fraction": left.get("partial_rotary_factor", float, fraction),
    }
    if kind in _KEYS:
        found["scaling"] = _scaling(config, kind, left)
    elif kind != "default":
        raise CheckpointError(
            f"{config.file}: rope_parameters: {clipped(kind)!r} is not built{_WHY.get(kind, '')}"
        )
    if unknown := left.values.keys() - left.asked:
        raise CheckpointError(
            f"{config.file}: rope_parameters: {', '.join(sorted(unknown))}: not known for {kind}"
        )
    return found


def _scaling(config: Config, kind: str, left: Config) -> dict[str, Any]:
    """The scaling of this kind; marks the keys that it understands in `left`."""
    found: dict[str, Any] = {"type": kind, "factor": left.get("factor", float)}
    for theirs, ours in _KEYS[kind].items():
        if theirs in left.values:
            number = type(left.values[theirs]) is int and ours != "trained"
            found[ours] = float(left.values[theirs]) if number else left.values[theirs]
    left.asked |= _KEYS[kind].keys()
    if _TRAINED in _KEYS[kind]:
        found.setdefault("trained", config.get("max_position_embeddings", int))
    sharp = (found.get("mscale"), found.get("mscale_all_dim"))
    if sharp != (None, None) and not all(sharp):
        # Their authors' code takes 0 for the one that is not there; transformers overlooks both.
        raise CheckpointError(
            f"{config.file}: rope_parameters: mscale and mscale_all_dim: only one is given, which"
            " is read in two ways"
        )
    return found


def rope_parameters(position: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse, for one position section."""
    found: dict[str, Any] = {"rope_type": "default", "rope_theta": position["base"]}
    if position["fraction"] != 1.0:
        found["partial_rotary_factor"] = position["fraction"]
    scaling = position["scaling"]
    if scaling is not None:
        names = {ours: theirs for theirs, ours in _KEYS[scaling["type"]].items()}
        found["rope_type"] = scaling["type"]
        found |= {
            names[k]: v for k, v in scaling.items() if k in names and v != _USUAL.get(k)
        }  # fmt: skip
    return found
