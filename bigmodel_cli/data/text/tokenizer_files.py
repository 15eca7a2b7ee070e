"""Tokenizers of a checkpoint, and of a file."""

from __future__ import annotations

import functools
from collections.abc import Mapping

from bigmodel_cli.data.text.own_tokenizers import ByteTokenizer, read_own
from bigmodel_cli.data.text.tokenizer import Tokenizer
from bigmodel_cli.data.text.tokenizer_library import SpecialTokens, open_library
from bigmodel_cli.errors import BigmodelError, CheckpointError, DataError

ASSET = "tokenizer.json"
SOURCE_ASSET = "source_tokenizer.json"
SPECIAL_ASSET = "special_tokens.json"
"""What a published model's files say of its special tokens, where that is known."""
MOST_OWN = 16_000_000
"""Most bytes of the file of a tokenizer that is computed here: one of all characters has fewer."""


def load_tokenizer(assets: Mapping[str, bytes]) -> Tokenizer:
    """The tokenizer among a checkpoint's assets.

    Raises `DataError` where there is none, `CheckpointError` for a faulty one.
    """
    if ASSET not in assets:
        raise DataError("the checkpoint has no tokenizer.json: it is not a model of text")
    return read_tokenizer(bytes(assets[ASSET]), ASSET, CheckpointError, assets.get(SPECIAL_ASSET))


def load_source_tokenizer(assets: Mapping[str, bytes]) -> Tokenizer:
    """The tokenizer of an encoder-decoder's sources: their own, or the one that both sides
    share.
    """
    if SOURCE_ASSET not in assets:
        return load_tokenizer(assets)
    return read_tokenizer(bytes(assets[SOURCE_ASSET]), SOURCE_ASSET, CheckpointError)


def read_tokenizer(
    content: bytes,
    name: str,
    fault: type[BigmodelError] = DataError,
    special: bytes | None = None,
) -> Tokenizer:
    """The tokenizer in the content of a tokenizer.json called `name`.

    `special` is the content of special_tokens.json; without it, special tokens are known by their
    usual names. Raises `fault` where it is not one. Never runs code from it.
    """
    try:
        return _read(content, special)
    except ValueError as error:
        raise fault(
            f"{name}: not a tokenizer.json of the tokenizers library that can be used: {error}"
        ) from None


@functools.lru_cache(maxsize=4)
def _read(content: bytes, special: bytes | None) -> Tokenizer:
    """The tokenizer. Raises `ValueError`."""
    own = read_own(content) if len(content) <= MOST_OWN else None
    if special is not None and isinstance(own, ByteTokenizer):
        own = None  # a published model's files say which of its tokens end a text
    return own or open_library(content, None if special is None else SpecialTokens.read(special))
