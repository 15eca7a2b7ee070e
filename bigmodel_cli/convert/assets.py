"""Files beside the weights: the tokenizer, and those that are kept to be written again on export.

Kept files become assets of a checkpoint, byte for byte, with `hf.` before their names.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from bigmodel_cli.checkpoints.files import MOST_JSON
from bigmodel_cli.convert.folder import CONFIG, has, json_of, read
from bigmodel_cli.convert.special_tokens import special_tokens
from bigmodel_cli.convert.tokenizer_files import TOKENIZER_CONFIG, TOKENS_MAP, tokenizer_json
from bigmodel_cli.data import SPECIAL_TOKENS, TOKENIZER

GENERATION, TEMPLATE = "generation_config.json", "chat_template.jinja"
CARD = "README.md"
KEPT = (
    *(CONFIG, TOKENIZER_CONFIG, TOKENS_MAP, GENERATION, TEMPLATE, "added_tokens.json"),
    *("preprocessor_config.json", "processor_config.json", "normalizer.json", CARD, "LICENSE"),
)
PREFIX = "hf."


def read_assets(folder: Path) -> dict[str, bytes]:
    """The assets of a folder, among them what its files say of special tokens.

    Raises `CheckpointError` for a tokenizer in a form that is not read.
    """
    return read_with_notes(folder)[0]


def read_with_notes(folder: Path) -> tuple[dict[str, bytes], list[str]]:
    """The same, and what is to be said of the tokenizer."""
    kept = {PREFIX + n: read(folder, n, MOST_JSON) for n in KEPT if has(folder, n)}
    found = tokenizer_json(folder)
    if found is None:
        return kept, []
    tokenizer, notes = found
    values = (
        json_of(kept[PREFIX + name], folder / name) if PREFIX + name in kept else {}
        for name in (CONFIG, TOKENIZER_CONFIG, TOKENS_MAP, GENERATION)
    )
    special = special_tokens(tokenizer, tuple(values), str(folder))
    return {**kept, TOKENIZER: tokenizer, SPECIAL_TOKENS: special}, notes


def carried(assets: Mapping[str, bytes]) -> dict[str, bytes]:
    """The assets that a training from this checkpoint keeps."""
    return {n: c for n, c in assets.items() if n.startswith(PREFIX) or n == SPECIAL_TOKENS}
