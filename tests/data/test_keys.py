"""Every form of data gives each row its key, whatever is beside it, and hides it from users."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from tones import write

from bigmodel_cli.data import DataOptions, open_data
from bigmodel_cli.data.base import DataSet
from bigmodel_cli.data.batches import join
from bigmodel_cli.data.order import keys_of
from bigmodel_cli.recipe import TrainOptions
from bigmodel_cli.train.batches import micro_batches

PATTERN = r"(?P<label>\w+)_(?P<speaker>\w+)_(?P<index>\d+)\.wav$"
SOUND: dict[str, Any] = {
    "type": "audio",
    "files": ["sounds"],
    "rate": 8000,
    "mels": 8,
    "pattern": PATTERN,
}
TABLE: dict[str, Any] = {
    "type": "table",
    "train": ["rows.tsv"],
    "text": [0],
    "tokenizer": {"type": "bytes"},
    "context": 9,
}
FORMS: dict[str, dict[str, Any]] = {
    "text": {
        "type": "text",
        "files": ["text.txt"],
        "context": 6,
        "tokenizer": {"type": "characters"},
    },
    "table": {**TABLE, "label": 1},
    "table without labels": {**TABLE, "token_dropout": 0.5, "words": True},
    "numbers": {**TABLE, "train": ["more.tsv"], "targets": [1, 2]},
    "sets": {**TABLE, "train": ["more.tsv"], "label": 3, "label_separator": "+"},
    "pairs": {
        "type": "pairs",
        "source": ["a.txt"],
        "target": ["b.txt"],
        "tokenizer": {"type": "bytes"},
        "context": 30,
    },
    "images": {"type": "digits", "augment": [{"type": "RandomCrop", "padding": 1}]},
    "sound": {**SOUND, "augment": [{"type": "noise"}]},
    "numbers of sound": {**SOUND, "targets": ["index"]},
    "strings of sound": {**SOUND, "units": "words", "join": {"least": 1, "most": 3}},
}


def opened(name: str) -> DataSet:
    """Data of this form, from files that are written here."""
    Path("text.txt").write_text("to be or not to be, that is the question " * 30)
    Path("rows.tsv").write_text(
        "".join(f"{'a word ' * (n % 4 + 1)}\tn{n % 2}\n" for n in range(40))
    )
    Path("more.tsv").write_text(
        "".join(f"{'a word ' * (n % 4)}\t{n / 8}\t{-n}e3\t{'a+b+c'[: n % 6]}\n" for n in range(40))
    )
    Path("a.txt").write_text("".join(f"line {'x' * n}\n" for n in range(20)))
    Path("b.txt").write_text("".join(f"{'y' * (20 - n)}\n" for n in range(20)))
    if "sound" in name:
        write()
    options: Any = TypeAdapter(DataOptions).validate_python(FORMS[name])
    return open_data(options, base=Path(), say=[].append)


@pytest.mark.parametrize("name", FORMS)
def test_each_row_has_the_key_of_seed_epoch_and_sample(name: str) -> None:
    data = opened(name)
    assert "key" not in data.names()
    split = data.split("train")
    samples = np.array([5, 2, 0, 7])
    for epoch, seed, augment in ((0, 0, False), (3, 11, True)):
        batch = split.batch(samples, epoch, seed, augment)
        assert batch["key"].dtype == torch.int64
        assert torch.equal(batch["key"], keys_of(seed, epoch, samples))
        alone = join([split.batch(samples[i : i + 1], epoch, seed, augment) for i in range(4)])
        assert alone.keys() == batch.keys()
        # what is beside a row changes nothing of it
        for part, whole in ((alone[k], batch[k]) for k in batch):
            torch.testing.assert_close(part, whole, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["text", "table", "images", "pairs"])
def test_micro_batches_hold_the_same_rows_as_the_whole(name: str) -> None:
    split = opened(name).split("train")
    large, small = (
        micro_batches(split, TrainOptions(steps=1, batch_size=12, micro_batch_size=m, seed=4))
        for m in (12, 3)
    )
    reach = len(split) // 12 + 2  # into the next epoch
    for k in range(reach):
        parts = join([small[4 * k + i] for i in range(4)])
        assert torch.equal(parts["key"], large[k]["key"])
        if name == "images":
            torch.testing.assert_close(parts["image"], large[k]["image"])


def test_batches_by_tokens_hold_every_row_of_an_epoch_once() -> None:
    split = opened("pairs").split("train")
    batches = micro_batches(split, TrainOptions(steps=1, batch_tokens=90, seed=4))
    count = int(batches.per_epoch)
    for epoch in (0, 2):
        keys = torch.cat([batches[epoch * count + k]["key"] for k in range(count)])
        assert torch.equal(
            keys.sort().values, keys_of(4, epoch, np.arange(len(split))).sort().values
        )
