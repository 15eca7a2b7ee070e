"""Runs with an adapter: small checkpoints, exact resumes, merging, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Result, digests
from safetensors.torch import load_file
from tampered import sign

from bigmodel_cli import checkpoints
from bigmodel_cli.convert import opening
from bigmodel_cli.loaded import load_checkpoint
from bigmodel_cli.yaml_scalars import dump_yaml
from bigmodel_cli.yaml_source import parse_yaml

Cli = Callable[..., Result]
KINDS = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("lora", "dora")] + ["pissa"]
FINETUNE = """\
train:
  steps: 6
  batch_size: 4
  micro_batch_size: 2
  precision: fp32
  compile: "off"
  validate_every: 3
  log_every: 1
  ema: 0.8
  max_grad_norm: 0.5
  optimizer: {type: muon, lr: 0.02, weight_decay: 0.1}
adapter:
  type: KIND
  rank: 3
  dropout: 0.1
  targets: ["*.qkv.q", "*.qkv.v", "*.ffn", embedding]
  modules_to_save: [norm]
"""


@pytest.fixture
def spec(tmp_path: Path) -> Callable[..., Path]:
    def write(kind: str = "lora", **replaced: str) -> Path:
        text = FINETUNE.replace("KIND", kind)
        for name, value in replaced.items():
            lines = [
                f"{line.split(name)[0]}{name}: {value}"
                if line.strip().startswith(f"{name}:")
                else line
                for line in text.splitlines()
            ]
            text = "\n".join(lines)
        path = tmp_path / "ft.yaml"
        path.write_text(text)
        return path

    return write


def finetuned(cli: Cli, base: Path, spec: Path, *more: object, out: str = "run") -> Path:
    result = cli("finetune", "--from", base, spec, "--out", out, *more)
    assert result.status == 0, result.err
    return Path(result.out.strip())


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_is_the_same_to_the_bit(
    kind: str, cli: Cli, base: Path, spec: Callable[..., Path]
) -> None:
    whole = finetuned(cli, base, spec(kind))
    half = finetuned(cli, base, spec(kind), "--set", "train.steps=3", out="again")
    assert half.name == "step-00000003"
    result = cli("finetune", "--resume", "--out", "again", "--set", "train.steps=6")
    assert result.status == 0, result.err
    assert digests(Path(result.out.strip())) == digests(whole)


def test_checkpoints_hold_what_is_trained_and_work_as_any(
    cli: Cli, base: Path, spec: Callable[..., Path]
) -> None:
    path = finetuned(cli, base, spec())
    stored = load_file(path / "model.safetensors")
    before = load_file(base / "model.safetensors")
    assert all(".0.parts." in name or name.startswith("norm.") for name in stored)
    assert not any(torch.equal(stored[n], before[n]) for n in stored.keys() & before.keys())
    state = json.loads((path / "state.json").read_text())
    assert not Path(state["base"]["path"]).is_absolute()
    train = load_file(path / "train_state.safetensors")
    assert not any("original" in name or "mixer_norm" in name for name in train)
    loaded = load_checkpoint(path, "cpu", tell=lambda _: None)
    weights = loaded.model.state_dict()
    for name, tensor in before.items():
        if name in weights and not name.startswith("norm."):
            assert torch.equal(weights[name], tensor)
    for command in (["eval", path], ["predict", path, "a rose"], ["attend", path, "a rose"]):
        result = cli(*command)
        assert result.status == 0, result.err


def test_what_is_trained_is_told_part_by_part(
    cli: Cli, base: Path, spec: Callable[..., Path]
) -> None:
    result = cli("finetune", "--from", base, spec(), "--dry-run")
    assert "lora: " in result.out
    assert "parameters are trained" in result.out
    for line in ("blocks.*.mixer.qkv.q: 2 x 96", "norm.weight (whole): 16"):
        assert line in result.out
    assert "ParametrizationList" not in result.out
    found = json.loads(cli("finetune", "--from", base, spec(), "--dry-run", "--json").out)
    trained = {w["name"]: w["optimizer"] for w in found["weights"] if w["optimizer"]}
    assert all("lora_" in name or name.startswith("norm.") for name in trained)
    blocks = {o for name, o in trained.items() if name.startswith("blocks")}
    assert blocks == {"muon"}
    assert {o for name, o in trained.items() if name.startswith("embedding")} == {"adamw"}


def test_a_base_that_is_gone_or_changed_is_refused(
    cli: Cli, base: Path, spec: Callable[..., Path], tmp_path: Path
) -> None:
    mine = tmp_path / "elsewhere" / base.name
    shutil.copytree(base, mine)
    path = finetuned(cli, mine, spec())
    mine.rename(tmp_path / "gone")
    for command in (["eval", path], ["finetune", "--resume", "--out", "run"]):
        result = cli(*command)
        assert result.status == 4
        assert f"they are not at {mine.relative_to(tmp_path)}" in result.err
    weights = load_file(tmp_path / "gone" / "model.safetensors")
    shutil.copytree(tmp_path / "gone", mine)
    weights["norm.weight"] += 1
    other = opening.read(base)
    checkpoints.save(
        mine.parent,
        checkpoints.Contents(
            other.step, weights, {}, other.state, other.spec, other.info, other.assets
        ),
        mine.name,
    )
    result = cli("eval", path)
    assert result.status == 4
    assert "are not the ones it was trained on" in result.err
    shutil.rmtree(mine)
    (tmp_path / "gone").rename(mine)
    assert cli("eval", path).status == 0


@pytest.mark.parametrize("kind", KINDS)
def test_merging_changes_nothing_else_and_says_so(
    kind: str, cli: Cli, base: Path, spec: Callable[..., Path]
) -> None:
    path = finetuned(cli, base, spec(kind))
    result = cli("merge", path, "--out", "merged", "--input", "a rose", "--json")
    assert result.status == 0, result.err
    certificate = json.loads(result.out)
    assert certificate["largest_difference"] <= 1e-5
    assert certificate["greedy_agreement"] == 1
    assert certificate["kl"] < 1e-9
    assert certificate["effect"] > 1e-3
    state = json.loads(Path("merged/state.json").read_text())
    assert state["merged"]["largest_difference"] == certificate["largest_difference"]
    assert state["merged"]["adapter"]["type"] == kind
    stored = load_file("merged/model.safetensors")
    assert stored.keys() == load_file(base / "model.safetensors").keys()  # the head is tied
    shutil.rmtree("run")
    texts = [cli("predict", p, "a rose is", "--temperature", "0").out for p in ("merged",)]
    assert texts[0]
    assert cli("merge", "merged", "--out", "twice").status == 2
    assert cli("finetune", "--from", "merged", spec("lora"), "--out", "next").status == 0


def test_a_merge_that_changes_logits_is_refused(
    cli: Cli, base: Path, spec: Callable[..., Path]
) -> None:
    path = finetuned(cli, base, spec())
    result = cli("merge", path, "--out", "merged", "--dtype", "bf16", "--bound", "1e-6")
    assert result.status == 4
    assert "logits differ by at most" in result.err
    assert not Path("merged").exists()
    assert cli("merge", path, "--out", "merged", "--dtype", "bf16").status == 0
    values = load_file("merged/model.safetensors")["blocks.0.ffn.up.weight"]
    assert torch.equal(values, values.bfloat16().float())
    assert cli("merge", path, "--out", "merged").status == 2  # is there


def test_an_adapter_that_is_not_finite_is_refused(
    cli: Cli, base: Path, spec: Callable[..., Path]
) -> None:
    path = finetuned(cli, base, spec())
    loaded = load_checkpoint(path, "cpu", tell=lambda _: None)
    found = opening.read(path)
    own = checkpoints.read(path, train_state=False).model
    own = dict(own.stream())
    name = next(n for n in own if n.endswith("lora_B"))
    own[name][0, 0] = float("nan")
    contents = checkpoints.Contents(
        found.step, own, {}, found.state, found.spec, found.info, loaded.assets
    )
    checkpoints.save(path.parent, contents, path.name)
    assert "the weights are not finite" in cli("eval", path).err
    result = cli("merge", path, "--out", "merged")
    assert result.status == 4
    assert cli("finetune", "--from", path, spec(), "--out", "on").status == 4


def test_one_of_an_earlier_version_without_todays_options_goes_on(
    cli: Cli, base: Path, spec: Callable[..., Path]
) -> None:
    """Its recorded adapter was compared as text, so that a new option refused every older one."""
    path = finetuned(cli, base, spec())
    for file in (path / "spec.yaml", Path("run/spec.yaml")):
        values = parse_yaml(file.read_bytes(), "spec.yaml").plain()
        assert values["adapter"].pop("rank_pattern") == values["adapter"].pop("alpha_pattern") == {}
        file.write_text(dump_yaml(values))
    sign(path)
    assert cli("eval", path).status == 0
    result = cli("merge", path, "--out", "merged")
    assert result.status == 0, result.err
    result = cli("finetune", "--from", path, spec(), "--out", "on", "--set", "train.steps=2")
    assert result.status == 0, result.err
    result = cli("finetune", "--resume", "--out", "run", "--set", "train.steps=8")
    assert result.status == 0, result.err


def test_an_adapted_checkpoint_goes_on_with_its_adapter_alone(
    cli: Cli, base: Path, spec: Callable[..., Path]
) -> None:
    path = finetuned(cli, base, spec())
    result = cli("finetune", "--from", path, "--out", "on", "--set", "train.steps=2")
    assert result.status == 0, result.err
    assert cli("eval", result.out.strip()).status == 0
    result = cli("finetune", "--from", path, spec(rank="2"), "--out", "other")
    assert result.status == 2
    assert "merge it first" in result.err
    result = cli("finetune", "--from", path, "--set", "adapter=null", "--out", "none")
    assert result.status == 2


@pytest.mark.parametrize(
    ("replaced", "text"),
    [
        ({"targets": "[q_proj]"}, "adapter.targets: 'q_proj' matches no weight"),
        ({"targets": "['*.qkv.Q']"}, "did you mean blocks.*.mixer.qkv."),
        ({"targets": "[]"}, "adapter.targets"),
        ({"rank": "17"}, "adapter.rank: 17 is more than"),
        ({"modules_to_save": "[nrom]"}, "adapter.modules_to_save: 'nrom' matches no weight"),
        ({"modules_to_save": "[embedding]"}, "means embedding.weight too"),
        ({"compile": '"on"'}, "adapter.dropout: torch.compile"),
    ],
)
def test_faults_of_the_section_are_told_before_anything_is_trained(
    replaced: dict[str, str], text: str, cli: Cli, base: Path, spec: Callable[..., Path]
) -> None:
    result = cli("finetune", "--from", base, spec(**replaced), "--dry-run")
    assert result.status == 2
    assert text in result.err
    assert "ft.yaml:" in result.err


def test_a_new_head_must_be_trained(cli: Cli, base: Path, tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text("a rose\tgood\nis a\tbad\n" * 12)
    spec: dict[str, Any] = {
        "data": {
            "type": "table",
            "train": ["train.tsv"],
            "text": [0],
            "label": 1,
            "context": 8,
            "tokenizer": {"type": "characters"},
        },
    }
    text = json.dumps(spec)[:-1] + ', "task": {"type": "classification"}, "train": {"steps": 1}}'
    (tmp_path / "base.yaml").write_text(
        text.replace('"train": {"steps": 1}', '"train": {"steps": 1, "batch_size": 4}')[:-1]
        + ', "model": {"type": "encoder", "dim": 16, "blocks": [{"mixer": {"type": "attention",'
        ' "num_heads": 2}, "ffn": "gelu"}]}}'
    )
    result = cli("pretrain", "base.yaml", "--out", "b")
    assert result.status == 0, result.err
    (tmp_path / "train.tsv").write_text("a rose\tx\nis a\ty\na is\tz\n" * 12)
    (tmp_path / "ft.yaml").write_text(
        text[:-1] + ', "adapter": {"type": "lora", "rank": 2, "targets": ["blocks"]}}'
    )
    more = ["--set", "train.batch_size=4", "--out", "f"]
    result = cli("finetune", "--from", "b", "ft.yaml", *more)
    assert result.status == 2
    assert "adapter.modules_to_save: [head]" in result.err
    result = cli(
        "finetune", "--from", "b", "ft.yaml", "--set", "adapter.modules_to_save=[head]", *more
    )
    assert result.status == 0, result.err
    assert cli("eval", "f", "--split", "train").status == 0
    assert cli("merge", "f", "--out", "m").status == 0


def test_freezing_beside_an_adapter_is_refused(
    cli: Cli, base: Path, spec: Callable[..., Path]
) -> None:
    result = cli("finetune", "--from", base, spec(), "--set", "init.freeze=[norm]")
    assert result.status == 2
    assert "init.freeze" in result.err


def test_a_record_of_the_base_that_is_damaged(
    cli: Cli, base: Path, spec: Callable[..., Path]
) -> None:
    path = finetuned(cli, base, spec())
    found = checkpoints.read(path, train_state=False)
    for damaged in ("x", {"path": 3, "sha256": "", "unused": []}, {"path": "."}):
        checkpoints.save(
            path.parent,
            checkpoints.Contents(
                found.step,
                load_file(path / "model.safetensors"),
                {},
                {**found.state, "base": damaged},
                found.spec,
                found.info,
                found.assets,
            ),
            path.name,
        )
        result = cli("eval", path)
        assert result.status == 4
        assert "base: damaged" in result.err


LABELS = """\
model: {type: encoder, dim: 12, blocks: [{mixer: {type: attention, num_heads: 2}, ffn: gelu}]}
data: {type: table, train: [one.csv], text: [text], label: label, context: 12, tokenizer: bytes}
task: {type: classification}
train: {steps: 2, batch_size: 4, precision: fp32, compile: "off"}
"""


def test_other_classes_after_an_adapter_without_a_head(cli: Cli) -> None:
    """The head of the classes that it knew is in the weights below it; a new one needs training,
    which the adapter's options do not give: refused with a way that works.
    """
    for name, labels in (("one", "ab"), ("other", "xyz")):
        rows = [f"text {i},{labels[i % len(labels)]}" for i in range(24)]
        Path(f"{name}.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    Path("labels.yaml").write_text(LABELS)
    assert cli("pretrain", "labels.yaml", "--out", "whole").status == 0
    lora = ("--set", "adapter={type: lora, rank: 2, targets: ['*.out']}")
    assert cli("finetune", "--from", "whole", "--out", "tuned", *lora).status == 0
    other = ("--set", "data.train=[other.csv]")
    for extra in ((), ("--dry-run",)):
        result = cli("finetune", "--from", "tuned", "--out", "new", *other, *extra)
        assert result.status == 2
        assert "head.weight" in result.err
        assert "merge it first: bigmodel merge" in result.err
        assert not Path("new").exists()
    assert cli("merge", "tuned", "--out", "merged").status == 0
    result = cli("finetune", "--from", "merged", "--out", "new", *other)
    assert result.status == 0, result.err
    assert "newly initialised, since the classes differ: head.weight" in result.err
