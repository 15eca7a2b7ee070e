"""`bigmodel merge A B`: the mean of weights, what it is measured on, and what has no mean."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from safetensors.numpy import load_file

Cli = Callable[..., Any]
SPEC = """
model: {type: encoder, dim: 8, dropout: 0.1, blocks: [{mixer: {type: attention, num_heads: 2}}]}
data: {type: table, train: [rows.csv], val: [more.csv], text: [text], label: kind, context: 12,
  tokenizer: characters}
task: classification
train: {steps: 3, batch_size: 8, precision: fp32, compile: 'off', memory_format: contiguous,
  optimizer: {type: adamw, lr: 1e-2}}
"""


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    rows = "".join(f"{'ab' * (i % 4)}{i % 3},{'xyz'[i % 3]}\n" for i in range(30))
    (tmp_path / "rows.csv").write_text(f"text,kind\n{rows}")
    (tmp_path / "more.csv").write_text(f"text,kind\n{rows}q,x\n")
    (tmp_path / "spec.yaml").write_text(SPEC)
    return tmp_path / "spec.yaml"


@pytest.fixture
def runs(cli: Cli, spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Three runs that began with the same weights."""
    monkeypatch.chdir(tmp_path)
    assert cli("pretrain", spec, "--out", tmp_path / "start").status == 0
    more = ["--from", tmp_path / "start", "--out", tmp_path / "run"]
    done = cli("finetune", spec, *more, "--seeds", "1,2,3", "--set", "train.steps=4")
    assert done.status == 0, done.err
    return str(done.out).split()


def test_the_average_is_the_mean_of_the_weights(cli: Cli, runs: list[str], tmp_path: Path) -> None:
    done = cli("merge", *runs, "--out", tmp_path / "mean", "--json")
    assert done.status == 0, done.err
    values = json.loads(done.out)
    each = [load_file(Path(run) / "model.safetensors") for run in runs]
    mean = load_file(tmp_path / "mean" / "model.safetensors")
    assert mean.keys() == each[0].keys()
    for name, tensor in mean.items():
        wanted = sum(w[name].astype("float64") for w in each) / 3
        assert abs(tensor - wanted).max() <= 1e-7
    for run, found in zip(runs, values["each"], strict=True):
        alone = json.loads(cli("eval", run, "--split", "val", "--json").out)
        assert found["loss"]["value"] == pytest.approx(alone["loss"], rel=1e-6)
    again = json.loads(cli("eval", tmp_path / "mean", "--split", "val", "--json").out)
    assert values["average"]["loss"]["value"] == pytest.approx(again["loss"], rel=1e-6)
    assert "note" not in values


def test_paths_may_come_by_a_pipe(
    cli: Cli, runs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stdin:
        class buffer:
            @staticmethod
            def read() -> bytes:
                return "\n".join(runs[:2]).encode() + b"\n"

    monkeypatch.setattr("sys.stdin", Stdin)
    done = cli("merge", "-", "--out", tmp_path / "mean")
    assert done.status == 0, done.err
    assert done.out.strip() == str(tmp_path / "mean")
    assert "the mean of the weights of 2 checkpoints" in done.err
    assert "accuracy" in done.err


def test_other_starts_are_doubted(cli: Cli, spec: Path, runs: list[str], tmp_path: Path) -> None:
    other = cli("pretrain", spec, "--out", tmp_path / "other", "--set", "train.seed=7").out.strip()
    done = cli("merge", runs[0], other, "--out", tmp_path / "mean")
    assert done.status == 0
    assert "do not name one start" in done.err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["model.dim=16"], "its model differ"),
        (["data.tokenizer=bytes"], "its labels and facts of the data differ"),
        (["adapter={type: lora, rank: 2, targets: ['*.qkv']}"], "it has an adapter"),
        (["model.blocks=[{mixer: {type: attention, num_heads: 4}}]"], "its model differ"),
    ],
)
def test_what_has_no_mean_is_refused(
    cli: Cli, spec: Path, runs: list[str], tmp_path: Path, change: list[str], said: str
) -> None:
    sets = [word for c in change for word in ("--set", c)]
    if "adapter" in change[0]:
        other = cli("finetune", spec, "--from", runs[0], "--out", tmp_path / "other", *sets)
    else:
        other = cli("pretrain", spec, "--out", tmp_path / "other", *sets)
    assert other.status == 0, other.err
    done = cli("merge", runs[0], other.out.strip(), "--out", tmp_path / "mean")
    assert done.status == 2
    assert said in done.err
    assert not (tmp_path / "mean").exists()


def test_the_same_twice_and_options_of_one_are_refused(
    cli: Cli, runs: list[str], tmp_path: Path
) -> None:
    done = cli("merge", runs[0], runs[0], "--out", tmp_path / "mean")
    assert done.status == 2
    assert "named twice" in done.err
    done = cli("merge", *runs, "--out", tmp_path / "mean", "--dtype", "bf16")
    assert done.status == 2
    assert "--dtype has no effect on an average" in done.err


def test_running_statistics_have_no_mean(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    paths = []
    for seed in (1, 2):
        done = cli(
            "pretrain",
            ROOT / "sample_configs" / "digits_cnn.yaml",
            "--out",
            tmp_path / str(seed),
            "--set",
            f"train.seed={seed}",
            "--set",
            "train.steps=1",
            "--set",
            "train.epochs=null",
            "--set",
            "model.layers.0.norm=batch",
        )
        assert done.status == 0, done.err
        paths.append(done.out.strip())
    done = cli("merge", *paths, "--out", tmp_path / "mean")
    assert done.status == 2
    assert "running statistics" in done.err
    assert (
        "take the best of them (bigmodel eval RUN), or average the checkpoints of one" in done.err
    )
