"""What a resumed run says about how its layers draw."""

from __future__ import annotations

import pytest
import torch

from bigmodel_cli.recipe import TrainOptions
from bigmodel_cli.train.passes import GENERATOR, ROWS, drawn_by
from bigmodel_cli.train.remarks import say_draws

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def options(**changes: object) -> TrainOptions:
    return TrainOptions.model_validate({"steps": 1, "compile": "off", **changes})


def test_rows_draw_but_in_compiled_networks_and_alone_on_a_gpu() -> None:
    assert drawn_by(options(), CPU) == ROWS
    assert drawn_by(options(compile="on"), CPU) == GENERATOR
    assert drawn_by(options(), CUDA) == GENERATOR
    assert drawn_by(options(deterministic=True), CUDA) == ROWS


def test_another_way_of_drawing_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    say_draws(ROWS, ROWS)
    assert capsys.readouterr().err == ""
    say_draws(GENERATOR, ROWS)
    assert "drawn by the samples' keys, before this resume in another" in capsys.readouterr().err
