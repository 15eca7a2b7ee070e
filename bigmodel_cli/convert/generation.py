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
    "temperature": ("temperature", (float, 1e-6, math.inf)),
    "top_k": ("top_k", (int, 0, 2**31)),
    "top_p": ("top_p", (float, 0.001, 1.0)),
    "min_p": ("min_p", (float, 0.0, 1.0)),
}
"""Settings of drawn text."""
MOST_BEAMS: Bounds = (int, 1, 1_000)
TOP_K = 50
"""What transformers takes where drawn text has no top_k; its files leave it out."""
OF_FILES = {
    "transformers_version", "_from_model_config", "use_cache", "cache_implementation",
    "cache_config", "return_dict_in_generate", "output_attentions", "output_hidden_states",
    "output_scores", "do_sample", "num_return_sequences",
    "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "decoder_start_token_id",
    "forced_eos_token_id", "suppress_tokens",
}  # fmt: skip
"""Keys that do not change what is written, or are read with the special tokens."""
OF_SPEECH = {
    "begin_suppress_tokens", "forced_decoder_ids", "language", "task",
    "lang_to_id", "task_to_id", "is_multilingual", "return_timestamps", "alignment_heads",
    "max_initial_timestamp_index", "median_filter_width", "no_timestamps_token_id",
    "prev_sot_token_id",
}  # fmt: skip
"""The same of encoder-decoders: tokens that are left out, the prompt of Whisper, and its times."""


def settings(assets: Mapping[str, bytes]) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """(settings of any text, those of drawn or greedy text, names of those that are not read).

    By generation_config.json; empty where there is none. As in transformers, whose files leave out
    what is usual, text is greedy unless they say `do_sample`. Raises `CheckpointError`.
    """
    if PREFIX + GENERATION not in assets:
        return {}, {}, []
    values = json_of(assets[PREFIX + GENERATION], PREFIX + GENERATION)
    given = {name: value for name, value in values.items() if value is not None}
    drawn = given.get("do_sample") is True
    beams = _checked("num_beams", given.get("num_beams", 1), MOST_BEAMS)
    read = {**LIMITS, **(SAMPLING if drawn else {})}
    own: dict[str, Any] = {"temperature": 0.0}
    if drawn:
        own = {"temperature": 1.0, "top_k": TOP_K, **_read(SAMPLING, given)}
    elif beams > 1:
        own = {"beams": beams}
        del read["repetition_penalty"]  # a search has none
    if beams == 1 or not drawn:
        read["num_beams"] = ("beams", MOST_BEAMS)
    every = _read({name: LIMITS[name] for name in LIMITS if name in read}, given)
    elsewhere = OF_FILES | OF_SPEECH if _both_sides(assets) else OF_FILES
    left = [name for name in given if name not in elsewhere and name not in read]
    if all(len(word) == 1 for word in _words(given.get("bad_words_ids", []))):
        left = [name for name in left if name != "bad_words_ids"]
    return every, own, [clipped(name, 40) for name in left]


def alignment_heads(assets: Mapping[str, bytes]) -> list[tuple[int, int]] | None:
    """(layer, head) of the decoder's cross-attention that tells when words are said, as published.

    None where generation_config.json names none. Raises `CheckpointError`.
    """
    if PREFIX + GENERATION not in assets:
        return None
    given = json_of(assets[PREFIX + GENERATION], PREFIX + GENERATION).get("alignment_heads")
    if not given:
        return None
    pairs = given if isinstance(given, list) else [given]
    found = []
    for pair in pairs:
        right = isinstance(pair, list) and len(pair) == 2 and all(type(n) is int for n in pair)
        if not right or min(pair) < 0:
            raise CheckpointError(
                f"generation_config.json: alignment_heads: {clipped(str(pair), 40)!r} is not"
                " [layer, head]; use another checkpoint"
            )
        found.append((pair[0], pair[1]))
    return found


def _read(known: Mapping[str, tuple[str, Bounds]], given: Mapping[str, Any]) -> dict[str, Any]:
    return {
        ours: _checked(name, given[name], bounds)
        for name, (ours, bounds) in known.items()
        if name in given
    }


def _words(value: Any) -> list[Any]:
    """The lists in `bad_words_ids`, of which those of one token are read with the special ones."""
    return [word for word in value if isinstance(word, list)] if isinstance(value, list) else [()]


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
