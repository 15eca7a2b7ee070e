"""What is new in a finetuning, or belongs to its checkpoint, has a value that means something."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Result
from safetensors.torch import load_file

from bigmodel_cli import checkpoints
from bigmodel_cli.convert import opening

Cli = Callable[..., Result]
SPEC = """
model:
  type: cnn
  layers:
    - {type: whiten, kernel: 2}
    - {type: conv, channels: 6, padding: 1, norm: batch}
    - {type: flatten}
    - {type: dense, units: classes}
data: {type: digits, normalize: none}
task: {type: classification}
train: {steps: 2, batch_size: 20, validate_every: 2, precision: fp32}
"""


@pytest.fixture
def raw(cli: Cli, tmp_path: Path) -> Path:
    """A run on images that are not normalised, and beside it a spec that says nothing of that."""
    (tmp_path / "raw.yaml").write_text(SPEC)
    (tmp_path / "auto.yaml").write_text(SPEC.replace(", normalize: none", ""))
    assert cli("pretrain", tmp_path / "raw.yaml", "--out", tmp_path / "raw").status == 0
    return tmp_path / "raw"


def tuned(cli: Cli, raw: Path, *changes: str) -> Result:
    sets = [word for change in changes for word in ("--set", change)]
    out = raw.with_name("tuned")
    return cli("finetune", "--from", raw, raw.with_name("auto.yaml"), "--out", out, *sets)


def test_images_stay_as_the_checkpoint_reads_them(cli: Cli, raw: Path) -> None:
    assert tuned(cli, raw).status == 0
    runs = (checkpoints.find(path) for path in (raw, raw.with_name("tuned")))
    facts = [opening.read(run).info["mean"] for run in runs]
    assert facts == [[], []]


def test_statistics_that_nothing_would_take_are_refused(cli: Cli, raw: Path) -> None:
    out = 'init.leave_out=["layers.1.norm.running_*"]'
    found = tuned(cli, raw, out, 'init.freeze=["layers.1.*"]')
    assert found.status == 2
    assert "layers.1.norm.running_mean, layers.1.norm.running_var" in found.err
    assert tuned(cli, raw, out).status == 0


def test_a_new_whitening_beside_an_adapter_learns_its_axes(cli: Cli, raw: Path) -> None:
    saved = "modules_to_save: [layers.0.whiten]"
    adapter = f"adapter={{type: lora, rank: 1, targets: ['layers.*.dense'], {saved}}}"
    found = tuned(cli, raw, 'init.leave_out=["layers.0.*"]', adapter)
    assert found.status == 0, found.err
    folder = raw.with_name("tuned") / "checkpoints" / "last"
    weights = {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}
    axes = next(tensor for name, tensor in weights.items() if name.endswith("whiten.weight"))
    assert float((axes - torch.eye(4).repeat(2, 1).view(8, 1, 2, 2)).abs().max()) > 0.1
