"""Classification reads what the data has; an encoder learns labels of text, and from a pretraining
without labels.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Result
from safetensors.torch import load_file

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.data import random_batch
from bigmodel_cli.data.batches import join
from bigmodel_cli.errors import SpecError
from bigmodel_cli.tasks.classification import inputs_of

Cli = Callable[..., Result]


def test_the_input_is_what_the_data_has() -> None:
    label, tokens, types = torch.zeros(2), torch.ones(2, 3), torch.ones(2, 3)
    assert inputs_of({"image": tokens, "label": label}) == (tokens,)
    assert inputs_of({"tokens": tokens, "label": label}) == (tokens,)
    assert inputs_of({"label": label, "types": types, "tokens": tokens}) == (tokens, types)
    with pytest.raises(
        SpecError,
        match="classification reads one of image, tokens, frames, and the data has label, x",
    ):
        inputs_of({"x": tokens, "label": label})


def test_batches_of_different_lengths_join() -> None:
    first = {
        "tokens": torch.tensor([[1, 2, 3]]),
        "label": torch.tensor([0]),
        "frames": torch.ones(1, 3, 2),
    }
    second = {
        "tokens": torch.tensor([[4], [5]]),
        "label": torch.tensor([1, 2]),
        "frames": torch.ones(2, 1, 2),
    }
    joined = join([first, second])
    assert joined["tokens"].tolist() == [[1, 2, 3], [4, -1, -1], [5, -1, -1]]
    assert joined["label"].tolist() == [0, 1, 2]
    assert joined["frames"].sum((1, 2)).tolist() == [6.0, 2.0, 2.0]


def test_random_input_for_a_benchmark() -> None:
    info = DatasetInfo(vocab_size=30, context=7, classes=("a", "b"))
    batch = random_batch(info, ("label",), 4, torch.device("cpu"))
    assert (batch["tokens"].shape, batch["label"].shape) == ((4, 7), (4,))
    masked = random_batch(
        DatasetInfo(vocab_size=30, context=7), ("tokens", "words"), 4, torch.device("cpu")
    )
    assert masked["tokens"].shape == masked["words"].shape == (4, 8)
    pairs = random_batch(
        DatasetInfo(vocab_size=30, context=7), ("source", "target"), 4, torch.device("cpu")
    )
    # as a target with its end at both ends
    assert (pairs["source"].shape, pairs["target"].shape) == (
        (4, 7),
        (4, 8),
    )


ANIMALS, THINGS = (
    ["cat", "dog", "horse", "bird", "mouse"],
    ["table", "stone", "house", "lamp", "spoon"],
)


def sentences(count: int, seed: int) -> list[str]:
    """Lines 'text TAB label': does the animal come before the thing? Words alone do not say."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        pair = [rng.choice(ANIMALS), rng.choice(THINGS)]
        before = rng.random() < 0.5
        filler = " ".join(rng.choices(["the", "a", "very", "old"], k=rng.randint(0, 4)))
        words = pair if before else pair[::-1]
        rows.append(f"{words[0]} {filler} {words[1]}\t{'first' if before else 'second'}")
    return rows


SPEC = """\
model:
  type: encoder
  dim: 32
  pool: POOL
  position: {type: learned}
  init_std: 0.1
  blocks: [{mixer: {type: attention, num_heads: 2}, ffn: {type: gelu}}]
data:
  type: table
  train: [train.tsv]
  test: [test.tsv]
  text: [0]
  label: LABEL
  context: CONTEXT
  words: true
  tokenizer: {type: bpe, vocab_size: 320}
task: TASK
train: {steps: STEPS, batch_size: 32, optimizer: {lr: 3e-3}, precision: fp32,
  memory_format: contiguous, compile: "off"}
"""


def spec(path: str, **values: object) -> None:
    text = SPEC
    for name, value in values.items():
        text = text.replace(name, str(value))
    Path(path).write_text(text)


def test_labels_of_text_from_scratch_and_after_a_pretraining_without_labels(cli: Cli) -> None:
    Path("train.tsv").write_text("\n".join(sentences(1000, 0)))
    Path("test.tsv").write_text("\n".join(sentences(200, 1)))
    spec("scratch.yaml", POOL="cls", LABEL=1, CONTEXT=24, TASK="{type: classification}", STEPS=150)
    assert cli("pretrain", "scratch.yaml", "--dry-run").status == 0
    scratch = cli("pretrain", "scratch.yaml", "--out", "scratch")
    assert scratch.status == 0, scratch.err
    assert json.loads(cli("eval", "scratch", "--json").out)["accuracy"] > 0.9
    assert cli("bench", "scratch.yaml", "--seconds", 0.1).status == 0
    changes = (
        "--set",
        "task.metric=macro_f1",
        "--set",
        "data.val=[test.tsv]",
        "--set",
        "train.validate_every=5",
        "--set",
        "train.steps=15",
    )
    by_f1 = cli(
        "pretrain", "scratch.yaml", "--out", "by_f1", *changes, "--set", "train.keep_last=3"
    )
    assert by_f1.status == 0, by_f1.err
    records = [json.loads(line) for line in Path("by_f1/metrics.jsonl").read_text().splitlines()]
    seen = {r["step"]: r["val"]["macro_f1"] for r in records if "val" in r}
    assert (
        Path("by_f1/checkpoints/best").resolve().name
        == f"step-{max(seen, key=lambda step: seen[step]):08d}"
    )
    assert json.loads(cli("eval", "by_f1", "--json").out)["macro_f1"] == pytest.approx(seen[15])

    task = "{type: masked_lm, whole_words: true}"
    spec("masked.yaml", POOL="cls", LABEL="null", CONTEXT=40, TASK=task, STEPS=60)
    masked = cli("pretrain", "masked.yaml", "--out", "masked")
    assert masked.status == 0, masked.err
    spec("tune.yaml", POOL="cls", LABEL=1, CONTEXT=24, TASK="{type: classification}", STEPS=1)
    Path("tune.yaml").write_text(Path("tune.yaml").read_text().replace("lr: 3e-3", "lr: 1e-9"))
    # the model is the checkpoint's
    Path("tune.yaml").write_text("data:" + Path("tune.yaml").read_text().split("data:")[1])
    # too little for a vocabulary of its own
    Path("few.tsv").write_text("a b\tfirst\nb a\tsecond\n")
    plans = [
        cli(
            "finetune",
            "--from",
            "masked",
            "tune.yaml",
            "--dry-run",
            "--json",
            "--set",
            f"data.train=[{train}]",
            "--set",
            "train.batch_size=1",
        )
        for train in ("train.tsv", "few.tsv")
    ]
    assert all(plan.status == 0 for plan in plans), plans[0].err
    assert len({json.loads(plan.out)["parameters"] for plan in plans}) == 1
    tuned = cli("finetune", "--from", "masked", "tune.yaml", "--out", "tuned")
    assert tuned.status == 0, tuned.err
    assert "newly initialised, since the classes differ: head.weight, head.bias" in tuned.err
    before, after = (
        load_file(Path(run, "checkpoints/last/model.safetensors")) for run in ("masked", "tuned")
    )
    kept = [name for name in before if not name.startswith("head")]
    assert set(after) == {*kept, "head.weight", "head.bias"}
    for name in kept:
        torch.testing.assert_close(after[name], before[name], atol=1e-6, rtol=0)
    table = next(name for name in after if name.startswith("position"))
    assert after[table].shape[0] == 40  # all positions, though the context is shorter
    assert (
        Path("tuned/checkpoints/last/tokenizer.json").read_bytes()
        == Path("masked/checkpoints/last/tokenizer.json").read_bytes()
    )
    info = json.loads(Path("tuned/checkpoints/last/facts.json").read_text())
    assert (info["classes"], info["context"]) == (["first", "second"], 24)
    assert cli("eval", "tuned", "--json").status == 0
    longer = cli(
        "finetune",
        "--from",
        "masked",
        "tune.yaml",
        "--out",
        "tuned",
        "--resume",
        "--set",
        "train.steps=2",
    )
    assert longer.status == 0, longer.err  # the same command goes on
    assert "after step 1" in longer.err
