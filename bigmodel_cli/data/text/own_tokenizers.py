"""Tokenizers that are computed here: bytes, characters and symbols.

In tokenizer.json bytes are a byte-level BPE without merges, characters a word-level model split at
each character, symbols the same split at blanks. They are computed here directly, because that is
faster and because an unknown character must be an error.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bigmodel_cli.data.text.tokenizer import Tokenizer
from bigmodel_cli.data.text.tokenizer_library import END_OF_TEXT, utf8
from bigmodel_cli.errors import DataError


class ByteTokenizer(Tokenizer):
    """Token b is byte b of the UTF-8 form; 256 is the end of a text."""

    vocab_size = 257
    end_of_text: int | None = 256
    start_of_text: int | None = 256

    def encode_array(self, text: str) -> NDArray[Any]:
        return np.frombuffer(utf8(text), dtype=np.uint8)

    def decode(self, tokens: Sequence[int]) -> str:
        return bytes(token for token in tokens if 0 <= token < 256).decode(
            "utf-8", errors="replace"
        )

    def to_json(self) -> bytes:
        level = {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": False,
        }
        vocab = {character: byte for byte, character in enumerate(_byte_characters())}
        return _dump(
            {"type": "BPE", "vocab": vocab, "merges": []},
            end=256,
            pre_tokenizer=level,
            decoder=level,
        )


class CharacterTokenizer(Tokenizer):
    """Token i is the i-th of the sorted characters; the end of a text, where there is one, comes
    after them.
    """

    def __init__(self, characters: Iterable[str], end: bool) -> None:
        self.characters = sorted(set(characters))
        self.end_of_text = len(self.characters) if end else None
        self.start_of_text = self.end_of_text
        self.vocab_size = len(self.characters) + end
        codes = [ord(character) for character in self.characters]
        self.table = np.full(max(codes, default=0) + 1, -1, dtype=np.int32)
        self.table[codes] = np.arange(len(codes))

    def encode_array(self, text: str) -> NDArray[Any]:
        """Raises `UnknownCharacter` for the first one that is not in the vocabulary."""
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
        tokens: NDArray[np.int32] = self.table[np.minimum(codes, len(self.table) - 1)]
        unknown = np.flatnonzero((tokens < 0) | (codes >= len(self.table)))
        if unknown.size:
            raise UnknownCharacter(text[int(unknown[0])], int(unknown[0]))
        return tokens

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join(
            self.characters[token] for token in tokens if 0 <= token < len(self.characters)
        )

    def to_json(self) -> bytes:
        return _dump(
            {
                "type": "WordLevel",
                "vocab": {c: i for i, c in enumerate(self.characters)},
                "unk_token": "<unknown>",
            },
            end=self.end_of_text,
            pre_tokenizer={
                "type": "Split",
                "pattern": {"Regex": "[\\s\\S]"},
                "behavior": "Isolated",
                "invert": False,
            },
            decoder={"type": "Fuse"},
        )


class SymbolTokenizer(Tokenizer):
    """Token i is the i-th of some symbols, with blanks between; the end of a text comes after
    them.
    """

    def __init__(self, symbols: Iterable[str]) -> None:
        self.symbols = list(symbols)
        self.numbers = {symbol: number for number, symbol in enumerate(self.symbols)}
        self.end_of_text: int | None = len(self.symbols)
        self.start_of_text: int | None = len(self.symbols)
        self.vocab_size = len(self.symbols) + 1

    def encode_array(self, text: str) -> NDArray[Any]:
        """Raises `UnknownSymbol` for the first one that is not in the vocabulary."""
        tokens = [self.numbers.get(symbol, -1) for symbol in text.split()]
        if -1 in tokens:
            symbol = text.split()[tokens.index(-1)]
            raise UnknownSymbol(symbol, f" {' '.join(text.split())} ".index(f" {symbol} "))
        return np.array(tokens, np.int64)

    def decode(self, tokens: Sequence[int]) -> str:
        return " ".join(self.symbols[token] for token in tokens if 0 <= token < len(self.symbols))

    def to_json(self) -> bytes:
        return _dump(
            {"type": "WordLevel", "vocab": self.numbers, "unk_token": "<unknown>"},
            end=self.end_of_text,
            pre_tokenizer={"type": "WhitespaceSplit"},
            decoder=None,
        )


class UnknownCharacter(DataError):
    """A characters tokenizer met a character that its corpus did not have, `offset` characters into
    the text.
    """

    def __init__(self, character: str, offset: int, where: str = "the text") -> None:
        self.character, self.offset = character, offset
        super().__init__(
            f"{where}: {character!r} (U+{ord(character):04X}) at character {offset} is not in the"
            " vocabulary of the characters tokenizer; remove it, or train with tokenizer.type:"
            " bytes"
        )


class UnknownSymbol(UnknownCharacter):
    """A symbol that its tokenizer does not have."""

    def __init__(self, character: str, offset: int, where: str = "the text") -> None:
        self.character, self.offset = character, offset
        DataError.__init__(
            self, f"{where}: {character!r} is not one of the symbols that the model was trained on"
        )


def read_own(content: bytes) -> Tokenizer | None:
    """The bytes, characters or symbols tokenizer that wrote this, or None."""
    own: Tokenizer
    try:
        values = json.loads(content)
        model = values["model"]
        if model["type"] == "BPE" and len(model["vocab"]) == 256:
            own = ByteTokenizer()
        elif values["pre_tokenizer"] == {"type": "WhitespaceSplit"}:
            own = SymbolTokenizer(model["vocab"])
        else:
            own = CharacterTokenizer(model["vocab"], end=bool(values["added_tokens"]))
        return own if json.loads(own.to_json()) == values else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _dump(
    model: dict[str, Any],
    end: int | None,
    pre_tokenizer: dict[str, Any],
    decoder: dict[str, Any] | None,
) -> bytes:
    flags = {
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }
    values = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [] if end is None else [{"id": end, "content": END_OF_TEXT, **flags}],
        "normalizer": None,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": decoder,
        "model": model,
    }
    return json.dumps(values, ensure_ascii=False, indent=1).encode()


def _byte_characters() -> list[str]:
    """The visible character that byte-level BPE writes for each byte (Radford et al. 2019): itself,
    or one from U+0100 on.
    """
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in visible else chr(next(others)) for byte in range(256)]
