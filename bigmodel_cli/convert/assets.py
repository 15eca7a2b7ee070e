"""Files beside the weights: the tokenizer, and those that are kept to be written again on export.

Kept files become assets of a checkpoint, byte for byte, with `hf.` before their names.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from bigmodel_cli.checkpoints.files import MOST_JSON
from bigmodel_cli.convert.folder import CONFIG, has, json_of, read
from bigmodel_cli.convert.special_tokens import special_tokens
from bigmodel_cli.data import SPECIAL_TOKENS, TOKENIZER
from bigmodel_cli.errors import CheckpointError

MOST_TOKENIZER = 100_000_000
TOKENIZER_CONFIG, TOKENS_MAP = "tokenizer_config.json", "special_tokens_map.json"
GENERATION, TEMPLATE = "generation_config.json", "chat_template.jinja"
CARD = "README.md"
KEPT = (
    *(CONFIG, TOKENIZER_CONFIG, TOKENS_MAP, GENERATION, TEMPLATE, "added_tokens.json"),
    *("preprocessor_config.json", "processor_config.json", "normalizer.json", CARD, "LICENSE"),
)
PREFIX = "hf."
OTHER_TOKENIZERS = {
    "spiece.model": "SentencePiece's",
    "tokenizer.model": "SentencePiece's",
    "sentencepiece.bpe.model": "SentencePiece's",
    "source.spm": "SentencePiece's",
    "vocab.txt": "a list of word pieces",
    "vocab.json": "a vocabulary with its merges beside it",
}
"""Tokenizers in older forms, without the rules by which text is split."""


def read_assets(folder: Path) -> dict[str, bytes]:
    """The assets of a folder, among them what its files say of special tokens.

    Raises `CheckpointError` for a tokenizer in a form that is not read.
    """
    kept = {PREFIX + n: read(folder, n, MOST_JSON) for n in KEPT if has(folder, n)}
    if not has(folder, TOKENIZER):
        _check_none(folder)
        return kept
    tokenizer = read(folder, TOKENIZER, MOST_TOKENIZER)
    values = (
        json_of(kept[PREFIX + name], folder / name) if PREFIX + name in kept else {}
        for name in (CONFIG, TOKENIZER_CONFIG, TOKENS_MAP, GENERATION)
    )
    special = special_tokens(tokenizer, tuple(values), str(folder))
    return {**kept, TOKENIZER: tokenizer, SPECIAL_TOKENS: special}


def carried(assets: Mapping[str, bytes]) -> dict[str, bytes]:
    """The assets that a training from this checkpoint keeps."""
    return {n: c for n, c in assets.items() if n.startswith(PREFIX) or n == SPECIAL_TOKENS}


def _check_none(folder: Path) -> None:
    for name, what in OTHER_TOKENIZERS.items():
        if has(folder, name):
            raise CheckpointError(
                f"{folder}: {name} is {what}, which is not read; write a tokenizer.json beside it:"
                f" transformers.AutoTokenizer.from_pretrained({str(folder)!r})"
                f".save_pretrained({str(folder)!r})"
            )
