"""Words of tokenized texts: every token in one word, by what tokenizers themselves write."""

from __future__ import annotations

import random

import pytest

from bigmodel_cli.attend.words import joined, spans_of, words_of
from bigmodel_cli.data.text.own_tokenizers import ByteTokenizer, CharacterTokenizer


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a man, walking.", ["a", "man", ",", "walking", "."]),
        ("T-shirts aren't (very) cheap!?", ["T-shirts", "aren't", "(", "very", ")", "cheap", "!?"]),
        ("  zwei\n\nHunde ", ["zwei", "Hunde"]),
        ("日本語で see 図1", ["日", "本", "語", "で", "see", "図", "1"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("naïve façade", ["naïve", "façade"]),
        ("...", ["..."]),
        ("", []),
    ],
)
def test_words_and_punctuation(text: str, words: list[str]) -> None:
    assert [text[first:stop] for first, stop in spans_of(text)] == words


@pytest.mark.parametrize(
    ("pieces", "found"),
    [
        (["a", " m", "an", ",", " b"], [("a", 0, 1), ("man", 1, 3), (",", 3, 4), ("b", 4, 5)]),
        ([" ", "one", " ", "two"], [("one", 0, 2), ("two", 2, 4)]),  # blanks go with what follows
        (["dog.", " cat"], [("dog.", 0, 1), ("cat", 1, 2)]),  # two words in one token
        (["", "", "語", "x"], [("語", 0, 3), ("x", 3, 4)]),  # bytes of one character
        (["end", " ", "\n"], [("end", 0, 3)]),
        ([" ", " "], [("  ", 0, 2)]),
        ([], []),
    ],
)
def test_tokens_of_words(pieces: list[str], found: list[tuple[str, int, int]]) -> None:
    words = joined(pieces)
    assert [(w.text, w.first, w.stop) for w in words] == found
    assert [(w.first, w.stop) for w in joined(pieces, 7)] == [(f + 7, s + 7) for _, f, s in found]


def test_every_token_belongs_to_one_word() -> None:
    draw = random.Random(3)
    letters = "ab .,-'é漢ก\t😀\u0301"
    for _ in range(300):
        text = "".join(draw.choices(letters, k=draw.randint(1, 12)))
        tokens = ByteTokenizer().encode(text)
        for end in ([], [256]):
            words = words_of(ByteTokenizer(), tokens + end)
            covered = [place for word in words for place in range(word.first, word.stop)]
            assert covered == list(range(len(tokens) + len(end))), text
            plain = "".join(w.text for w in words if not w.special)
            assert "".join(plain.split()) == "".join(text.split())
            assert [w.text for w in words if w.special] == ["<end>"] * len(end)


def test_special_tokens_are_words_of_their_own() -> None:
    tokenizer = CharacterTokenizer("ab ", end=True)
    end = tokenizer.end_of_text
    assert end is not None
    words = words_of(tokenizer, [*tokenizer.encode("ab"), end, *tokenizer.encode("a b")])
    assert [(w.text, w.first, w.stop, w.special) for w in words] == [
        ("ab", 0, 2, False), ("<end>", 2, 3, True), ("a", 3, 4, False), ("b", 4, 6, False),
    ]  # fmt: skip
