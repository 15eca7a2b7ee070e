"""Transcripts of recordings as tokens, which an encoder-decoder writes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.data.base import Assets, Say
from bigmodel_cli.data.files import find_files
from bigmodel_cli.data.hashes import content_hashes
from bigmodel_cli.data.order import Ints
from bigmodel_cli.data.text.corpus import ENDINGS, ENDS, Survey, Texts
from bigmodel_cli.data.text.split import encode
from bigmodel_cli.data.text.tokenizer import Tokenizer
from bigmodel_cli.data.text.tokenizer_fit import Corpora, fit_tokenizer
from bigmodel_cli.errors import DataError, SpecError

LANGUAGE, HEARD = "{language}", -1
"""What stands in a prompt, and among its tokens, for the language that the model hears itself."""
TRIED = 50
"""Neighbours of which strings of recordings are tried."""


@dataclass(frozen=True)
class Spoken:
    """The texts of all recordings, as they were read and as tokens.

    A target is `start`, the tokens of the recordings one after the other, and `end`. `tokens` are
    those of a text that comes first, `later` those with a blank before it, where strings of
    recordings are made. The first `given` tokens are not learnt.
    """

    texts: Sequence[str]
    tokens: Sequence[Ints]
    later: Sequence[Ints]
    start: tuple[int, ...]
    end: int

    @property
    def given(self) -> int:
        """The tokens that are not learnt: the start, and a prompt after it."""
        return len(self.start)

    def row(self, own: Ints) -> Ints:
        """The target of these recordings."""
        first, *others = own.tolist()
        parts = [self.start, self.tokens[first], *(self.later[i] for i in others), (self.end,)]
        return np.concatenate([np.asarray(part, np.int64) for part in parts])

    def text(self, own: Ints) -> str:
        """Their transcript."""
        return " ".join(self.texts[i] for i in own.tolist())

    def length(self, rows: Ints, most: int) -> int:
        """The tokens of the longest target of `most` of these recordings, without the start."""
        longest = max((len(self.tokens[i]) for i in rows), default=0)
        others = max((len(self.later[i]) for i in rows), default=0) if most > 1 else 0
        return self.given - 1 + longest + (most - 1) * others + 1


def read_spoken(
    options: Any,
    texts: list[str],
    places: list[str],
    opened: dict[str, Ints],
    base: Path,
    known: DatasetInfo | None,
    say: Say,
    assets: Assets | None,
) -> tuple[DatasetInfo, Spoken, Tokenizer]:
    """The facts, the transcripts as tokens, and their tokenizer.

    It is fitted on those of the training recordings. Raises `DataError` for a text that is longer
    than `data.context`, and `SpecError` for a prompt that is not made of special tokens.
    """
    texts = [" ".join(text.split()) for text in texts]
    train = opened.get("train", np.zeros(0, np.int64)).tolist()
    corpus, found = _corpus(options, [texts[i] for i in train], texts, base)
    tokenizer = fit_tokenizer(
        options.tokenizer, Corpora(corpus, {"train": found}), say, assets, ends="a transcript"
    )
    used = {int(i) for rows in opened.values() for i in rows}
    tokens = _encoded(tokenizer, texts, used, places, "")
    later: list[Ints] = []
    if options.join is not None:
        later = _encoded(tokenizer, texts, used, places, " ")
        _check_joined(tokenizer, texts, tokens, later)
    start = (int(tokenizer.target_start or 0), *prompt_tokens(tokenizer, options.prompt))
    if HEARD in start:
        raise SpecError(
            f"data.prompt: {LANGUAGE} is found by the model when it writes; here the texts are"
            " given, so name theirs: --set 'data.prompt=<|en|>...'"
        )
    spoken = Spoken(texts, tokens, later, start, int(tokenizer.end_of_text or 0))
    room = options.context
    if known is not None and known.text_context is not None:
        room = min(room, known.text_context)
    _check_lengths(spoken, options, room, sorted(used), places)
    info = DatasetInfo(vocab_size=tokenizer.vocab_size, text_context=options.context)
    return known or info, spoken, tokenizer


def prompt_tokens(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """The tokens of a prompt, `HEARD` where the model is to find the language.

    Raises `SpecError` where it is not made of special tokens alone.
    """
    found: list[int] = []
    for part in re.split(f"({re.escape(LANGUAGE)})", prompt):
        if part == LANGUAGE:
            found.append(HEARD)
        elif part:
            found += _special(tokenizer, part)
    if HEARD in found and not tokenizer.languages:
        raise SpecError(f"data.prompt: {LANGUAGE}: the checkpoint does not say its languages")
    return found


def _special(tokenizer: Tokenizer, text: str) -> list[int]:
    tokens = tokenizer.encode_marked(text)
    odd = [token for token in tokens if token not in tokenizer.special]
    if odd:
        names = ", ".join([*tokenizer.special.values()][:8])
        raise SpecError(
            f"data.prompt: {tokenizer.decode_marked(odd)[:40]!r} is not a special token of the"
            f" tokenizer; it has {names or 'none'}"
        )
    return tokens


def _encoded(
    tokenizer: Tokenizer, texts: list[str], used: set[int], places: list[str], before: str
) -> list[Ints]:
    """The tokens of each text that belongs to a split that is opened; [] of others."""
    return [
        np.asarray(encode(tokenizer, before + text, place) if i in used else [], np.int64)
        for i, (text, place) in enumerate(zip(texts, places, strict=True))
    ]


def _corpus(
    options: Any, training: list[str], every: list[str], base: Path
) -> tuple[Texts, Survey]:
    """What the tokenizer is fitted on; the characters are those of all splits."""
    named = options.transcripts
    files = find_files(named, base, "data.transcripts", ENDINGS) if named else []
    digest = hashlib.sha256("\n".join(training).encode("utf-8", "surrogatepass")).hexdigest()
    symbols = "".join(sorted({" ", *(c for text in every for c in text)}))
    found = Survey(
        digest, sum(map(len, training)), ENDS, symbols, hashes=list(content_hashes(files))
    )
    return Texts(files=tuple(files), source=lambda: iter(training)), found


def _check_joined(
    tokenizer: Tokenizer, texts: list[str], tokens: list[Ints], later: list[Ints]
) -> None:
    """Raise `SpecError` where the tokens of two texts are not those of their string."""
    for i in range(min(TRIED, len(texts) - 1)):
        if not len(tokens[i]) or not len(tokens[i + 1]):
            continue
        both = tokenizer.encode(f"{texts[i]} {texts[i + 1]}")
        if both != [*tokens[i].tolist(), *later[i + 1].tolist()]:
            raise SpecError(
                "data.join: this tokenizer reads a string of transcripts in other tokens than its"
                " parts; take tokenizer: bytes, or {type: bpe, vocab_size: N}"
            )


def _check_lengths(
    spoken: Spoken, options: Any, room: int, used: list[int], places: list[str]
) -> None:
    """Raise `DataError` naming the longest text where a target may have more tokens than `room`."""
    most = 1 if options.join is None else options.join.most
    needed = spoken.length(np.array(used, np.int64), most)
    if not used or needed <= room:
        return
    longest = max(used, key=lambda i: len(spoken.tokens[i]))
    raise DataError(
        f"{places[longest]}: its transcript has {len(spoken.tokens[longest]):,} tokens, so that"
        f" targets have up to {needed:,} with prompt and end, and data.context is {room:,}; make"
        " that larger, or leave the recording out"
    )
