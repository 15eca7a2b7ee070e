"""Labelled text: every form gives the same rows, rows become padded tokens, and every fault names
its line.
"""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Result

from bigmodel_cli.data import load_tokenizer, open_data
from bigmodel_cli.data.inputs import Rows
from bigmodel_cli.data.text.ragged import fit_lengths
from bigmodel_cli.data.text.table import TableOptions
from bigmodel_cli.data.text.table_columns import Columns
from bigmodel_cli.data.text.table_files import read_rows
from bigmodel_cli.data.text.table_survey import sort_classes
from bigmodel_cli.errors import DataError, SpecError
from bigmodel_cli.packages import MissingPackage

Cli = Callable[..., Result]
END = 256
TEXTS = ["good", 'a "quoted, text', "tab", "äb"]
LABELS = ["pos", "neg", "pos", "neg"]


def write(name: str, content: str | bytes) -> str:
    """A file with this content; .gz where its name says so."""
    data = content.encode() if isinstance(content, str) else content
    Path(name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return name


def options(**changes: Any) -> TableOptions:
    values = {
        "train": ["a.tsv"],
        "text": [0],
        "label": 1,
        "context": 8,
        "tokenizer": {"type": "bytes"},
    }
    values |= {"val_fraction": 0, **changes}
    return TableOptions.model_validate(values)


def opened(said: list[str] | None = None, **changes: Any) -> Any:
    return open_data(options(**changes), base=Path(), say=(said if said is not None else []).append)


def test_every_form_gives_the_same_rows() -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    rows = list(zip(TEXTS, LABELS, strict=True))
    # quotes are characters; no last newline
    write("a.tsv", "\ufeff" + "\n".join(f"{t}\t{label}" for t, label in rows))
    write(
        "named.tsv.gz",
        "sentence\tid\tlabel\r\n" + "".join(f"{t}\t7\t{label}\r\n" for t, label in rows),
    )
    quoted = "".join('"' + t.replace('"', '""') + f'",{label}\n' for t, label in rows)
    write("a.csv", "sentence,label\n" + quoted)
    write("a.jsonl.gz", "".join(json.dumps({"label": y, "sentence": t}) + "\n\n" for t, y in rows))
    named = {"info": {"features": {"label": {"names": ["neg", "pos"]}}}}
    table = pa.table({"label": [["neg", "pos"].index(y) for y in LABELS], "sentence": TEXTS})
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(named)}), "a.parquet")
    by_number, by_name = Columns((0,), 1), Columns(("sentence",), "label")
    for name, columns in (
        ("a.tsv", by_number),
        ("named.tsv.gz", by_name),
        ("named.tsv.gz", Columns((0,), 2, header=True)),
        ("a.csv", by_name),
        ("a.jsonl.gz", by_name),
        ("a.parquet", by_name),
        ("a.parquet", Columns((1,), 0)),
    ):
        found = list(read_rows(Path(name), columns))
        assert [(row.texts[0], row.label) for row in found] == rows, name
    assert [row.place for row in read_rows(Path("a.jsonl.gz"), by_name)][-1] == "a.jsonl.gz:7"
    write("lines.txt", "one\n\n two\tthree \n")
    assert [row.texts for row in read_rows(Path("lines.txt"), Columns((0,), None))] == [
        ("one",),
        ("two\tthree",),
    ]
    write("more.csv", 'text,label\n"two\nlines",1\nx,2\n')
    assert [row.place for row in read_rows(Path("more.csv"), Columns(("text",), "label"))] == [
        "more.csv:3",
        "more.csv:4",
    ]


def test_rows_as_tokens() -> None:
    write("a.tsv", "ab\t10\n\t9\nabcdefgh\t10\nc\t9\n")
    write("t.tsv", "x\t9\n")
    said: list[str] = []
    data = opened(said, test=["t.tsv"])
    assert data.splits == ("train", "test")
    assert data.info.classes == ("9", "10")  # as numbers
    assert data.info.context == 8
    assert "1 of 4 train rows are cut to 8 tokens" in said
    assert "warning: the test split has no row of class 10" in said
    batch = data.split("train").batch(np.arange(4), 0, 0, True)
    assert batch["tokens"].tolist() == [
        [END, 97, 98, END, -1, -1, -1, -1],
        [END, END, -1, -1, -1, -1, -1, -1],
        [END, 97, 98, 99, 100, 101, 102, END],  # cut; the end stays
        [END, 99, END, -1, -1, -1, -1, -1],
    ]
    assert batch["label"].tolist() == [1, 0, 1, 0]
    assert data.split("train").batch(np.array([3]), 0, 0, False)["tokens"].tolist() == [
        [END, 99, END]
    ]
    tokenizer = load_tokenizer(data.assets())
    reader = Rows(tokenizer, 8, 1)
    items = [reader.read(text, "line 1") for text in ("\ufeff ab\r", "abcdefgh")]
    assert [truncated for _, truncated in items] == [False, True]
    again = reader.batch([content for content, _ in items])
    assert torch.equal(again["tokens"], batch["tokens"][[0, 2]])


def test_rows_without_labels_have_a_last_column_that_the_model_does_not_see() -> None:
    write("a.tsv", "a b\t10\nccc d\t9\n")
    data = opened(label=None, words=True)
    assert data.info.classes == ()
    batch = data.split("train").batch(np.arange(2), 0, 0, False)
    assert batch["tokens"].tolist() == [
        [END, 97, 32, 98, END, -1, -1, -1],
        [END, 99, 99, 99, 32, 100, END, -1],
    ]
    assert batch["words"].tolist() == [[-1, 0, 1, 2, -1, -1, -1, -1], [-1, 0, 0, 0, 1, 2, -1, -1]]


def test_pairs_of_texts() -> None:
    write("a.csv", "first,second,label\nab,c,x\nabcdef,ghijkl,y\n")
    data = opened(train=["a.csv"], text=["first", "second"], label="label")
    batch = data.split("train").batch(np.arange(2), 0, 0, True)
    assert batch["tokens"].tolist() == [
        [END, 97, 98, END, 99, END, -1, -1],
        [END, 97, 98, 99, END, 103, 104, END],
    ]
    assert batch["types"].tolist() == [[0, 0, 0, 0, 1, 1, -1, -1], [0, 0, 0, 0, 0, 1, 1, 1]]
    reader = Rows(load_tokenizer(data.assets()), 8, 2)
    items = [reader.read(text, "line 1") for text in ("ab\t c", "abcdef\tghijkl ")]
    assert [truncated for _, truncated in items] == [False, True]
    again = reader.batch([content for content, _ in items])
    assert torch.equal(again["tokens"], batch["tokens"])
    assert torch.equal(again["types"], batch["types"])
    for text, message in (
        ("a", "pairs of texts"),
        ("a\tb\tc", "pairs of texts"),
        (" \t", "line 7 is empty"),
    ):
        with pytest.raises(DataError, match=message):
            reader.read(text, "line 7")


def test_the_longer_side_of_a_pair_is_cut_first() -> None:
    for room in range(1, 9):
        first, second = (np.array(v).ravel() for v in np.meshgrid(np.arange(12), np.arange(12)))
        a, b = fit_lengths([first, second], room)
        for x, y, i, j in zip(first.tolist(), second.tolist(), a.tolist(), b.tolist(), strict=True):
            while x + y > room:  # one token after the other, as BERT's reference does
                x, y = (x - 1, y) if x > y else (x, y - 1)
            assert (i, j) == (x, y)


def test_a_tokenizer_with_marks_of_its_own_gives_the_rows_of_bert() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocab = {
        name: i for i, name in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "film", "##s"])
    }
    library = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    library.add_special_tokens(["[CLS]", "[SEP]"])
    write("bert.json", library.to_str())
    write("a.tsv", "the films\t1\nthe\t0\n")
    data = opened(tokenizer={"type": "file", "path": "bert.json"})
    assert data.split("train").batch(np.array([0]), 0, 0, False)["tokens"].tolist() == [
        [2, 4, 5, 6, 3]
    ]


def test_tokens_are_left_out_anew_in_each_epoch_and_always_the_same() -> None:
    write("a.tsv", "".join(f"{'abcdefghijklmnopqrstuvwxyz' * 2}\t{i % 2}\n" for i in range(200)))
    split = opened(context=64, token_dropout=0.25).split("train")
    rows = np.arange(200)
    whole = split.batch(rows, 0, 0, False)["tokens"]
    assert whole.shape == (200, 54)
    epochs = [split.batch(rows, epoch, 0, True)["tokens"] for epoch in (0, 1, 0)]
    assert torch.equal(epochs[0], epochs[2])
    assert not torch.equal(epochs[0], epochs[1])
    kept = (epochs[0] >= 0).sum(1) - 2
    assert abs(float(kept.double().mean()) / 52 - 0.75) < 0.01
    for row in epochs[0].tolist():
        real = [token for token in row if token >= 0]
        assert real[0] == real[-1] == END
        letters = iter(whole[0].tolist())
        assert all(token in letters for token in real)  # in their order
    alone = split.batch(rows[7:8], 0, 0, True)["tokens"][0]
    assert torch.equal(alone, epochs[0][7][: len(alone)])  # whatever stands beside it


def test_a_part_of_the_rows_is_kept_for_validation() -> None:
    write("a.tsv", "".join(f"text {i:02d}\t{i % 2}\n" for i in range(40)))
    data = opened(val_fraction=0.25, context=16)
    train, val = (
        data.split(n).batch(np.arange(len(data.split(n))), 0, 0, False) for n in ("train", "val")
    )
    texts = [
        [bytes(t for t in row if 0 <= t < 256).decode() for row in b["tokens"].tolist()]
        for b in (train, val)
    ]
    assert len(texts[1]) == 10
    assert sorted(texts[0] + texts[1]) == [f"text {i:02d}" for i in range(40)]
    assert [int(t[-1]) % 2 for t in texts[1]] == val["label"].tolist()
    fractions = {
        opened(val_fraction=f, tokenizer={"type": "bpe", "vocab_size": 300}).fingerprint
        for f in (0, 0.25)
    }
    assert len(fractions) == 2


def test_classes_sort_as_numbers_where_all_are() -> None:
    assert sort_classes(["10", "9", "-1"]) == ("-1", "9", "10")
    assert sort_classes(["10", "9", "b"]) == ("10", "9", "b")


def test_a_label_may_be_a_number_or_a_truth_value() -> None:
    write("a.jsonl", "".join(json.dumps({"t": "x", "y": y}) + "\n" for y in (1, 12, 3)))
    assert opened(train=["a.jsonl"], text=["t"], label="y").info.classes == ("1", "3", "12")
    write("b.jsonl", "".join(json.dumps({"t": "x", "y": y}) + "\n" for y in (True, False)))
    assert opened(train=["b.jsonl"], text=["t"], label="y").info.classes == ("false", "true")


GOOD = "a film\t1\nno film\t0\n"
FAULTS: list[tuple[str, str | bytes, dict[str, Any], str]] = [
    ("bad.tsv", b"good\t1\nb\xe4d\t0\n", {}, "bad.tsv: not UTF-8 at byte offset 8 (byte 0xe4)"),
    ("bad.tsv", "", {}, "bad.tsv: no row in it"),
    ("bad.tsv", "\n \n", {}, "bad.tsv: no row in it"),
    ("bad.tsv", "good\t1\nbad\n", {}, "bad.tsv:2: 1 column, and the first row has 2"),
    ("bad.tsv", "good\t1\nb\tad\t0\n", {}, "bad.tsv:2: 3 columns, and the first row has 2"),
    ("bad.tsv", "good\nbad\n", {}, "bad.tsv:1: 1 column, and data.label is number 1 (from 0)"),
    ("bad.tsv", "good\t1\nbad\t\n", {}, "bad.tsv:2: data.label: empty"),
    ("bad.tsv", "good\t1\nbad\t1\n", {}, "every training row has the label '1'"),
    (
        "bad.tsv",
        "sentence\tlabel\n",
        {"text": ["sentence"], "label": "label"},
        "bad.tsv: no row in it",
    ),
    (
        "bad.csv",
        'text,label\n"open,1\n',
        {"text": ["text"], "label": "label"},
        "bad.csv:2: not CSV",
    ),
    (
        "bad.csv",
        "sentence,label\na,1\n",
        {"text": ["sentense"], "label": "label"},
        (
            "bad.csv:1: data.text: no column 'sentense'; it has sentence, label; did you mean"
            " sentence?"
        ),
    ),
    (
        "bad.jsonl",
        '{"t": "a", "y": 1}\n{"t": \n',
        {"text": ["t"], "label": "y"},
        "bad.jsonl:2: not JSON",
    ),
    ("bad.jsonl", "[1]\n", {"text": ["t"], "label": "y"}, "bad.jsonl:1: not an object"),
    (
        "bad.jsonl",
        '{"text": "a", "y": 1}\n{"texts": "b", "y": 1}\n',
        {"text": ["text"], "label": "y"},
        "bad.jsonl:2: data.text: no key 'text'; it has texts, y; did you mean texts?",
    ),
    (
        "bad.jsonl",
        '{"t": "a", "y": null}\n',
        {"text": ["t"], "label": "y"},
        "bad.jsonl:1: data.label: null; give it",
    ),
    (
        "bad.jsonl",
        '{"t": "a", "y": 0.5}\n',
        {"text": ["t"], "label": "y"},
        "bad.jsonl:1: data.label: 0.5 is neither",
    ),
    (
        "bad.jsonl",
        '{"t": 3, "y": 1}\n',
        {"text": ["t"], "label": "y"},
        "bad.jsonl:1: data.text: 3 is not text",
    ),
    (
        "bad.jsonl",
        '{"t": "\\ud800", "y": 1}\n',
        {"text": ["t"], "label": "y"},
        "bad.jsonl:1: data.text: not Unicode at",
    ),
    ("bad.jsonl.gz", b"", {"text": ["t"], "label": "y"}, "bad.jsonl.gz: no row in it"),
    (
        "bad.parquet",
        b"PAR1",
        {"text": ["t"], "label": "y"},
        "bad.parquet: cannot be read as Parquet",
    ),
]


@pytest.mark.parametrize(("name", "content", "changes", "message"), FAULTS)
def test_a_fault_names_file_and_line(
    name: str, content: str | bytes, changes: dict[str, Any], message: str
) -> None:
    write(name, content)
    with pytest.raises(DataError) as caught:
        opened(train=[name], **changes)
    assert message in str(caught.value)


def test_labels_of_parquet_outside_their_names() -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    named = {"info": {"features": {"y": {"names": ["neg", "pos"]}}}}
    table = pa.table({"t": ["a", "b"], "y": [1, -1]}).replace_schema_metadata(
        {"huggingface": json.dumps(named)}
    )
    pq.write_table(table, "bad.parquet")
    with pytest.raises(
        DataError, match=r"bad.parquet: row 1: label -1, and the classes are 0 to 1"
    ):
        opened(train=["bad.parquet"], text=["t"], label="y")
    with pytest.raises(
        DataError, match=r"data.text: no column 'tt'; it has t, y; did you mean t\?"
    ):
        opened(train=["bad.parquet"], text=["tt"], label="y")


def test_without_pyarrow_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    write("a.parquet", b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(
        MissingPackage,
        match=r"a.parquet: reading it needs pyarrow, which is not installed: pip install",
    ):
        opened(train=["a.parquet"], text=["t"], label="y")


def test_a_character_that_the_checkpoint_does_not_know_is_placed() -> None:
    write("a.tsv", GOOD)
    characters = {"type": "characters"}
    kept = opened(tokenizer=characters).assets()
    write("b.tsv", "a film\t1\nno, film\t0\n")
    with pytest.raises(
        DataError, match=r"b.tsv:2: ',' \(U\+002C\) at character 2 is not in the vocabulary"
    ):
        open_data(
            options(train=["b.tsv"], tokenizer=characters), base=Path(), say=[].append, assets=kept
        )


def test_a_tokenizer_without_an_end_is_refused() -> None:
    from tokenizers import Tokenizer, models

    write("plain.json", Tokenizer(models.WordLevel({"a": 0, "film": 1}, unk_token="a")).to_str())
    write("a.tsv", GOOD)
    with pytest.raises(SpecError, match="no mark for the end of a text"):
        opened(tokenizer={"type": "file", "path": "plain.json"})


SPEC = """\
model:
  type: encoder
  dim: 16
  pool: mean
  position: {type: learned}
  blocks: [{mixer: {type: attention, num_heads: 2}, ffn: {type: relu}}]
data: {type: table, train: [a.tsv], val: [b.tsv], text: [0], label: 1, context: 16,
  tokenizer: {type: bytes}}
task: {type: classification}
train: {steps: 2, batch_size: 2, precision: fp32, memory_format: contiguous, compile: "off"}
"""


ALL = ["data.val=[]", "data.val_fraction=0"]


@pytest.mark.parametrize(
    ("changes", "status", "message"),
    [
        (
            [],
            3,
            "b.tsv:2: data.label: 'neg' is not a label of the training split; did you mean negs?",
        ),
        (["data.val=[no.tsv]"], 3, "data.val: no.tsv: no such file"),
        (["data.val_fraction=0.5"], 2, "give either val or val_fraction, not both"),
        (["data.header=false", "data.label=y"], 2, "header: false, and a column is given by name"),
        (
            ["data.val=[]", "data.val_fraction=0.9"],
            3,
            "data.val_fraction: 0.9 leaves nothing of 2 rows",
        ),
        (["data.val=[]", "data.label=null"], 2, "task.type: classification needs data with labels"),
        (
            [*ALL, "train.batch_size=4"],
            3,
            "the train split has 2 samples, fewer than train.batch_size 4",
        ),
        ([*ALL, "task={type: masked_lm}"], 2, "leave them out (data.label: null)"),
        (
            ["data.val=[]", "data.label=null", "task={type: masked_lm, whole_words: true}"],
            2,
            "set data.words: true",
        ),
        (
            ["data.text=[0, 0]", *ALL, "model.token_types=1"],
            2,
            "model.token_types: the data has pairs",
        ),
    ],
)
def test_table_options_that_do_not_fit_are_refused(
    changes: list[str], status: int, message: str, cli: Cli
) -> None:
    write("a.tsv", "good\tpos\nbad\tnegs\n")
    write("b.tsv", "good\tpos\nbad\tneg\n")
    write("spec.yaml", SPEC)
    result = cli(
        "pretrain",
        "spec.yaml",
        "--out",
        "run",
        *(word for change in changes for word in ("--set", change)),
    )
    assert result.status == status, result.err
    assert message in result.err
    assert "Traceback" not in result.err
    assert not list(Path().glob("run/checkpoints/step-*"))


def test_a_tokenizer_is_of_the_texts_alone_whatever_was_read_before() -> None:
    """The same columns as a text and its label, and as a pair of texts: the cache holds a tokenizer
    of either.
    """
    write(
        "a.tsv",
        "".join(
            f"some words {i}\t{'extraordinary' if i % 2 else 'commonplace'}\n" for i in range(40)
        ),
    )
    bpe = {"type": "bpe", "vocab_size": 280}
    labelled = opened(tokenizer=bpe).assets()
    both = opened(tokenizer=bpe, text=[0, 1], label=None).assets()
    vocabularies = [
        set(json.loads(a["tokenizer.json"])["model"]["vocab"]) for a in (labelled, both)
    ]
    assert not any("xtra" in token or "ommon" in token for token in vocabularies[0])
    assert any("xtra" in token or "ommon" in token for token in vocabularies[1])
