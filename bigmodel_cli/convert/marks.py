"""Special tokens of a folder's tokenizer, by what they are for."""

from __future__ import annotations

import json
from pathlib import Path

from bigmodel_cli.convert.folder import has, read_json
from bigmodel_cli.convert.tokenizer_files import MARKS, ROBERTAS, tokenizer_json
from bigmodel_cli.data import TOKENIZER

NAMED = ("tokenizer_config.json", "special_tokens_map.json")
"""Files that say which token is for what."""


def mask_token(folder: Path) -> int | None:
    """The number of the token that stands for a hidden one; None where there is none.

    Raises `CheckpointError` for a damaged file, but for tokenizer.json's, which is read later.
    """
    named, found = _named(folder, "mask_token"), tokenizer_json(folder)
    if found is None:
        return None
    try:
        values = json.loads(found[0])
    except (ValueError, RecursionError):
        return None
    added = values.get("added_tokens") if isinstance(values, dict) else None
    usual = () if has(folder, TOKENIZER) else (MARKS["mask_token"], ROBERTAS["mask_token"])
    wanted = usual if named is None else (named,)
    for token in added if isinstance(added, list) else ():
        if isinstance(token, dict) and token.get("content") in wanted:
            number = token.get("id")
            return number if type(number) is int and number >= 0 else None
    return None


def _named(folder: Path, what: str) -> str | None:
    """The text of the token for `what`."""
    for name in NAMED:
        values = read_json(folder, name) if has(folder, name) else {}
        token = values.get(what)
        if isinstance(token, dict):
            token = token.get("content")
        if isinstance(token, str):
            return token
    return None
