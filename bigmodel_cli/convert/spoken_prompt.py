"""The tokens that a published model of speech is given before it writes: language, task, and that
no times are to be written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bigmodel_cli.checkpoints.files import clipped
from bigmodel_cli.convert.assets import GENERATION
from bigmodel_cli.convert.folder import CONFIG, has, read_json
from bigmodel_cli.convert.tokenizer_files import tokenizer_json
from bigmodel_cli.data import LANGUAGE, TOKENIZER
from bigmodel_cli.errors import CheckpointError

Values = Mapping[str, Any]


def prompt_of(folder: Path) -> str:
    """The prompt, special tokens spelled out, as transformers composes it.

    `{language}` stands for that which the model hears itself. "" where the folder has no tokenizer.
    Raises `CheckpointError` for a setting that is not built.
    """
    generation = read_json(folder, GENERATION) if has(folder, GENERATION) else {}
    if generation.get("return_timestamps") not in (None, False):
        raise CheckpointError(
            f"{folder / GENERATION}: return_timestamps: times are not written; set it to false"
        )
    tokenizer = tokenizer_json(folder)
    if tokenizer is None:
        return ""
    tokens = _composed(generation, read_json(folder, CONFIG), str(folder / GENERATION))
    names = _names(tokenizer[0])
    unknown = [token for token in tokens if token is not None and token not in names]
    if unknown:
        raise CheckpointError(
            f"{folder / GENERATION}: {unknown[0]} is not a special token of {TOKENIZER}"
        )
    return "".join(LANGUAGE if token is None else names[token] for token in tokens)


def _composed(generation: Values, config: Values, file: str) -> list[int | None]:
    """The tokens after the start; None for the language where the model is to find it."""
    task, language = generation.get("task"), generation.get("language")
    languages = _numbers(generation, "lang_to_id", file)
    tasks = _numbers(generation, "task_to_id", file)
    found: list[int | None] = []
    if task is None and language is None:
        forced = generation.get("forced_decoder_ids") or config.get("forced_decoder_ids")
        found = _forced(forced, file)
    if language is not None:
        found = [_named(language, languages, f"{file}: language")]
    elif languages and not found:
        found = [None]
    if task is not None or (language is not None and tasks):
        found.append(_named(task or "transcribe", tasks, f"{file}: task"))
    last = generation.get("no_timestamps_token_id")
    if type(last) is int and found[-1:] != [last]:
        found.append(last)
    return found


def _forced(forced: Any, file: str) -> list[int | None]:
    """Tokens by their places, which count from 1 and have no gap."""
    if forced is None:
        return []
    found: list[int | None] = []
    for item in forced if isinstance(forced, list) else [forced]:
        place: Any
        token: Any
        place, token = item if isinstance(item, list) and len(item) == 2 else (None, "")
        known = type(token) is int and token >= 0
        if place != len(found) + 1 or not (known or (token is None and place == 1)):
            raise CheckpointError(
                f"{file}: forced_decoder_ids: {clipped(str(forced))} does not give a token for each"
                " place from 1 on"
            )
        found.append(token if known else None)
    return found


def _numbers(generation: Values, name: str, file: str) -> dict[str, int]:
    found = generation.get(name) or {}
    if not isinstance(found, dict) or any(type(n) is not int or n < 0 for n in found.values()):
        raise CheckpointError(f"{file}: {name}: it does not give each name the number of a token")
    return found


def _named(name: Any, numbers: dict[str, int], where: str) -> int:
    """The token of a language ("en", "<|en|>") or a task."""
    for spelled in (name, f"<|{name}|>"):
        if isinstance(spelled, str) and spelled in numbers:
            return numbers[spelled]
    known = ", ".join([*numbers][:8])
    raise CheckpointError(f"{where}: {clipped(str(name))!r} is not one of {known or 'none'}")


def _names(tokenizer: bytes) -> dict[int, str]:
    """The special tokens' texts by number; {} for a damaged file, whose fault is told later."""
    try:
        values = json.loads(tokenizer)
        added = values.get("added_tokens", [])
        return {int(t["id"]): str(t["content"]) for t in added if t.get("special") is True}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}
