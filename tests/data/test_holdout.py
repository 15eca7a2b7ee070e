"""What is held out, for each form of data: sets of items against a count by hand.

Disjoint, complete, the same each time.
"""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import write_text
from PIL import Image
from tones import recording

from bigmodel_cli.data import SOURCES, open_data
from bigmodel_cli.data.base import DataSet
from bigmodel_cli.data.text.parts import training_part
from bigmodel_cli.errors import DataError

WORDS = [f"w{i:03d}" for i in range(130)]


def opened(said: list[str] | None = None, **options: Any) -> DataSet:
    checked = SOURCES[options["type"]].model_validate(options)
    return open_data(checked, base=Path.cwd(), say=(said if said is not None else []).append)


def texts_of(data: DataSet, split: str, name: str = "tokens") -> list[str]:
    """Rows of bytes as texts."""
    rows = data.split(split).batch(np.arange(len(data.split(split))), 0, 0, False)[name]
    return [bytes(t for t in row if 0 <= t < 256).decode() for row in rows.tolist()]


def table() -> tuple[dict[str, Any], Callable[[DataSet, str], list[str]]]:
    Path("a.tsv").write_text("".join(f"{w}\t{i % 2}\n" for i, w in enumerate(WORDS)))
    options = {
        "type": "table",
        "train": ["a.tsv"],
        "text": [0],
        "label": 1,
        "context": 8,
        "tokenizer": {"type": "bytes"},
    }
    return options, texts_of


def pairs() -> tuple[dict[str, Any], Callable[[DataSet, str], list[str]]]:
    Path("a.txt.gz").write_bytes(gzip.compress("".join(f"{w}\n" for w in WORDS).encode()))
    Path("b.txt").write_text("\n".join(w[::-1] for w in WORDS))  # no last newline

    def read(data: DataSet, split: str) -> list[str]:
        sources, targets = (texts_of(data, split, side) for side in ("source", "target"))
        assert [s[::-1] for s in sources] == targets  # pairs stay together
        return sources

    values = {
        "type": "pairs",
        "source": ["a.txt.gz"],
        "target": ["b.txt"],
        "context": 9,
        "tokenizer": {"type": "bytes"},
    }
    return values, read


def pair_table() -> tuple[dict[str, Any], Callable[[DataSet, str], list[str]]]:
    Path("p.jsonl").write_text("".join(json.dumps({"de": w[::-1], "en": w}) + "\n" for w in WORDS))
    columns = {"source": "en", "target": "de", "context": 9, "tokenizer": {"type": "bytes"}}
    return {"type": "pair_table", "train": ["p.jsonl"], **columns}, lambda d, s: texts_of(
        d, s, "source"
    )


def grey(data: DataSet, split: str) -> list[str]:
    """Images of one shade each, by the number that the shade is."""
    images = data.split(split).batch(np.arange(len(data.split(split))), 0, 0, False)["image"]
    return [WORDS[round(float(image.mean()) * 255)] for image in images]


def image_folder() -> tuple[dict[str, Any], Callable[[DataSet, str], list[str]]]:
    for i in range(len(WORDS)):
        path = Path("pictures", "odd" if i % 2 else "even", f"{i}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), i).save(path)
    return {"type": "image_folder", "root": "pictures", "channels": 1, "normalize": "none"}, grey


def parquet_images() -> tuple[dict[str, Any], Callable[[DataSet, str], list[str]]]:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    image_folder()
    paths = [Path("pictures", "odd" if i % 2 else "even", f"{i}.png") for i in range(len(WORDS))]
    content = [{"bytes": p.read_bytes(), "path": None} for p in paths]
    pq.write_table(pa.table({"image": content}), "images.parquet")
    return {
        "type": "parquet_images",
        "train": ["images.parquet"],
        "labels": False,
        "normalize": "none",
    }, grey


def audio() -> tuple[dict[str, Any], Callable[[DataSet, str], list[str]]]:
    Path("sounds").mkdir()
    for i, word in enumerate(WORDS):
        Path("sounds", f"{word}.wav").write_bytes(recording(200 + 20 * i, 0.03))

    def read(data: DataSet, split: str) -> list[str]:
        labels = data.split(split).batch(np.arange(len(data.split(split))), 0, 0, False)["label"]
        return [data.info.classes[i] for i in labels]

    values = {
        "type": "audio",
        "files": ["sounds"],
        "pattern": r"(?P<label>w\d+)\.wav$",
        "rate": 8000,
        "mels": 8,
    }
    return {**values, "seconds": 0.03}, read


FORMS = [table, pairs, pair_table, image_folder, parquet_images, audio]


@pytest.mark.parametrize("form", FORMS, ids=lambda f: f.__name__)
def test_a_tenth_of_the_items_is_held_out(form: Callable[[], Any]) -> None:
    options, read = form()
    said: list[str] = []
    data = opened(said, **options)
    train, val = read(data, "train"), read(data, "val")
    assert (len(train), len(val)) == (117, 13)
    assert sorted(train + val) == WORDS  # nothing twice, nothing lost
    assert set(val) not in ({*WORDS[:13]}, {*WORDS[-13:]}, {*WORDS[::10]})
    assert any(
        "holding out 13 of 130 training " in line and "data.val_fraction: 0 turns it off" in line
        for line in said
    )
    assert read(opened(**options), "val") == val
    more = opened(**options, val_fraction=0.4)
    assert set(val) < set(read(more, "val"))  # a smaller part lies within a larger one
    assert len(more.split("val")) == 52
    assert more.fingerprint != data.fingerprint
    quiet: list[str] = []
    whole = opened(quiet, **options, val_fraction=0)
    assert whole.splits == ("train",)
    assert not any("holding out" in line for line in quiet)
    assert sorted(read(whole, "train")) == WORDS
    assert len({*data.items("train").tolist(), *data.items("val").tolist()}) == 130
    assert sorted([*data.items("train").tolist(), *data.items("val").tolist()]) == sorted(
        whole.items("train").tolist()
    )


def test_images_of_the_sources_that_have_a_test_split(data_root: Path) -> None:
    said: list[str] = []
    data = opened(said, type="mnist", root=str(data_root / "mnist"))
    assert {n: len(data.split(n)) for n in data.splits} == {
        "train": 54_000,
        "val": 6_000,
        "test": 10_000,
    }
    assert (
        "holding out 6,000 of 60,000 training images for validation; data.val_fraction: 0 turns"
        " it off" in said
    )
    digits = opened(type="digits")
    assert {n: len(digits.split(n)) for n in digits.splits} == {
        "train": 1_290,
        "val": 143,
        "test": 364,
    }


def test_strings_are_joined_of_recordings_of_their_own_split() -> None:
    options, _ = audio()
    del options["seconds"]
    data = opened(**options, units="words", join={"least": 2, "most": 4})
    said = {n: set() for n in ("train", "val")}
    for name, numbers in said.items():
        for epoch in range(12):
            target = data.split(name).batch(
                np.arange(len(data.split(name))), epoch, 0, name == "train"
            )["target"]
            numbers |= {int(i) for i in target.flatten() if i >= 0}
    assert not said["train"] & said["val"]
    assert len(said["val"]) == 13
    assert len(said["train"]) > 100


def test_cifar_opens_the_files_of_one_split(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision's layout, with checksums of its own: the test batch is read where no training
    batch is there.
    """
    import hashlib
    import pickle

    from torchvision import datasets

    folder = Path("data/cifar-10-batches-py")
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    batch = {"data": rng.integers(0, 256, (6, 3072), np.uint8), "labels": [0, 1, 2, 0, 1, 2]}
    (folder / "test_batch").write_bytes(pickle.dumps(batch))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ["a", "b", "c"]}))
    sums = {p.name: hashlib.md5(p.read_bytes()).hexdigest() for p in folder.iterdir()}
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    meta = {"filename": "batches.meta", "key": "label_names", "md5": sums["batches.meta"]}
    monkeypatch.setattr(datasets.CIFAR10, "meta", meta)
    options = SOURCES["cifar10"].model_validate({"type": "cifar10", "normalize": "none"})
    info = {"image_shape": [3, 32, 32], "classes": ["c", "b", "a"]}
    read = {"base": Path.cwd(), "say": [].append}
    found = open_data(
        options, **read, assets={"facts.json": json.dumps(info).encode()}, only="test"
    )  # type: ignore[arg-type]
    rows = found.split("test").batch(np.arange(6), 0, 0, False)
    assert rows["label"].tolist() == [2, 1, 0, 2, 1, 0]  # by their names
    assert np.array_equal((rows["image"] * 255).round().numpy().reshape(6, -1), batch["data"])
    with pytest.raises(DataError, match="no cifar10 there"):
        open_data(options, **read)  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_holding_out_of_few_items(count: int) -> None:
    Path("a.tsv").write_text("".join(f"{w}\n" for w in WORDS[:count]))
    options = {
        "type": "table",
        "train": ["a.tsv"],
        "text": [0],
        "context": 8,
        "tokenizer": {"type": "bytes"},
    }
    if count == 1:
        with pytest.raises(
            DataError,
            match=(
                r"data.val_fraction: 0.1 leaves nothing of 1 rows to train on; .*"
                r" data.val_fraction: 0"
            ),
        ):
            opened(**options)
        return
    data = opened(**options)
    assert [len(data.split(n)) for n in ("train", "val")] == [count - 1, 1]  # at least one of each


def test_named_validation_data_replaces_the_held_out_part() -> None:
    Path("a.tsv").write_text("".join(f"{w}\n" for w in WORDS))
    Path("b.tsv").write_text("x\ny\n")
    options = {
        "type": "table",
        "train": ["a.tsv"],
        "val": ["b.tsv"],
        "text": [0],
        "context": 8,
        "tokenizer": {"type": "bytes"},
    }
    said: list[str] = []
    data = opened(said, **options)
    assert [len(data.split(n)) for n in data.splits] == [130, 2]
    assert not data.held_out
    assert not any("holding out" in line for line in said)
    for name in ("train", "val"):
        for label in ("x", "y"):
            Path("set", name, label).mkdir(parents=True)
            Image.new("L", (4, 4), 7 * len(name)).save(Path("set", name, label, "a.png"))
    assert len(opened(type="image_folder", root="set").split("val")) == 2
    with pytest.raises(
        Exception,
        match=r"data.val_fraction: give either a validation split \(there is one\) or val_fraction",
    ):
        opened(type="image_folder", root="set", val_fraction=0.5)


def documents(sizes: list[int]) -> list[str]:
    """Documents of these sizes whose characters name their document and place, so that each is
    found again.
    """
    return [
        "".join(chr(0x4E00 + 1000 * i + j) for j in range(size)) for i, size in enumerate(sizes)
    ]


@pytest.mark.parametrize("form", ["jsonl", "files"])
def test_documents_of_a_text_are_held_out_at_random(form: str) -> None:
    sizes = [int(n) for n in np.random.default_rng(3).integers(20, 200, 16)]
    written = documents(sizes)
    if form == "jsonl":
        Path("a.jsonl").write_text("".join(json.dumps({"text": d}) + "\n" for d in written))
        files = ["a.jsonl"]
    else:
        for i, document in enumerate(written):
            Path(f"{i:02d}.txt").write_text(document)
        files = ["*.txt"]
    options = {"type": "text", "files": files, "context": 4, "tokenizer": {"type": "characters"}}
    said: list[str] = []
    data = opened(said, **options)
    symbols = sorted({c for d in written for c in d})
    parts: dict[str, str] = {}
    for name in ("train", "val"):
        tokens: Any = data.split(name)
        parts[name] = "".join(
            symbols[t] if t < len(symbols) else "|" for t in tokens.tokens.tolist()
        )
    total = sum(sizes)
    held = [c for c in parts["val"] if c != "|"]
    assert len(held) == total - int(0.9 * total)  # exactly a tenth
    assert Counter(c for c in parts["train"] + parts["val"] if c != "|") == Counter(
        "".join(written)
    )
    whole = [d for d in written if d in parts["val"]]
    cut = [d for d in written if d not in parts["val"] and any(c in parts["val"] for c in d)]
    assert len(cut) <= 1  # of the last of them no more than its tail
    for document in cut:
        own = "".join(c for c in held if c in document)
        assert document.endswith(own)
        assert document.removesuffix(own) + "|" in parts["train"]  # where it stops, it ends
    assert not set(whole) <= set(written[-len(whole) - 1 :])  # not the last files
    assert (
        f"holding out {len(held):,} of {total:,} characters (in {len(whole) + len(cut)} of 16"
        " documents)" in said[0]
    )
    again: Any = opened(**options).split("val")
    assert again.tokens.tolist() == data.split("val").tokens.tolist()  # type: ignore[attr-defined]
    assert opened(**options, val_fraction=0).splits == ("train",)


def test_a_single_file_keeps_its_tail() -> None:
    write_text(Path("text.txt"), 3001)
    text = Path("text.txt").read_text()
    said: list[str] = []
    data = opened(said, type="text", files=["text.txt"], context=8, tokenizer={"type": "bytes"})
    val: Any = data.split("val")
    assert bytes(val.tokens.tolist()).decode() == text[int(len(text) * 0.9) :]
    assert "(the tail of the text)" in said[0]


def test_the_held_out_part_has_the_requested_fraction_of_the_tokens() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        lengths = rng.integers(0, 50, rng.integers(1, 12)).tolist()
        fraction = float(rng.uniform(0.01, 0.9))
        own = training_part(lengths, fraction).tolist()
        assert sum(own) == int(sum(lengths) * (1 - fraction))
        assert all(0 <= o <= n for o, n in zip(own, lengths, strict=True))
        assert sum(0 < o < n for o, n in zip(own, lengths, strict=True)) <= 1


@pytest.mark.parametrize("form", ["text", "table", "pairs"])
def test_a_trained_tokenizer_does_not_see_what_is_held_out(form: str) -> None:
    """Each item is a word of its own, often repeated: those held out are no tokens."""
    names = [f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in "lmnr"]
    tokenizer = {"type": "bpe", "vocab_size": 700}
    rows = [" ".join([n] * 12) for n in names]
    if form == "text":
        Path("a.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
        data = opened(type="text", files=["a.jsonl"], context=4, tokenizer=tokenizer)
        keep = training_part([len(row) for row in rows], 0.1)
        held = [n for n, own in zip(names, keep, strict=True) if not own]
    else:
        Path("a.txt").write_text("\n".join(rows) + "\n")
        same = {"context": 60, "tokenizer": tokenizer}
        if form == "table":
            data = opened(type="table", train=["a.txt"], text=[0], **same)
        else:
            Path("b.txt").write_text("\n".join(rows) + "\n")
            data = opened(type="pairs", source=["a.txt"], target=["b.txt"], **same)
        from bigmodel_cli.data import load_tokenizer

        column = data.split("val").batch(np.arange(10), 0, 0, False)[
            "tokens" if form == "table" else "source"
        ]
        decoded = [
            load_tokenizer(data.assets()).decode([t for t in row if t > 0])
            for row in column.tolist()
        ]
        held = [next(n for n in names if n in text) for text in decoded]
    vocabulary = json.loads(data.assets()["tokenizer.json"])["model"]["vocab"]
    learnt = {word.removeprefix("Ġ") for word in vocabulary}
    assert len(held) >= 9
    assert not learnt & set(held)
    assert len(learnt & set(names)) > 80


def files() -> Iterator[Any]:
    """(options, the option that holds the training files, which files are left)."""
    yield {
        "type": "text",
        "files": ["set/*.txt"],
        "val_files": ["set/b.txt"],
        "context": 4,
        "tokenizer": {"type": "bytes"},
    }
    row = {"text": [0], "context": 8, "tokenizer": {"type": "bytes"}}
    yield {"type": "table", "train": ["set"], "val": ["set/b.txt"], "test": ["set/c.txt"], **row}
    pair = {"source": 0, "target": 0, "context": 30, "tokenizer": {"type": "bytes"}}
    yield {"type": "pair_table", "train": ["set/*"], "test": ["set/c.txt"], **pair}
    parallel = {
        "source": ["set/*.txt"],
        "target": ["set/*.txt"],
        "val_source": ["set/b.txt"],
        "val_target": ["set/b.txt"],
    }
    yield {"type": "pairs", **parallel, "context": 30, "tokenizer": {"type": "bytes"}}


@pytest.mark.parametrize("options", list(files()), ids=lambda o: o["type"])
def test_files_of_other_splits_are_left_out_of_training(options: dict[str, Any]) -> None:
    Path("set").mkdir()
    for name in "abcd":
        Path("set", f"{name}.txt").write_text(f"{name * 9}\n" * 20)
    Path("link").symlink_to("set")
    # the same file by another path
    linked = {k: ["link/b.txt"] for k in options if k.startswith("val")}
    said: list[str] = []
    data = opened(said, **{**options, **linked})
    train: Any = data.split("train")
    held = getattr(train, "sides", train)
    sides = held.values() if isinstance(held, dict) else held if isinstance(held, list) else [held]
    there = {chr(t) for side in sides for t in np.asarray(side.tokens).tolist()} & set("abcd")
    taken = {"text": "b", "table": "bc", "pair_table": "c", "pairs": "b"}[options["type"]]
    assert there == set("abcd") - set(taken)
    for name in taken:
        assert any(
            "left out of training, since data." in line and f"{name}.txt" in line for line in said
        ), said
    only = {
        **options,
        **{
            k: ["set/b.txt"]
            for k in ("files", "train", "source", "target")
            if isinstance(options.get(k), list)
        },
    }
    if "b" in taken:
        with pytest.raises(
            DataError, match="nothing is left to train on: every file belongs to another split"
        ):
            opened(**only)
