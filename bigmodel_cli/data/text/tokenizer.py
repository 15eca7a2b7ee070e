"""Tokenizers: text to numbers and back.

All are kept in one form, the `tokenizer.json` of the Hugging Face tokenizers library, which opens
elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from numpy.typing import NDArray

from bigmodel_cli.data.text.tokenizer_library import END_OF_TEXT


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
    def named(self) -> Mapping[str, str]:
        """The special tokens' texts by their names for chat templates, such as "eos_token"."""
        marks = {"bos_token": self.start_of_text, "eos_token": self.end_of_text}
        return {name: self.special.get(t, "") for name, t in marks.items() if t is not None}

    @property
    def between(self) -> int:
        """How many end tokens stand between the two texts of a pair."""
        return 1

    @property
    def second_type(self) -> int:
        """The type of the second text's tokens in a pair."""
        return 1

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
