"""Sentences with tags: what each form of file holds, what is refused with its line, and how words
become tokens.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bigmodel_cli.data import DataSet, input_of, open_data, random_batch, target_of
from bigmodel_cli.data.text.conll import CoNLLOptions
from bigmodel_cli.data.text.tokenizer_files import load_tokenizer
from bigmodel_cli.errors import BigmodelError, SpecError
from bigmodel_cli.lazy import torch

COLUMNS = (
    "-DOCSTART- -X- -X- O\r\n\r\nEU NNP I-NP B-ORG\r\nrejects VBZ I-VP O\r\n\r\n\r\nPeter NNP I-NP"
    " B-PER\r\n. . O O"
)
TABS = (
    "# sent_id = 1\n1\tNew York\t_\tPROPN\n2-3\tdon't\t_\t_\n2\tdo\t_\tAUX\n3\tn't\t_\tPART\n\n"
    "# text = #\n1\t#\t_\tSYM\n2\t=\t_\tSYM\n"
)
LISTS = (
    '{"id": 1, "ner": {"words": ["New York", "is"], "tags": ["B-LOC", "O"]}}\n{"ner": {"words":'
    ' ["é"], "tags": ["O"]}}\n'
)


def opened(files: dict[str, str], said: list[str] | None = None, **options: Any) -> DataSet:
    for name, content in files.items():
        packed = name.endswith(".gz")
        Path(name).write_bytes(gzip.compress(content.encode()) if packed else content.encode())
    options = {
        "train": [next(iter(files))],
        "val_fraction": 0.0,
        "tokenizer": {"type": "bytes"},
        **options,
    }
    say = (lambda _: None) if said is None else said.append
    return open_data(CoNLLOptions.model_validate(options), base=Path(), say=say)


def tagged(data: DataSet, split: str = "train") -> list[list[tuple[str, str]]]:
    """Of each sentence (text from the piece with a tag to the next, tag)."""
    tokenizer, own = load_tokenizer(data.assets()), data.split(split)
    batch = own.batch(np.arange(len(own)), 0, 0, False)
    found = []
    for tokens, tags in zip(batch["tokens"].tolist(), batch["tags"].tolist(), strict=True):
        at = [place for place, tag in enumerate(tags) if tag >= 0]
        ends = [*at[1:], tokens.index(256, 1)]
        words = [tokenizer.decode(tokens[a:b]) for a, b in zip(at, ends, strict=True)]
        found.append(
            [(word, data.info.classes[tags[a]]) for word, a in zip(words, at, strict=True)]
        )
    return found


def test_columns_lists_and_conll_u_are_read() -> None:
    first = [[("EU", "B-ORG"), (" rejects", "O")], [("Peter", "B-PER"), (" .", "O")]]
    assert tagged(opened({"a.conll": COLUMNS})) == tagged(opened({"a.conll.gz": COLUMNS})) == first
    assert tagged(opened({"a.txt": COLUMNS}, tags=1))[0] == [("EU", "NNP"), (" rejects", "VBZ")]
    said: list[str] = []
    assert tagged(opened({"a.conllu": TABS}, said, words=1, tags=3)) == [
        [("New York", "PROPN"), (" do", "AUX"), (" n't", "PART")],
        [("#", "SYM"), (" =", "SYM")],
    ]
    assert said == [
        "left out: 2 comments",
        "left out: 1 CoNLL-U lines that are no word of their own",
    ]
    lists = opened({"a.jsonl": LISTS}, words="ner.words", tags="ner.tags")
    assert tagged(lists) == [[("New York", "B-LOC"), (" is", "O")], [("é", "O")]]
    assert (lists.info.classes, lists.info.class_counts, lists.info.tagged) == (
        ("B-LOC", "O"),
        (1, 2),
        True,
    )


def test_blanks_other_than_spaces_are_within_words_and_numbers_of_sentences_are_none() -> None:
    text = "# id 5a-9 domain=en\n10\u00a0000 _ _ B-X\n# _ _ O\n\n# id 7\nb _ _ O\n"
    said: list[str] = []
    assert tagged(opened({"a.conll": text}, said)) == [
        [("10\u00a0000", "B-X"), (" #", "O")],
        [("b", "O")],
    ]
    assert said == ["left out: 2 comments"]


@pytest.mark.parametrize(
    ("content", "options", "fault"),
    [
        ("a O\nb\n", {}, r"a.conll:2: 1 column, and the lines before have 2"),
        (
            "a\nb\n",
            {},
            r"a.conll:1: 1 column, and data.words is column 0; words need their tags",
        ),
        ("a O\n", {"tags": 2}, r"a.conll:1: 2 columns, and data.tags is column 2"),
        (
            "a O\n",
            {"tags": "pos"},
            r"data.tags: 'pos' is a key of .jsonl rows, and a.conll:1 has columns",
        ),
        ("a\t \tO\n", {"words": 1}, r"a.conll:1: column 1 \(data.words\) is empty"),
        ("a\tO\n\tB\n", {}, r"a.conll:2: column 0 \(data.words\) is empty"),
        ("a x O\n", {"words": 2}, "data.words and data.tags are both column 2 of a.conll:1"),
        ("a O\n\nb O\n", {}, "every word has the tag 'O'; is it the right column"),
        ("-DOCSTART- O\n\n", {}, "data.train: no sentence in a.conll"),
    ],
)
def test_malformed_sentences_are_refused_with_the_line(
    content: str, options: dict[str, Any], fault: str
) -> None:
    with pytest.raises(BigmodelError, match=fault):
        opened({"a.conll": content}, **options)


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"tokens": ["a", "b"], "tags": ["O"]}, "a.jsonl:1: 2 words and 1 tags"),
        (
            {"tokens": ["a"], "tags": [3]},
            "a.jsonl:1: 'tags' is not a list of names; .* tags by name",
        ),
        ({"tokens": ["a", " "], "tags": ["O", "O"]}, "a.jsonl:1: 'tokens' is not a list of names"),
        ({"words": ["a"], "tags": ["O"]}, "a.jsonl:1: no key 'tokens'; name it with data.words"),
    ],
)
def test_rows_of_json_are_checked(row: dict[str, Any], fault: str) -> None:
    with pytest.raises(BigmodelError, match=fault):
        opened({"a.jsonl": json.dumps(row)})


def test_long_sentences_are_cut_and_the_lost_words_counted() -> None:
    said: list[str] = []
    content = "abcd B-X\nefgh O\nijkl B-X\n\nabcdefghijklmn B-X\n"
    assert tagged(opened({"a.conll": content}, said, context=12)) == [
        [("abcd", "B-X"), (" efgh", "O")],
        [("abcdefghij", "B-X")],
    ]
    assert said == [
        "warning: 1 of 2 train sentences are cut to 12 tokens: 1 of their words are neither learnt"
        " nor judged; data.context says how many fit"
    ]
    last = opened({"a.conll": content}, context=12, piece="last")
    tags = last.split("train").batch(np.arange(2), 0, 0, False)["tags"]
    assert [[place for place, tag in enumerate(row) if tag >= 0] for row in tags.tolist()] == [
        [4, 9],
        [10],
    ]


def test_a_given_line_becomes_what_training_sees() -> None:
    data = opened({"a.conll": COLUMNS})
    options = CoNLLOptions.model_validate({"train": ["a.conll"], "tokenizer": {"type": "bytes"}})
    reader = input_of(data.info).reader(options, data.assets())
    contents = [reader.read(line, "it")[0] for line in ("\ufeff EU  rejects\r", "Peter .")]
    given, seen = reader.batch(contents), data.split("train").batch(np.arange(2), 0, 0, False)
    assert given["tokens"].tolist() == seen["tokens"].tolist()
    assert [[t >= 0 for t in row] for row in given["tags"].tolist()] == [
        [t >= 0 for t in row] for row in seen["tags"].tolist()
    ]
    assert contents[0][0] == ["EU", "rejects"]
    made = random_batch(data.info, ("tokens", "tags"), 3, torch.device("cpu"))
    assert target_of(data.info) is not None
    assert {n: (t.dtype, t.shape[0]) for n, t in made.items()} == {
        n: (t.dtype, 3) for n, t in seen.items()
    }


def test_tags_of_a_checkpoint_are_its_own_and_others_refused() -> None:
    data = opened({"a.conll": COLUMNS})
    assets = {**data.assets(), "facts.json": json.dumps(data.info.to_json()).encode()}
    Path("b.conll").write_text("Peter B-PER\n\n")
    Path("c.conll").write_text("Peter B-LOC\n\n")
    options = {"train": ["a.conll"], "tokenizer": {"type": "bytes"}}
    one = open_data(
        CoNLLOptions.model_validate({**options, "test": ["b.conll"]}),
        base=Path(), say=lambda _: None, assets=assets, only="test",
    )  # fmt: skip
    assert one.info.classes == ("B-ORG", "B-PER", "O")
    assert tagged(one, "test") == [[("Peter", "B-PER")]]
    with pytest.raises(SpecError, match="classes that the checkpoint does not know: 'B-LOC'"):
        open_data(
            CoNLLOptions.model_validate({**options, "test": ["c.conll"]}),
            base=Path(), say=lambda _: None, assets=assets, only="test",
        )  # fmt: skip
