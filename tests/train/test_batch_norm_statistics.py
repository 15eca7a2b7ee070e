"""Batch normalisation's statistics under averages of weights: taken anew for `average_last` as
`torch.optim.swa_utils.update_bn` takes them, and else said.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from conftest import Result

from bigmodel_cli.data import open_data
from bigmodel_cli.loaded import load_checkpoint
from bigmodel_cli.train.batches import micro_batches


def test_the_mean_of_checkpoints_has_the_statistics_that_update_bn_gives(
    cli: Callable[..., Result], cnn_spec: Path
) -> None:
    sets = ("train.average_last=2", "train.ema=null", "train.batch_size=24", "train.steps=8")
    done = cli("pretrain", cnn_spec, "--out", "run", *(w for s in sets for w in ("--set", s)))
    assert done.status == 0, done.err
    assert "statistics of batch normalisation: anew, over 50 training batches" in done.err
    assert "in training, which differ" not in done.err
    loaded = load_checkpoint(Path("run/checkpoints/average"), "cpu", [])
    data = open_data(loaded.spec.data, base=Path(), say=print, assets=loaded.files())
    stream = micro_batches(data.split("train"), loaded.spec.train)
    (norm,) = [m for m in loaded.model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    found = norm.running_mean.clone(), norm.running_var.clone()
    torch.optim.swa_utils.update_bn((stream[k]["image"] for k in range(50)), loaded.model)
    torch.testing.assert_close(found, (norm.running_mean, norm.running_var))


def test_it_is_said_that_statistics_are_not_those_of_a_moving_average(
    cli: Callable[..., Result], cnn_spec: Path
) -> None:
    done = cli("pretrain", cnn_spec, "--out", "run", "--set", "train.steps=1")
    assert "averaged weights with the running statistics of those in training" in done.err
