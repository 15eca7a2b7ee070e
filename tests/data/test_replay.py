"""Replay: how many items of the data before are among the new ones, which, and in what batches."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bigmodel_cli.convert import opening
from bigmodel_cli.data import FACTS, open_data, with_replay
from bigmodel_cli.data.base import Split
from bigmodel_cli.data.chat.options import ChatOptions
from bigmodel_cli.data.replay import Replay
from bigmodel_cli.data.text.table import TableOptions
from bigmodel_cli.spec import of_checkpoint
from bigmodel_cli.train.batches import BySamples, ByTokens

Cli = Callable[..., Any]


def rows_of(name: str, count: int, word: str) -> Split:
    """A split of labelled rows of one to five words."""
    rows = (f"{' '.join([word] * (1 + i % 5))} {chr(97 + i % 7)}\t{i % 2}" for i in range(count))
    Path(name).write_text("\n".join(rows))
    options = TableOptions.model_validate(
        {"train": [name], "val_fraction": 0, "text": [0], "label": 1, "context": 40}
        | {"tokenizer": {"type": "bytes"}}
    )
    return open_data(options, base=Path(), say=lambda _: None).split("train")


def words(batch: dict[str, torch.Tensor]) -> list[bytes]:
    """The text of each row."""
    return [bytes(t for t in row if 0 <= t < 256) for row in batch["tokens"].tolist()]


@pytest.mark.parametrize("by_tokens", [False, True])
def test_an_epoch_has_all_new_items_and_the_share(by_tokens: bool) -> None:
    new, before = rows_of("new.tsv", 42, "x"), rows_of("old.tsv", 31, "yy")
    mixed = Replay(new, before, 0.25)
    assert len(mixed) == 42 + 14
    assert mixed.lengths is not None
    stream: Any = ByTokens(mixed, mixed.lengths, 90, 3) if by_tokens else BySamples(mixed, 8, 3)
    found: list[list[bytes]] = []
    at = 0
    for _ in range(2):
        texts: list[bytes] = []
        while len(texts) < len(mixed):
            batch = stream[at]
            lengths = (batch["tokens"] >= 0).sum(1)
            assert batch["tokens"].shape[1] == lengths.max()
            texts += words(batch)
            at += 1
        found.append(texts)
    for texts in found:
        counts = Counter(text[:1] for text in texts)
        assert counts == {b"x": 42, b"y": 14}
        every = Counter(words(new.batch(np.arange(42), 0, 0, False)))
        assert Counter(text for text in texts if text.startswith(b"x")) == every


def test_a_batch_keeps_the_order_asked_for_and_its_labels() -> None:
    new, before = rows_of("new.tsv", 20, "x"), rows_of("old.tsv", 50, "yy")
    mixed = Replay(new, before, 0.5)
    asked = np.array([21, 3, 39, 0, 20, 19])
    batch = mixed.batch(asked, 1, 5, True)
    assert [text[:1] for text in words(batch)] == [b"y", b"x", b"y", b"x", b"y", b"x"]
    alone = new.batch(asked[[1, 3, 5]], 1, 5, True)
    assert words(batch)[1::2] == words(alone)
    assert batch["label"][1::2].tolist() == alone["label"].tolist() == [1, 0, 1]
    for text, label in zip(words(batch)[::2], batch["label"][::2].tolist(), strict=True):
        position = [words(before.batch(np.array([i]), 0, 0, False))[0] for i in range(50)]
        assert label in {i % 2 for i, other in enumerate(position) if other == text}


def test_a_resumed_run_replays_the_same_items(decoder_spec: Path, cli: Cli) -> None:
    base = cli("pretrain", decoder_spec, "--out", "base", "--set", "train.steps=2").out.strip()
    Path("new.txt").write_text(" ".join(["all", "you", "need"] * 200))
    changes = ["data.files=[new.txt]", "data.replay={share: 0.4}", "train.steps=4"]
    options = [w for c in changes for w in ("--set", c)]
    result = cli("finetune", "--from", base, "--out", "tuned", *options)
    assert result.status == 0, result.err
    assert "replay: " in result.err
    stopped = cli("finetune", "--from", base, "--out", "two", *options, "--set", "train.steps=2")
    assert stopped.status == 0
    resumed = cli("finetune", "--resume", "--out", "two", "--set", "train.steps=4")
    assert resumed.status == 0, resumed.err
    ends = [Path(run, "metrics.jsonl").read_text().splitlines() for run in ("tuned", "two")]
    losses = [
        {r["step"]: r["loss"] for r in map(json.loads, lines) if "loss" in r} for lines in ends
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ("{share: 1.0}", "less than 1"),
        ("{spec: nowhere.yaml}", "nowhere.yaml: no such file"),
        ("{share: 0.2}", "there is no initial checkpoint"),
    ],
)
def test_what_cannot_be_replayed_is_refused(
    change: str, fault: str, decoder_spec: Path, cli: Cli
) -> None:
    result = cli("pretrain", decoder_spec, "--set", f"data.replay={change}")
    assert result.status == 2
    assert fault in result.err


def test_running_text_is_replayed_among_conversations(decoder_spec: Path, cli: Cli) -> None:
    changes = ["data.tokenizer=bytes", "train.steps=2", "model.max_len=90"]
    words = [w for c in changes for w in ("--set", c)]
    base = cli("pretrain", decoder_spec, "--out", "base", *words)
    rows = [{"prompt": f"p{i}", "completion": "ab" * (1 + i % 3)} for i in range(12)]
    Path("chats.jsonl").write_text("\n".join(map(json.dumps, rows)))
    values = {"type": "chat", "train": ["chats.jsonl"], "val_fraction": 0, "context": 90}
    values |= {"tokenizer": {"type": "bytes"}, "packing": True}
    chat = open_data(ChatOptions.model_validate(values), base=Path(), say=lambda _: None)
    text = of_checkpoint(opening.read_spec(found := opening.find(Path(base.out.strip()))), found)
    known = {**chat.assets(), FACTS: json.dumps(chat.info.to_json()).encode()}
    before = open_data(text.data, base=Path(), say=lambda _: None, assets=known, only="train")
    mixed = with_replay(chat, before, 0.5).split("train")
    batch = mixed.batch(np.array([0, len(mixed) - 1]), 0, 0, True)
    mask, tokens = batch["loss_mask"], batch["tokens"]
    real = (tokens >= 0).sum(1)
    assert 0 < int(mask[0].sum()) < int(real[0])  # the answers alone
    assert bool((mask[1] & (tokens[1] >= 0)).sum() == real[1])  # all of the text
    assert int(batch["segments"][0].max()) > 0
    assert set(batch["segments"][1][: int(real[1])].tolist()) == {0}
    spec = "\n".join((
        "data: {type: chat, train: [chats.jsonl], context: 90, tokenizer: bytes, packing: true,"
        " replay: {share: 0.4}}",
        "train: {steps: 3, batch_size: 3}",
    ))  # fmt: skip
    Path("chat.yaml").write_text(spec)
    result = cli("finetune", "--from", base.out.strip(), "chat.yaml")
    assert result.status == 0, result.err


def test_old_items_of_classes_that_are_gone_are_refused_by_place(cli: Cli) -> None:
    rows_of("old.tsv", 40, "x")
    Path("new.tsv").write_text("\n".join(f"w{i} v\t{1 + i % 2}" for i in range(40)))
    options = "val_fraction: 0, text: [0], label: 1, context: 40, tokenizer: bytes"
    for name in ("old", "new"):
        Path(f"{name}.yaml").write_text(
            "model: {type: encoder, dim: 8, blocks: [{mixer: {type: attention, num_heads: 2}}]}\n"
            f"data: {{type: table, train: [{name}.tsv], {options}}}\ntask: classification\n"
            "train: {steps: 1, batch_size: 4}\n"
        )
    result = cli("pretrain", "new.yaml", "--set", "data.replay={share: 0.2, spec: old.yaml}")
    assert result.status == 2
    assert "data.replay: old.yaml, read as the new data is: " in result.err
    assert "classes that the checkpoint does not know: '0'" in result.err
