"""Tokenizers: text to numbers and back.

All are kept in one form, the `tokenizer.json` of the Hugging Face tokenizers library, which opens
elsewhere: bytes are its byte-level BPE without merges, characters its word-level model split at
each character, symbols the same split at blanks. Those three are computed here directly, because
that is faster and because an unknown character must be an error.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bigmodel_cli.data.text.tokenizer_library import (
    END_OF_TEXT,
    SpecialTokens,
    open_library,
    utf8,
)
from bigmodel_cli.errors import BigmodelError, CheckpointError, DataError

ASSET = "tokenizer.json"
SOURCE_ASSET = "source_tokenizer.json"
SPECIAL_ASSET = "special_tokens.json"
"""What a published model's files say of its special tokens, where that is known."""
MOST_OWN = 16_000_000
"""Most bytes of the file of a tokenizer that is computed here: one of all characters has fewer."""


class Tokenizer(Protocol):
    """Text to token numbers in [0, vocab_size), and back.

    `end_of_text` is the token after a text, None where there is none; `start_of_text` is the token
    before it; it falls back to the end-of-text token.
    """

    vocab_size: int
    end_of_text: int | None
    start_of_text: int | None
    begins: bool = False
    """Whether every text for the model begins with the start token, running text too."""

    @property
    def target_start(self) -> int | None:
        """The token before the target of an encoder-decoder."""
        return self.end_of_text

    @property
    def never(self) -> tuple[int, ...]:
        """Tokens that are never written, such as padding."""
        return ()

    @property
    def never_first(self) -> tuple[int, ...]:
        """Tokens with which no text begins."""
        return ()

    @property
    def languages(self) -> tuple[int, ...]:
        """The tokens of the languages among which a model of speech chooses."""
        return ()

    @property
    def stops(self) -> tuple[int, ...]:
        """The tokens at which a generated text ends."""
        return () if self.end_of_text is None else (self.end_of_text,)

    @property
    def special(self) -> Mapping[int, str]:
        """The special tokens' texts by number."""
        return {} if self.end_of_text is None else {self.end_of_text: END_OF_TEXT}

    def encode_marked(self, text: str) -> list[int]:
        """Token numbers of a text in which special tokens are spelled out, as a chat template
        writes them.
        """
        numbers = {spelled: number for number, spelled in self.special.items()}
        if not numbers:
            return self.encode(text)
        parts = re.split(f"({'|'.join(map(re.escape, numbers))})", text)
        found = [[numbers[part]] if part in numbers else self.encode(part) for part in parts]
        return [token for tokens in found for token in tokens]

    def decode_marked(self, tokens: Sequence[int]) -> str:
        """The text of some tokens, special tokens spelled out."""
        special, found, first = self.special, "", 0
        for index, token in enumerate(tokens):
            if token in special:
                found += self.decode(tokens[first:index]) + special[token]
                first = index + 1
        return found + self.decode(tokens[first:])

    def encode(self, text: str) -> list[int]:
        """Token numbers of a text, without special tokens."""
        tokens: list[int] = self.encode_array(text).tolist()
        return tokens

    def encode_array(self, text: str) -> NDArray[Any]:
        """The same as an array of integers."""
        raise NotImplementedError

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of some tokens; the end of text is nothing, and bytes that are not UTF-8 become
        U+FFFD.

        A character of several bytes that is cut at the end shows as U+FFFD there until its last
        byte has come.
        """

    def unknown(self, symbols: Iterable[str]) -> list[str]:
        """Which of the characters (letters, digits, marks ...) have no token of their own; none
        where such a character is an error.
        """
        return []

    def to_json(self) -> bytes:
        """The content of tokenizer.json."""


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
    own = _read_own(content) if len(content) <= MOST_OWN else None
    return own or open_library(content, None if special is None else SpecialTokens.read(special))


def _read_own(content: bytes) -> Tokenizer | None:
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
