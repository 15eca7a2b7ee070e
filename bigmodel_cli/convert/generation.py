"""The settings of generation that a published model came with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from bigmodel_cli.checkpoints.files import clipped
from bigmodel_cli.convert.assets import GENERATION, PREFIX
from bigmodel_cli.convert.folder import CONFIG, json_of
from bigmodel_cli.errors import CheckpointError

Bounds = tuple[type, float, float]
LIMITS: dict[str, tuple[str, Bounds]] = {
    "max_new_tokens": ("max_tokens", (int, 1, 10_000_000)),
    "repetition_penalty": ("repetition_penalty", (float, 0.01, math.inf)),
}
"""Settings of any text -> ours, with their least and most."""
SAMPLING: dict[str, tuple[str, Bounds]] = {
    "temperature": ("temperature", (float, 0.0, math.inf)),
    "top_k": ("top_k", (int, 0, 2**31)),
    "top_p": ("top_p", (float, 0.001, 1.0)),
    "min_p": ("min_p", (float, 0.0, 1.0)),
}
"""Settings of drawn text."""
OF_FILES = {
    "transformers_version", "_from_model_config", "use_cache", "cache_implementation",
    "cache_config", "return_dict_in_generate", "output_attentions", "output_hidden_states",
    "output_scores", "do_sample", "num_return_sequences",
}  # fmt: skip
"""Keys that do not change what is written, or are read otherwise; so are the ends in _token_id."""
OF_SPEECH = {
    "suppress_tokens", "begin_suppress_tokens", "forced_decoder_ids", "language", "task",
    "lang_to_id", "task_to_id", "is_multilingual", "return_timestamps", "alignment_heads",
    "max_initial_timestamp_index", "median_filter_width",
}  # fmt: skip
"""The same of encoder-decoders: tokens that are left out, the prompt of Whisper, and its times."""


def settings(assets: Mapping[str, bytes]) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """(settings of any text, those of drawn or greedy text, names of those that are not read).

    By generation_config.json; empty where there is none. Raises `CheckpointError`.
    """
    if PREFIX + GENERATION not in assets:
        return {}, {}, []
    values = json_of(assets[PREFIX + GENERATION], PREFIX + GENERATION)
    known = {**LIMITS, **SAMPLING}
    drawn = values.get("do_sample")
    every = {
        ours: _checked(name, values[name], bounds)
        for name, (ours, bounds) in LIMITS.items()
        if values.get(name) is not None
    }
    own: dict[str, Any] = {}
    if drawn is True:
        own = {
            ours: _checked(name, values[name], bounds)
            for name, (ours, bounds) in SAMPLING.items()
            if values.get(name) is not None
        }
        own.setdefault("temperature", 1.0)
    elif drawn is False:
        own = {"temperature": 0.0}
    left = [
        name
        for name, value in values.items()
        if value is not None
        and not name.endswith(("_token_id", "_token_ids"))
        and name not in (OF_FILES | OF_SPEECH if _both_sides(assets) else OF_FILES)
        and (name not in known or (name in SAMPLING and drawn is not True))
    ]
    return every, own, [clipped(name, 40) for name in left]


def _both_sides(assets: Mapping[str, bytes]) -> bool:
    """Whether the folder's model is an encoder-decoder."""
    kept = assets.get(PREFIX + CONFIG)
    values = {} if kept is None else json_of(kept, PREFIX + CONFIG)
    return values.get("is_encoder_decoder") is True


def _checked(name: str, value: Any, bounds: Bounds) -> Any:
    kind, least, most = bounds
    right = type(value) is int or (kind is float and type(value) is float)
    if not right or not least <= value <= most:
        raise CheckpointError(
            f"generation_config.json: {name}: {str(value)[:40]!r} is not one of {least} to {most};"
            " use another checkpoint"
        )
    return kind(value)
