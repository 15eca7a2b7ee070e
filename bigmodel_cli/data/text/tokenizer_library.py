"""Tokenizers of the Hugging Face tokenizers library: its treatment of files from anywhere, and its
panics as faults.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bigmodel_cli.errors import DataError
from bigmodel_cli.heeding import heeding

END_OF_TEXT = "<|endoftext|>"
END_NAMES = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "[SEP]")
"""Names of the end-of-text token in common tokenizers; the first that exists is used."""
START_NAMES = ("[CLS]", "<s>", "<bos>", "<|begin_of_text|>")
"""Names of the start-of-text token."""
LONG = 1 << 16
"""Characters from which on a signal is not delayed until a text is encoded: a row may have a
hundred million.
"""
MOST_BYTES = 100_000_000
"""Limit for a tokenizer.json: that of a vocabulary of 256,000 has 35 million."""
TRIALS = (
    "",
    "a",
    " a 1.",
    "\ue000 \U0010fffd",
    "\n\tÄß\u4e2d",
    "a" * 1000 + "!",
    "1" * 1000 + "a",
    " " * 1000 + "a",
)
"""What any tokenizer must be able to read, with characters that no vocabulary has, and long runs.
"""


@dataclass(frozen=True)
class SpecialTokens:
    """The numbers of special tokens, by a published model's files."""

    start: int | None
    end: int | None
    stops: tuple[int, ...]
    begins: bool
    target_start: int | None = None
    never: tuple[int, ...] = ()
    between: int = 1
    second_type: int = 1
    names: tuple[tuple[str, str], ...] = ()
    """Their texts by what they are called, such as "eos_token", where files say so."""
    never_first: tuple[int, ...] = ()
    languages: tuple[int, ...] = ()
    silent: tuple[int, ...] = ()
    """Tokens that are no text though the tokenizer does not call them special."""

    @classmethod
    def read(cls, content: bytes) -> SpecialTokens:
        """Those in the content of special_tokens.json. Raises `ValueError`."""
        values = json.loads(content)
        try:
            found = cls(
                values["start"],
                values["end"],
                tuple(values["stops"]),
                values["begins"] is True,
                values.get("target_start"),
                tuple(values.get("never", ())),
                values.get("between", 1),
                values.get("second_type", 1),
                tuple((str(n), str(text)) for n, text in values.get("names", {}).items()),
                tuple(values.get("never_first", ())),
                tuple(values.get("languages", ())),
                tuple(values.get("silent", ())),
            )
        except (TypeError, KeyError, AttributeError):
            raise ValueError("special_tokens.json: damaged") from None
        singles = (found.start, found.end, found.target_start)
        lists = (
            *(found.stops, found.never, found.never_first),
            *(found.languages, found.silent),
        )
        numbers = [*(n for some in lists for n in some), *(n for n in singles if n is not None)]
        if not all(type(number) is int and number >= 0 for number in numbers):
            raise ValueError("special_tokens.json: damaged")
        if found.between not in (1, 2) or found.second_type not in (0, 1):
            raise ValueError("special_tokens.json: damaged")
        return found


class LibraryTokenizer:
    """Any tokenizer of the tokenizers library; `special` tokens are known by name without it."""

    def __init__(self, content: bytes, special: SpecialTokens | None = None) -> None:
        from tokenizers import Tokenizer as Library

        self.content = content
        self.library = Library.from_str(content.decode("utf-8"))
        self.library.no_padding()
        self.library.no_truncation()
        self.library.encode_special_tokens = True  # text that spells a special token stays text
        self.vocab_size = (
            max(self.library.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        )
        named = SpecialTokens(self.mark(START_NAMES), self.mark(END_NAMES), (), False)
        special = special or named
        self.end_of_text = named.end if special.end is None else special.end
        start = named.start if special.start is None else special.start
        self.start_of_text = self.end_of_text if start is None else start
        self.begins = special.begins
        own = special.target_start
        self.target_start = self.end_of_text if own is None else own
        self.never = special.never
        self.between, self.second_type = special.between, special.second_type
        self.names = dict(special.names)
        self.never_first = special.never_first
        self.languages = special.languages
        self.silent = frozenset(special.silent)
        ends = () if self.end_of_text is None else (self.end_of_text,)
        self.stops = special.stops or ends

    @property
    def named(self) -> Mapping[str, str]:
        """The special tokens' texts by their names for chat templates.

        Where files name some, the beginning is not guessed: a template writes nothing there.
        """
        marks = {"bos_token": self.start_of_text, "eos_token": self.end_of_text}
        texts = {name: self.special.get(t, "") for name, t in marks.items() if t is not None}
        if self.names:
            texts.pop("bos_token", None)
        return {**texts, **self.names}

    def mark(self, names: Sequence[str]) -> int | None:
        """The number of the first of these tokens that exists."""
        numbers = (self.library.token_to_id(name) for name in names)
        return next((int(number) for number in numbers if number is not None), None)

    def encode(self, text: str) -> list[int]:
        """Token numbers of a text, in which a special token that is spelled out stays text."""
        utf8(text)
        try:
            if len(text) < LONG:
                return [
                    int(token) for token in self.library.encode(text, add_special_tokens=False).ids
                ]
            # otherwise the library warns about a later fork
            os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
            (found,) = heeding(
                lambda: self.library.encode_batch_fast([text], add_special_tokens=False)
            )
            return [int(token) for token in found.ids]
        except BaseException as error:
            raise DataError(f"the tokenizer cannot read {text[:40]!r}: {_reason(error)}") from None

    @functools.cached_property
    def special(self) -> dict[int, str]:
        """The special tokens' texts by number."""
        added = self.library.get_added_tokens_decoder()
        return {int(n): str(token.content) for n, token in added.items() if token.special}

    def encode_marked(self, text: str) -> list[int]:
        """Token numbers of a text in which special tokens are spelled out."""
        self.library.encode_special_tokens = False
        try:
            return self.encode(text)
        finally:
            self.library.encode_special_tokens = True

    def decode_marked(self, tokens: Sequence[int]) -> str:
        """The text of some tokens, special tokens spelled out."""
        return self.decode(tokens, skip=False)

    def encode_array(self, text: str) -> NDArray[Any]:
        """The same as an array."""
        return np.asarray(self.encode(text), dtype=np.int64)

    def decode(self, tokens: Sequence[int], *, skip: bool = True) -> str:
        """The text of some tokens; special ones are left out unless `skip` is False."""
        try:
            if skip and self.silent:
                tokens = [token for token in tokens if token not in self.silent]
            return str(self.library.decode(list(tokens), skip_special_tokens=skip))
        except BaseException as error:
            raise DataError(
                f"the tokenizer cannot write tokens as text: {_reason(error)}"
            ) from None

    def unknown(self, symbols: Iterable[str]) -> list[str]:
        """The symbols that have no token of their own."""
        model = json.loads(self.content)["model"]
        unknown = model.get("unk_id")
        if isinstance(model.get("unk_token"), str):
            unknown = self.library.token_to_id(model["unk_token"])
        before = self.encode("a")  # a piece that does not begin a word may follow it

        def is_known(symbol: str) -> bool:
            spelled = (self.encode(symbol), self.encode("a" + symbol))
            return symbol == "a" or any(
                tokens and unknown not in tokens and tokens != before for tokens in spelled
            )

        return [s for s in symbols if unicodedata.category(s)[0] not in "CZM" and not is_known(s)]

    def to_json(self) -> bytes:
        return self.content


def open_library(content: bytes, special: SpecialTokens | None = None) -> LibraryTokenizer:
    """The tokenizer in the content of a tokenizer.json, tried on texts that any must read.

    Raises `ValueError`.
    """
    if len(content) > MOST_BYTES:
        raise ValueError(f"it has {len(content):,} bytes, and at most {MOST_BYTES:,} are read")
    with _silent():
        try:
            tokenizer = LibraryTokenizer(content, special)
        except BaseException as error:
            raise ValueError(_reason(error)) from None
        try:
            for text in TRIALS:
                tokenizer.decode(tokenizer.encode(text))
        except DataError as error:
            raise ValueError(
                f"it cannot read every text (has it an unknown token?): {error}"
            ) from None
    return tokenizer


def _reason(error: BaseException) -> str:
    """The library's error in a line; an error that is not the library's is raised again."""
    panicked = type(error).__module__ == "pyo3_runtime"  # its Rust code: not an `Exception`
    if isinstance(error, MemoryError) or not (panicked or isinstance(error, Exception)):
        raise error
    lines = str(error).splitlines()
    return lines[0][:200] if lines else type(error).__name__


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Inside, nothing reaches stderr: the library's Rust code writes a traceback there."""
    sys.stderr.flush()
    try:
        stderr = os.dup(2)
    except OSError:  # closed
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)


def utf8(text: str) -> bytes:
    """UTF-8 of a text; a lone surrogate (bytes that a terminal passed on undecoded) has none."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"the text is not Unicode at character {error.start} ({text[error.start]!r})"
        ) from None
