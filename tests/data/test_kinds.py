"""The kinds of input and target: what they give at random has the names, shapes and types of real
batches of every form of data.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from test_keys import FORMS, opened

from bigmodel_cli.data import input_of, random_batch, target_of

READS = {
    "text": ("tokens",),
    "table": ("label",),
    "table without labels": ("tokens", "words"),
    "numbers": ("numbers",),
    "sets": ("labels",),
    "pairs": ("source", "target"),
    "images": ("label",),
    "sound": ("label",),
    "numbers of sound": ("numbers",),
    "strings of sound": ("frames", "lengths", "target"),
}
"""What the task of each form reads."""
TARGETS = {"table": "label", "images": "label", "sound": "label", "strings of sound": "target"}
TARGETS |= {"numbers": "numbers", "sets": "labels", "numbers of sound": "numbers"}


@pytest.mark.parametrize("name", sorted(FORMS))
def test_random_batches_look_like_real_ones(name: str) -> None:
    data = opened(name)
    real = data.split("train").batch(np.arange(3), 0, 0, False)
    made = random_batch(data.info, READS[name], 3, torch.device("cpu"))
    assert made.keys() == real.keys()
    for key, tensor in made.items():
        assert (tensor.dtype, tensor.dim(), len(tensor)) == (
            real[key].dtype,
            real[key].dim(),
            3,
        ), key
        assert tensor.shape[2:] == real[key].shape[2:], key
        if key in ("tokens", "words", "image"):
            # as long as the context, where real rows may be shorter
            assert tensor.shape[1] >= real[key].shape[1], key
    bound = (
        data.info.vocab_size if name in ("text", "table", "table without labels", "pairs") else None
    )
    for key in ("tokens", "source", "target"):
        if key in made and bound is not None:
            assert 0 <= int(made[key].min()) <= int(made[key].max()) < bound


@pytest.mark.parametrize("name", sorted(FORMS))
def test_a_kind_says_how_its_items_are_given_and_how_long_they_are(name: str) -> None:
    data = opened(name)
    kind, target = input_of(data.info), target_of(data.info)
    rows = data.split("train").longest_rows()
    assert kind.in_files == ("sound" in name or name == "images")
    assert kind.one_size == (kind.pixels > 0) == (name == "images")
    assert len(rows) == {"text": 0, "images": 0, "pairs": 2}.get(name, 1)
    assert (target.name if target is not None else None) == TARGETS.get(name)


def test_the_reader_of_a_kind_prepares_a_recording_as_training_does(tmp_path: Path) -> None:
    data = opened("sound")
    path = sorted(Path("sounds").iterdir())[0]
    reader = input_of(data.info).reader(None, {})  # type: ignore[arg-type]
    given = reader.batch([reader.read(str(path), "the recording")[0]])
    rows = [
        data.split(s).batch(np.arange(len(data.split(s))), 0, 0, False)["frames"]
        for s in data.splits
    ]
    length = int(given["lengths"][0])
    assert any(torch.allclose(row[:length], given["frames"][0]) for split in rows for row in split)
