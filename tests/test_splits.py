"""Which split is evaluated, what it needs, and what the checkpoint has seen of it."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Result
from PIL import Image
from tones import recording

Cli = Callable[..., Result]
MODEL = (
    "model: {type: encoder, dim: 8, pool: mean, blocks: [{mixer: {type: attention, num_heads:"
    " 2}}]}\n"
)
TRAIN = (
    "train: {steps: 3, batch_size: 8, precision: fp32, memory_format: contiguous, compile: 'off'}\n"
)


def spec(
    name: str, data: str, task: str = "classification", model: str = MODEL, train: str = TRAIN
) -> str:
    Path(name).write_text(f"{model}data: {{{data}}}\ntask: {{type: {task}}}\n{train}")
    return name


def rows(name: str, words: list[str], classes: tuple[str, ...] = ("neg", "pos")) -> None:
    Path(name).write_text("".join(f"{w}\t{classes[hash_of(w) % len(classes)]}\n" for w in words))


def hash_of(word: str) -> int:
    return hashlib.md5(word.encode()).digest()[0]


def words(first: int, last: int) -> list[str]:
    return [f"word {i}" for i in range(first, last)]


TABLE = "type: table, train: [a.tsv], text: [0], label: 1, context: 12, tokenizer: {type: bytes}"


def sets(*changes: str) -> list[str]:
    return [word for change in changes for word in ("--set", change)]


def report(result: Result) -> dict[str, Any]:
    assert result.status == 0, result.err
    return dict(json.loads(result.out))


def test_a_run_without_a_split(cli: Cli) -> None:
    """It is said that there is nothing to measure on, and a part made afterwards of its training
    data is refused.
    """
    rows("a.tsv", words(0, 200))
    rows("b.tsv", words(190, 260))
    trained = cli("pretrain", spec("s.yaml", f"{TABLE}, val_fraction: 0"), "--out", "run")
    assert trained.status == 0, trained.err
    assert "no validation: no data is named for it and data.val_fraction is 0" in trained.err
    assert not Path("run/checkpoints/best").exists()
    none = cli("eval", "run")
    assert none.status == 2
    assert (
        "neither a test nor a validation split (data.val_fraction: 0 holds nothing out)" in none.err
    )
    assert "--set data.test=[FILE], or measure what it was trained on: --split train" in none.err
    val = cli("eval", "run", "--split", "val")
    assert (val.status, "has no 'val' split; it has train" in val.err) == (3, True)
    made = cli("eval", "run", "--set", "data.val_fraction=0.2")
    assert made.status == 2
    assert (
        "the checkpoint was trained on 40 of the 40 rows in the validation split that it makes"
        in made.err
    )
    assert made.out == ""
    whole = cli("eval", "run", "--split", "train", "--json")
    assert report(whole)["seen_in_training"] == {"items": 200, "of": 200}
    assert "warning" not in whole.err
    other = cli("eval", "run", *sets("data.test=[b.tsv]"), "--json")
    assert report(other)["seen_in_training"] == {"items": 10, "of": 70}
    assert report(other)["split"] == "test"
    assert "warning: 10 of 70 rows of the test split were trained on" in other.err
    stopped = cli("pretrain", "s.yaml", "--out", "p", *sets("train.patience=2"))
    assert stopped.status == 2
    assert "train.patience: there is no validation by which to stop" in stopped.err


def test_a_run_with_a_part_held_out(cli: Cli) -> None:
    """That part may be evaluated, and a smaller one, which lies within it; not a larger one."""
    # 50 rows stand twice: that is said, and no reason to refuse
    rows("a.tsv", [*words(0, 150), *words(0, 50)])
    trained = cli("pretrain", spec("s.yaml", TABLE), "--out", "run")
    assert (
        "holding out 20 of 200 training rows for validation; data.val_fraction: 0 turns it off"
        in trained.err
    )
    line = next(line for line in trained.err.splitlines() if "also in the training split" in line)
    both = int(line.split()[1])
    assert line == f"warning: {both} of 20 rows of the val split are also in the training split"
    found = cli("eval", "run", "--json")
    assert report(found)["split"] == "val"
    assert report(found)["seen_in_training"] == {"items": both, "of": 20}
    assert "holding out" not in found.err
    last = json.loads(Path("run/metrics.jsonl").read_text().splitlines()[-1])["val"]
    assert report(found)["accuracy"] == pytest.approx(last["accuracy"])
    assert cli("eval", "run", *sets("data.val_fraction=0.04")).status == 0
    larger = cli("eval", "run", *sets("data.val_fraction=0.2"))
    assert larger.status == 2
    assert "of the 40 rows in the validation split that it makes" in larger.err
    Path("a.tsv").unlink()
    gone = cli("eval", "run")
    assert gone.status == 3
    assert "data.train: a.tsv: no such file" in gone.err


def test_a_finetuned_checkpoint_remembers_what_its_start_was_trained_on(cli: Cli) -> None:
    """What the start of a finetuning was trained on counts too; by another task it is reported
    apart.
    """
    rows("a.tsv", words(0, 100))
    rows("b.tsv", words(100, 200))
    rows("t.tsv", words(90, 130))
    base = spec("s.yaml", f"{TABLE}, val_fraction: 0, test: [t.tsv]")
    first = cli("pretrain", base, "--out", "first")
    assert "warning: 10 of 40 rows of the test split are also in the training split" in first.err
    tuned = cli("finetune", "--from", "first", "--out", "tuned", *sets("data.train=[b.tsv]"))
    assert tuned.status == 0, tuned.err
    assert "warning: 30 of 40 rows of the test split are also in the training split" in tuned.err
    assert (
        "warning: 10 of 40 rows of the test split were in the training of the weights that this run"
        " starts from" in tuned.err
    )
    assert report(cli("eval", "tuned", "--json"))["seen_in_training"] == {"items": 40, "of": 40}
    assert "seen_in_earlier_training" not in report(cli("eval", "tuned", "--json"))
    held = cli(
        "eval", "tuned", "--split", "val", *sets("data.train=[a.tsv]", "data.val_fraction=0.5")
    )
    assert held.status == 2  # the start was trained on it
    unlabelled = f"{TABLE}, val_fraction: 0".replace("label: 1, ", "")
    masked = cli("pretrain", spec("m.yaml", unlabelled, "masked_lm"), "--out", "masked")
    assert masked.status == 0, masked.err
    labelled = cli(
        "finetune",
        "--from",
        "masked",
        spec("l.yaml", f"{TABLE}, test: [t.tsv]".replace("a.tsv", "b.tsv")),
        "--out",
        "l",
    )
    assert labelled.status == 0, labelled.err
    # no warning
    assert "\n10 of 40 rows of the test split were in the training of the weights" in labelled.err
    found = report(cli("eval", "l", "--json"))
    assert found["seen_in_earlier_training"] == {"masked_lm": {"items": 10, "of": 40}}
    assert found["seen_in_training"]["items"] in range(20, 31)


def test_a_checkpoint_without_a_split_record_is_reported(cli: Cli) -> None:
    rows("a.tsv", words(0, 100))
    rows("t.tsv", words(90, 130))
    path = Path(
        cli("pretrain", spec("s.yaml", f"{TABLE}, test: [t.tsv]"), "--out", "run").out.strip()
    )
    assert "trained_on.bin" in json.loads((path / "manifest.json").read_text())["files"]
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["files"]["trained_on.bin"]
    (path / "manifest.json").write_text(json.dumps(manifest))
    (path / "trained_on.bin").unlink()
    found = cli("eval", path, "--json")
    assert not [name for name in report(found) if name.startswith("seen")]
    assert "warning" not in found.err
    val = cli("eval", path, "--split", "val")
    assert val.status == 0
    assert "warning: the checkpoint keeps no record of what it was trained on" in val.err


def pictures(root: str, labels: dict[str, int], first: int, last: int) -> None:
    for i in range(first, last):
        label = list(labels)[i % len(labels)]
        Path(root, label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((6, 5, 3), (labels[label], i, 9), np.uint8)).save(
            Path(root, label, f"{i}.png")
        )


LAYERS = (
    "{type: conv, channels: 4, kernel: 3}, {type: adaptive_pool, size: 1}, {type: flatten}, {type:"
    " dense, units: classes}"
)
CNN = f"model: {{type: cnn, layers: [{LAYERS}]}}\n"


def test_eval_needs_its_split_alone(cli: Cli) -> None:
    """With the training data gone, each form of data gives the same figures; classes go by their
    names.
    """
    shades = {"ant": 0, "bee": 120, "cat": 240}
    pictures("set/train", shades, 0, 60)
    pictures("set/test", shades, 60, 90)
    rows("a.tsv", words(0, 60), ("x", "y", "z"))
    rows("t.tsv", words(60, 90), ("x", "y", "z"))
    Path("sounds").mkdir()
    for i in range(30):
        Path("sounds", f"{'abc'[i % 3]}_{i // 3}.wav").write_bytes(
            recording(300 * (1 + i % 3) + i, 0.05)
        )
    Path("one.txt").write_text("".join(f"a line of number {i}\n" for i in range(200)))
    Path("two.txt").write_text("".join(f"another line {i}\n" for i in range(60)))
    for name, count in (("p", 50), ("q", 20)):
        Path(f"{name}.s").write_text("".join(f"{name} {i}\n" for i in range(count)))
        Path(f"{name}.t").write_text("".join(f"{i} {name}\n" for i in range(count)))
    pattern = r"'(?P<label>\w)_(?P<index>\d+)\.wav$'"
    pair = "source: [p.s], target: [p.t], test_source: [q.s], test_target: [q.t], context: 12"
    block = "mixer: {type: attention, num_heads: 2}"
    specs = {
        "image": spec("image.yaml", "type: image_folder, root: set", model=CNN),
        "table": spec("table.yaml", f"{TABLE}, test: [t.tsv]"),
        "audio": spec("audio.yaml",
         f"type: audio, files: [sounds], pattern: {pattern}, split: {{test: {{index: [0, 1]}}}}, "
                      "rate: 8000, mels: 8, seconds: 0.05", model=CNN),
        "text": spec("text.yaml",
         "type: text, files: [one.txt], test_files: [two.txt], context: 16, tokenizer: {type: bpe, "
                     "vocab_size: 280}", "causal_lm, sample_tokens: 0",
                     f"model: {{type: decoder, dim: 8, blocks: [{{{block}}}]}}\n"),
        "pairs": spec("pairs.yaml",
         f"type: pairs, {pair}, tokenizer: {{type: bpe, vocab_size: 270}}", "seq2seq",
                      f"model: {{type: seq2seq, dim: 8, encoder: [{{{block}}}], "
                       "decoder: [{cross: {num_heads: 2}}]}\n"),
    }  # fmt: skip
    before = {}
    for name, path in specs.items():
        trained = cli("pretrain", path, "--out", name)
        assert trained.status == 0, trained.err
        before[name] = report(cli("eval", name, "--json"))
        assert before[name]["split"] == "test"
        assert before[name]["seen_in_training"]["items"] == 0
    shutil.rmtree("set/train")
    for path in [Path(n) for n in ("a.tsv", "one.txt", "p.s", "p.t")] + [
        p for p in Path("sounds").iterdir() if int(p.stem[2:]) > 1
    ]:
        path.unlink()
    for name in specs:
        assert report(cli("eval", name, "--json")) == before[name], name

    # Some classes alone, and those in another order than the training split's.
    shutil.rmtree("set/test/ant")
    some = report(cli("eval", "image", "--json", "--predictions", "some.jsonl"))
    assert some["metrics"]["accuracy"]["count"] == 20
    assert [json.loads(line)["label"] for line in Path("some.jsonl").read_text().splitlines()] == [
        "bee"
    ] * 10 + ["cat"] * 10
    pictures("set/test", {"cow": 3}, 100, 101)
    unknown = cli("eval", "image")
    assert unknown.status == 2
    assert "classes that the checkpoint does not know: 'cow'; it knows ant, bee, cat" in unknown.err
    Path("t.tsv").write_text("word\tz\nother\tx\n")
    assert report(cli("eval", "table", "--json"))["metrics"]["accuracy"]["count"] == 2
    Path("t.tsv").write_text("word\tz\nother\tw\n")
    assert (
        "classes that the checkpoint does not know: 'w'; it knows x, y, z"
        in cli("eval", "table").err
    )
    bare = cli("eval", "table", *sets("data.label=null"))
    assert (
        bare.status,
        "the checkpoint tells classes apart, and the data has no labels" in bare.err,
    ) == (2, True)
    bare = cli("eval", "image", *sets("data.labels=false"))
    assert (
        bare.status,
        "the checkpoint tells classes apart, and the data has no labels" in bare.err,
    ) == (2, True)
    Path("sounds/d_0.wav").write_bytes(recording(800, 0.05))
    assert (
        "classes that the checkpoint does not know: 'd'; it knows a, b, c"
        in cli("eval", "audio").err
    )


def test_the_same_items_in_other_files_are_counted(cli: Cli) -> None:
    shades = {"ant": 0, "bee": 240}
    pictures("set/train", shades, 0, 40)
    pictures("set/test", shades, 30, 50)
    trained = cli(
        "pretrain",
        spec("image.yaml", "type: image_folder, root: set, val_fraction: 0", model=CNN),
        "--out",
        "run",
    )
    assert (
        "warning: 10 of 20 images of the test split are also in the training split" in trained.err
    )
    text = [f"line {i} of the text\n" for i in range(3000)]
    Path("one.txt").write_text("".join(text))
    Path("two.txt").write_text("".join(text[500:1000]) + "".join(f"new {i}\n" for i in range(1000)))
    decoder = "model: {type: decoder, dim: 8, blocks: [{mixer: {type: attention, num_heads: 2}}]}\n"
    data = (
        "type: text, files: [one.txt], test_files: [two.txt], val_fraction: 0, context: 16,"
        " tokenizer: {type: bytes}"
    )
    trained = cli(
        "pretrain", spec("text.yaml", data, "causal_lm, sample_tokens: 0", decoder), "--out", "text"
    )
    line = next(line for line in trained.err.splitlines() if "also in the training split" in line)
    both, _, count = line.split()[1:4]
    assert int(both) > 0.2 * int(count)
    made = cli("eval", "text", "--split", "val", *sets("data.val_fraction=0.3"))
    assert made.status == 2
    assert "the checkpoint was trained on" in made.err


def test_items_of_validation_and_test_are_counted(cli: Cli) -> None:
    """The best checkpoint is chosen by the one, so that what it scores on the other is too good."""
    rows("a.tsv", words(0, 60))
    rows("b.tsv", words(60, 90))
    rows("c.tsv", words(70, 110))
    trained = cli(
        "pretrain", spec("s.yaml", f"{TABLE}, val: [b.tsv], test: [c.tsv]"), "--out", "run"
    )
    assert trained.status == 0, trained.err
    assert (
        "warning: 20 of 40 rows of the test split are also in the validation split" in trained.err
    )
    assert "also in the training split" not in trained.err


def test_two_checkpoints_are_compared_on_the_same_items_alone(cli: Cli) -> None:
    """As many rows with the same labels in the same order are other items where their texts are
    others.
    """
    rows("a.tsv", words(0, 60))
    Path("b.tsv").write_text(Path("a.tsv").read_text())
    Path("c.tsv").write_text(Path("a.tsv").read_text().replace("word", "term"))
    rows("d.tsv", words(60, 120))
    data = TABLE.replace("a.tsv", "d.tsv") + ", val_fraction: 0"
    for name, test in (("first", "a"), ("second", "b"), ("third", "c")):
        trained = cli("pretrain", spec("s.yaml", f"{data}, test: [{test}.tsv]"), "--out", name)
        assert trained.status == 0, trained.err
    assert cli("eval", "first", "--compare", "second").status == 0
    other = cli("eval", "first", "--compare", "third")
    assert other.status == 2
    assert "not evaluated on the same items: their content differs" in other.err
    assert cli("eval", "first", "--compare", "third", "--set", "data.test=[a.tsv]").status == 0
