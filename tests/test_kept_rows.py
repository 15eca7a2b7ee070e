"""A new task's classes take the rows of the head that the checkpoint has for their names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from bigmodel_cli import checkpoints
from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.labels import kept_rows

Cli = Callable[..., Any]
HEAD = ("layers.4.dense.weight", "layers.4.dense.bias")


def weights_of(path: str) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = checkpoints.read(Path(path), train_state=False).model.load()
    return found


def folder_of(name: str, labels: tuple[str, ...]) -> None:
    for number, label in enumerate(labels):
        Path(name, label).mkdir(parents=True)
        for index in range(6):
            Image.new("L", (8, 8), 20 * number + index).save(f"{name}/{label}/{index}.png")


@pytest.mark.parametrize("labels", [("ant", "3", "7", "zoo"), ("9", "0")])
def test_rows_are_kept_by_name(labels: tuple[str, ...], cnn_spec: Path, cli: Cli) -> None:
    base = cli("pretrain", cnn_spec, "--out", "cnn", "--set", "train.steps=3").out.strip()
    folder_of("pets", labels)
    Path("pets.yaml").write_text(
        "data: {type: image_folder, root: pets, channels: 1}\n"
        "train: {steps: 1, batch_size: 4, optimizer: {type: sgd, lr: 1.0e-12, momentum: 0}}\n"
    )
    result = cli("finetune", "--from", base, "pets.yaml", "--out", "tuned")
    assert result.status == 0, result.err
    before, after = weights_of(base), weights_of(result.out.strip())
    kept = [name for name in labels if name.isdigit()]
    assert f"the head's rows of {', '.join(sorted(kept))} are the checkpoint's" in result.err
    for number, label in enumerate(sorted(labels)):
        for name in HEAD:
            row = after[name][number]
            if label in kept:
                torch.testing.assert_close(row, before[name][int(label)], rtol=0, atol=1e-9)
            else:
                assert not any(torch.equal(row, other) for other in before[name])
    assert ("newly initialised: ant, zoo" in result.err) == ("ant" in labels)


def test_other_names_get_a_new_head(cnn_spec: Path, cli: Cli) -> None:
    base = cli("pretrain", cnn_spec, "--out", "cnn", "--set", "train.steps=2").out.strip()
    folder_of("pets", ("cat", "dog"))
    Path("pets.yaml").write_text(
        "data: {type: image_folder, root: pets, channels: 1}\ntrain: {steps: 1, batch_size: 4}\n"
    )
    result = cli("finetune", "--from", base, "pets.yaml")
    assert "newly initialised, since the classes differ: layers.4" in result.err


def test_names_that_are_written_in_two_ways_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    model: Any = torch.nn.Linear(2, 3)
    before = ("New_York", "caf\u00e9", "1.0", "-1", "same")
    now = ("new york", "cafe\u0301", "10", "1", "same")
    infos = [DatasetInfo(classes=names) for names in (now, before)]
    model.output_layers = lambda: ()
    assert kept_rows(model, infos[0], infos[1], {}) == {}
    said = capsys.readouterr().err
    assert "'new york' is not 'New_York', 'cafe\\u0301' is not 'caf\\xe9'" in said
    assert "10" not in said
    assert "same'" not in said
