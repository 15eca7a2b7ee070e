"""A metric that is not a number is never the best, is null in what is written, and does not break
the curve.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Result
from torch import Tensor

from bigmodel_cli.console import strict_json
from bigmodel_cli.tasks.causal_lm import CausalLM
from bigmodel_cli.tasks.classification import Classification
from bigmodel_cli.train.observers.curve import About, draw_curve

Cli = Callable[..., Result]
SETS = ["--set", "train.validate_every=3", "--set", "train.steps=12"]


def strict(path: Path) -> Any:
    """JSON without NaN and infinities: an error where there are any."""

    def refuse(name: str) -> None:
        pytest.fail(f"{path} has {name}")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def spoil(
    monkeypatch: pytest.MonkeyPatch,
    kind: type,
    bad: Callable[[int], bool],
    value: float = float("nan"),
) -> None:
    """Let the loss of some validations (of one batch each, counted from 1) be no number."""
    honest, calls = kind.score, []  # type: ignore[attr-defined]

    def spoilt(self: Any, outputs: Any, batch: Any) -> Any:
        calls.append(1)
        scores, answers = honest(self, outputs, batch)
        if bad(len(calls)):
            for name in ("loss", "accuracy"):
                sums, counts = scores[name]
                scores[name] = (sums * value if isinstance(sums, Tensor) else sums, counts)
        return scores, answers

    monkeypatch.setattr(kind, "score", spoilt)


@pytest.mark.curve
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_the_first_validation_is_not_a_number(
    value: float, decoder_spec: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, CausalLM, lambda call: call == 1, value)
    result = cli("pretrain", decoder_spec, "--out", "run", *SETS, "--set", "train.keep_best=3")
    assert result.status == 0, result.err
    assert Path("run/curve.png").stat().st_size > 1000
    validations = [r for r in strict(Path("run/metrics.jsonl")) if "val" in r]
    assert [r["step"] for r in validations] == [3, 6, 9, 12]
    assert validations[0]["val"]["loss"] is None
    losses = [r["val"]["loss"] for r in validations[1:]]
    best = 6 + 3 * losses.index(min(losses))
    assert os.readlink("run/checkpoints/best") == f"step-{best:08d}"
    state = json.loads(Path("run/checkpoints/last/state.json").read_text())
    assert state["scores"]["3"] is None
    assert state["best"] == min(losses)
    kept = sorted(int(p.name[5:]) for p in Path("run/checkpoints").glob("step-*"))
    assert kept == [6, 9, 12]  # the three best; step 3 is none of them


def test_patience_counts_a_validation_that_is_not_a_number(
    decoder_spec: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, CausalLM, lambda call: call != 2)
    words = [
        *SETS,
        "--set",
        "train.patience=2",
        "--set",
        "train.steps=60",
        "--set",
        "train.checkpoint_every=50",
    ]
    result = cli("pretrain", decoder_spec, "--out", "run", *words)
    assert result.status == 0
    assert "stopping early: 2 validations without a better loss" in result.err
    assert result.out.strip() == "run/checkpoints/step-00000006"  # not a number at 3, 9 and 12


def test_every_validation_is_not_a_number(
    decoder_spec: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, CausalLM, lambda call: True)
    words = [
        *SETS,
        "--set",
        "train.patience=3",
        "--set",
        "train.steps=60",
        "--set",
        "train.checkpoint_every=50",
    ]
    result = cli("pretrain", decoder_spec, "--out", "run", *words)
    assert result.status == 0
    assert (
        "loss was not a finite number in any validation; the result is the last checkpoint"
        in result.err
    )
    assert result.out.strip() == "run/checkpoints/step-00000009"
    assert len([r for r in strict(Path("run/metrics.jsonl")) if "val" in r]) == 3
    assert not Path("run/checkpoints/best").exists()
    assert cli("eval", "run", "--json", "--split", "val").status == 0


def test_a_metric_that_is_better_when_higher(
    cnn_spec: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, Classification, lambda call: call in (1, 2))
    result = cli("pretrain", cnn_spec, "--out", "run", *SETS)
    assert result.status == 0, result.err
    values = [r["val"]["accuracy"] for r in strict(Path("run/metrics.jsonl")) if "val" in r]
    assert values[0] is None
    later = {3 * (i + 1): v for i, v in enumerate(values) if v is not None}
    assert (
        os.readlink("run/checkpoints/best")
        == f"step-{max(later, key=lambda s: (later[s], -s)):08d}"
    )


def test_eval_prints_null_for_what_is_not_a_number(
    decoder_spec: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = cli("pretrain", decoder_spec, "--out", "run", *SETS).out.strip()
    spoil(monkeypatch, CausalLM, lambda call: True)
    result = cli("eval", path, "--split", "val", "--json", "--predictions", "samples.jsonl")
    assert result.status == 0, result.err
    values = json.loads(result.out, parse_constant=lambda name: pytest.fail(name))
    assert values["loss"] is None
    assert values["metrics"]["perplexity"]["value"] is None
    assert strict(Path("samples.jsonl"))[0]["scores"]["loss"] is None
    assert "not known" in cli("eval", path, "--split", "val").out


def test_strict_json() -> None:
    values = {
        "a": [1.5, float("nan"), (float("inf"), 2)],
        "b": {"c": -float("inf")},
        "d": "NaN",
        "e": True,
    }
    assert json.loads(strict_json(values)) == {
        "a": [1.5, None, [None, 2]],
        "b": {"c": None},
        "d": "NaN",
        "e": True,
    }


@pytest.mark.parametrize(
    "lines",
    [
        ['{"step": 1, "val": {"loss": null, "accuracy": null}}'],
        ['{"step": 1, "val": {}}', '{"step": 2, "val": {"accuracy": 0.5, "loss": null}}'],
        [
            '{"step": 1, "lr": 0.1}',
            '{"step": 2, "loss": 1.0}',
            '{"step": 2, "val": {"loss": 1.0, "accuracy": 0.5}}',
        ],
    ],
)
def test_a_curve_with_gaps(lines: list[str], tmp_path: Path) -> None:
    log, picture = tmp_path / "log.jsonl", tmp_path / "curve.png"
    log.write_text("\n".join(lines) + "\n")
    draw_curve(log, picture, About("$a_b$", "accuracy", True, ["accuracy"], 1.0))
    assert picture.exists() == (len(lines) > 1)
