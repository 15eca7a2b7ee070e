"""Dry runs and `bench` of data that is not there: what the options say of it is what the data
itself says where it is there.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Result
from PIL import Image
from pydantic import TypeAdapter

from bigmodel_cli.data import DataOptions, open_data, open_or_expect
from bigmodel_cli.errors import DataError, MissingData

Cli = Callable[..., Result]
OPTIONS: TypeAdapter[Any] = TypeAdapter(DataOptions)
BYTES = {"type": "bytes"}
SOURCES: dict[str, dict[str, Any]] = {
    "text": {
        "type": "text",
        "files": ["there/a.txt", "there/b.txt"],
        "context": 8,
        "tokenizer": BYTES,
        "isolate": True,
    },
    "pair of texts with a label": {
        "type": "table",
        "train": ["there/t.tsv"],
        "text": [1, 2],
        "label": 0,
        "header": False,
        "context": 9,
        "tokenizer": BYTES,
        "words": True,
        "classes": 2,
    },
    "texts with numbers": {
        "type": "table",
        "train": ["there/n.csv"],
        "text": ["text"],
        "targets": ["two", "one"],
        "context": 7,
        "tokenizer": BYTES,
    },
    "texts with sets of labels": {
        "type": "table",
        "train": ["there/n.csv"],
        "text": ["text"],
        "label": "set",
        "label_separator": "|",
        "classes": 3,
        "context": 7,
        "tokenizer": BYTES,
    },
    "texts without labels": {
        "type": "table",
        "train": ["there/t.tsv"],
        "text": [1],
        "header": False,
        "context": 7,
        "tokenizer": BYTES,
    },
    "pairs": {
        "type": "pair_table",
        "train": ["there/t.tsv"],
        "source": 1,
        "target": 2,
        "header": False,
        "context": 24,
        "tokenizer": BYTES,
        "source_tokenizer": {"type": "bpe", "vocab_size": 258},
    },
    "folder": {
        "type": "image_folder",
        "root": "there/images",
        "size": 6,
        "channels": 1,
        "classes": 3,
    },
    "folder without labels": {
        "type": "image_folder",
        "root": "there/images",
        "size": 5,
        "labels": False,
    },
}


@pytest.fixture
def files(tmp_path: Path) -> None:
    """Data of every kind, a few items each."""
    there = tmp_path / "there"
    there.mkdir()
    for name in "ab":
        (there / f"{name}.txt").write_text("a line of text\n" * 20)
    (there / "t.tsv").write_text(
        "".join(f"{'xy'[i % 2]}\twords {i} abab\tother {i}\n" for i in range(20))
    )
    rows = "".join(f"words {i},{i},{i * i},{'ab'[i % 2]}|c\n" for i in range(20))
    (there / "n.csv").write_text(f"text,one,two,set\n{rows}")
    for label in ("one", "two", "three"):
        (there / "images" / label).mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (9, 7), (number * 50, len(label) * 40, 90)).save(
                there / "images" / label / f"{number}.png"
            )


def opened(options: Any) -> Any:
    return open_data(options, base=Path(), say=lambda text: None)


@pytest.mark.parametrize("name", SOURCES)
def test_the_expected_info_equals_that_of_the_data(name: str, files: None) -> None:
    options = OPTIONS.validate_python(SOURCES[name])
    data, expected = opened(options), options.expected(None)
    for fact in (
        "image_shape",
        "vocab_size",
        "source_vocab_size",
        "context",
        "targets",
        "label_sets",
    ):
        assert getattr(expected.info, fact) == getattr(data.info, fact), fact
    assert len(expected.info.classes) == len(data.info.classes)
    assert expected.names == data.names()
    assert len(expected.longest) == len(data.split("train").longest_rows())
    assert all(
        real <= most
        for real, most in zip(data.split("train").longest_rows(), expected.longest, strict=True)
    )


KNOWN = [
    ("mnist", (1, 28, 28), 10, 54_000),
    ("cifar10", (3, 32, 32), 10, 45_000),
    ("cifar100", (3, 32, 32), 100, 45_000),
]


@pytest.mark.parametrize(
    ("kind", "shape", "classes", "count"), KNOWN, ids=[kind for kind, *_ in KNOWN]
)
def test_known_data_sets_have_their_published_shape_classes_and_size(
    kind: str, shape: tuple[int, ...], classes: int, count: int
) -> None:
    expected = OPTIONS.validate_python({"type": kind}).expected(None)
    assert (expected.info.image_shape, len(expected.info.classes), expected.samples) == (
        shape,
        classes,
        count,
    )
    assert str(expected).startswith(f"images of {' x '.join(map(str, shape))}")
    assert f"{classes} classes, {count:,} training samples" in str(expected)
    changed = OPTIONS.validate_python(
        {"type": kind, "size": 9, "channels": 1, "val_fraction": 0}
    ).expected(None)
    assert (changed.info.image_shape, changed.samples) == ((1, 9, 9), count + count // 9)


def test_missing_data_is_reported() -> None:
    said: list[str] = []
    data = open_or_expect(
        OPTIONS.validate_python({"type": "mnist", "root": "nowhere"}), say=said.append
    )
    assert len(data.split("train")) == 54_000
    assert "nowhere" in said[-1]
    assert "Without the data, this is assumed: images of 1 x 28 x 28" in said[-1]


def test_the_real_data_has_the_info_that_is_known_of_it(data_root: Path) -> None:
    options = OPTIONS.validate_python(
        {"type": "mnist", "root": f"{data_root}/mnist", "val_fraction": 0.07}
    )
    data, expected = opened(options), options.expected(None)
    assert (data.info.image_shape, len(data.split("train"))) == (
        expected.info.image_shape,
        expected.samples,
    )


AUDIO = {"type": "audio", "files": ["no.wav"]}
UNKNOWN: dict[str, tuple[dict[str, Any], str]] = {
    "classes": ({**SOURCES["folder"], "root": "no", "classes": None}, "give data.classes: N"),
    "size": ({**SOURCES["folder"], "root": "no", "size": None}, "give data.size: N"),
    "characters": (
        {**SOURCES["text"], "tokenizer": {"type": "characters"}},
        "give data.tokenizer: bytes, or",
    ),
    "seconds": ({**AUDIO, "classes": 3}, "give data.seconds: N"),
    "transcripts": (
        {**AUDIO, "classes": 3, "units": "words"},
        "the length of its longest recording is not known",
    ),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_unknown_shapes_are_reported_with_the_option_that_gives_them(name: str) -> None:
    values, remedy = UNKNOWN[name]
    with pytest.raises(DataError) as found:
        open_or_expect(OPTIONS.validate_python(values), say=lambda text: None)
    assert remedy in str(found.value).partition(". Without the data, ")[2]


def test_other_class_counts_are_refused(files: None) -> None:
    options = OPTIONS.validate_python({**SOURCES["folder"], "classes": 4})
    with pytest.raises(DataError, match=r"data\.classes: 4, and the data has 3: one, three, two"):
        opened(options)


def test_data_that_is_there_and_damaged_is_not_expected(files: None) -> None:
    """Only what is not there is: what cannot be read is a fault of a dry run too."""
    Path("there/images/one/0.png").write_bytes(b"nothing")
    with pytest.raises(DataError) as found:
        open_or_expect(OPTIONS.validate_python(SOURCES["folder"]), say=lambda text: None)
    assert not isinstance(found.value, MissingData)


TABLE = """\
model: {type: encoder, dim: 8, pool: cls,
  blocks: [{mixer: {type: attention, num_heads: 2, causal: false}, ffn: gelu}]}
data: {type: table, train: [no.tsv], text: [0], label: 1, tokenizer: bytes, context: 8, classes: 5}
task: {type: classification}
train: {epochs: 2, batch_size: 4, precision: fp32}
"""


def test_a_dry_run_of_data_that_is_not_there(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "table.yaml").write_text(TABLE)
    result = cli("pretrain", "table.yaml", "--dry-run", "--json")
    assert result.status == 0, result.err
    assert "no.tsv: no such file" in result.err
    assert "this is assumed: 5 classes, 257 tokens, rows of up to 8" in result.err
    plan = json.loads(result.out)
    assert (plan["steps"], plan["samples"], plan["layers"][-1]["shape"]) == (None, None, [1, 5])
    assert cli("pretrain", "table.yaml").status == 3
    lacking = cli("pretrain", "table.yaml", "--dry-run", "--set", "data.classes=null")
    assert (lacking.status, "give data.classes: N" in lacking.err) == (3, True)
