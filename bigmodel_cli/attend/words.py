"""Words of a tokenized text: the tokens of each, by what the tokenizer itself makes of them."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bigmodel_cli.data import Tokenizer
from bigmodel_cli.generation.pieces import Pieces

ALONE = (
    *((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF)),  # Thai, Lao, Burmese, Khmer
    *((0x3040, 0x30FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF)),  # kana, ideographs
    *((0xF900, 0xFAFF), (0x20000, 0x3FFFF)),
)
"""Scripts without spaces between words: each character is taken for one."""


@dataclass(frozen=True)
class Word:
    """Tokens `first` to `stop` - 1 of a text, and what they say; `special` ones are no text."""

    text: str
    first: int
    stop: int
    special: bool = False


def pieces_of(tokenizer: Tokenizer, tokens: Sequence[int]) -> list[str]:
    """What each token adds to the text; "" before the last byte of a character has come."""
    pieces = Pieces(tokenizer, [])
    return ["" if token in tokenizer.special else pieces.add(token) for token in tokens]


def words_of(tokenizer: Tokenizer, tokens: Sequence[int]) -> list[Word]:
    """The words of a text, in order; every token belongs to one.

    Words end at blanks, punctuation stands apart from them, and a character of a script without
    blanks stands alone. A token belongs to the word in which its first visible character lies, and
    special tokens are words of their own.
    """
    found: list[Word] = []
    for first, stop, special in _runs(tokenizer, tokens):
        if special is not None:
            found.append(Word(special, first, stop, special=True))
        else:
            found += joined(pieces_of(tokenizer, tokens[first:stop]), first)
    return found


def joined(pieces: Sequence[str], first: int = 0) -> list[Word]:
    """The words of a text in pieces, the first of which is token number `first`."""
    text = "".join(pieces)
    spans = list(spans_of(text))
    if not spans:  # blanks alone
        return [Word(text, first, first + len(pieces))] if pieces else []
    starts: list[int | None] = [None] * len(spans)  # the first token of each word
    place, number = 0, 0
    waiting = 0  # the first token that belongs to the next word
    for index, piece in enumerate(pieces):
        begin = place + len(piece) - len(piece.lstrip())
        place += len(piece)
        if begin == place:
            continue  # blanks, or a part of a character: with what follows
        while number + 1 < len(spans) and spans[number + 1][0] <= begin:
            number += 1
        if starts[number] is None:
            starts[number] = waiting
        waiting = index + 1
    known = [(n, start) for n, start in enumerate(starts) if start is not None]
    words = []
    for place, (number, start) in enumerate(known):
        after, stop = known[place + 1] if place + 1 < len(known) else (len(spans), len(pieces))
        said = text[spans[number][0] : spans[after - 1][1]]
        words.append(Word(said, first + start, first + stop))
    return words


def spans_of(text: str) -> Iterator[tuple[int, int]]:
    """(first, stop) characters of each word, and of each run of punctuation beside one."""
    place = 0
    while place < len(text):
        if text[place].isspace():
            place += 1
            continue
        stop = place
        while stop < len(text) and not text[stop].isspace():
            stop += 1
        yield from _parts(text, place, stop)
        place = stop


def _parts(text: str, first: int, stop: int) -> Iterator[tuple[int, int]]:
    """A run without blanks: its word, and the punctuation before and after it."""
    begin, end = first, stop
    while begin < end and _marks(text[begin]):
        begin += 1
    while end > begin and _marks(text[end - 1]):
        end -= 1
    if first < begin:
        yield first, begin
    place = begin
    for index in range(begin, end):
        if _alone(text[index]):
            if place < index:
                yield place, index
            yield index, index + 1
            place = index + 1
    if place < end:
        yield place, end
    if end < stop:
        yield end, stop


def _marks(character: str) -> bool:
    return unicodedata.category(character)[0] in "PS"


def _alone(character: str) -> bool:
    code = ord(character)
    return code >= ALONE[0][0] and any(low <= code <= high for low, high in ALONE)


def _runs(tokenizer: Tokenizer, tokens: Sequence[int]) -> Iterator[tuple[int, int, str | None]]:
    """(first, stop, None) of tokens of text, (place, place + 1, its name) of a special one."""
    special, first = tokenizer.special, 0
    for place, token in enumerate(tokens):
        if token not in special:
            continue
        if first < place:
            yield first, place, None
        name = "<end>" if token == tokenizer.end_of_text else special[token]
        yield place, place + 1, name
        first = place + 1
    if first < len(tokens):
        yield first, len(tokens), None
