"""`base:` in a spec: what is inherited, what is replaced, and where faults are said to be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT

from bigmodel_cli.errors import CheckpointError, SpecError
from bigmodel_cli.spec import Spec, load, of_checkpoint

BELOW = """\
model:
  type: decoder
  dim: 16
  blocks:
    - {mixer: {type: attention, num_heads: 2}, ffn: gelu}
    - {mixer: {type: attention, num_heads: 4}, ffn: gelu}
data: {type: stdlib, context: 16, tokenizer: characters}
task: causal_lm
train:
  steps: 10
  optimizer: {lr: 0.5, weight_decay: 0.25}
  max_grad_norm: 1.0
"""


def loaded(above: str, *changes: str, below: str = BELOW) -> Spec:
    """The spec of a file in a folder beside that of its base."""
    for folder, name, text in (("common", "below.yaml", below), ("mine", "above.yaml", above)):
        Path(folder).mkdir(exist_ok=True)
        Path(folder, name).write_text(text)
    return load(Path("mine/above.yaml"), changes)


def test_mappings_are_joined_and_lists_replaced() -> None:
    spec = loaded(
        "base: ../common/below.yaml\nmodel: {blocks: [{ffn: relu}]}\ntrain: {optimizer: {lr: 0.75},"
        " max_grad_norm: null}\n"
    )
    plain = spec.to_dict()
    assert plain["model"]["dim"] == 16
    assert [block["ffn"]["type"] for block in plain["model"]["blocks"]] == ["relu"]
    assert (plain["train"]["optimizer"]["lr"], plain["train"]["optimizer"]["weight_decay"]) == (
        0.75,
        0.25,
    )
    assert (plain["train"]["max_grad_norm"], plain["train"]["steps"]) == (None, 10)
    assert "base" not in spec.recorded()


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("{type: adamw, lr: 0.75}", 0.25),  # the default's type, which the base did not spell
        ("adamw", 0.25),  # a word is the mapping with that type alone
        ("{type: sgd, lr: 0.75}", 0.0),  # another type
        ("sgd", 0.0),
    ],
)
def test_a_mapping_of_another_type_takes_the_place_of_the_base(given: str, kept: float) -> None:
    optimizer = loaded(f"base: ../common/below.yaml\ntrain: {{optimizer: {given}}}\n").to_dict()[
        "train"
    ]["optimizer"]
    assert optimizer["weight_decay"] == kept


def test_epochs_take_the_place_of_the_steps_of_the_base(capsys: pytest.CaptureFixture[str]) -> None:
    train = loaded("base: ../common/below.yaml\ntrain: {epochs: 2.0}\n").train
    assert (train.steps, train.epochs) == (None, 2.0)
    assert (
        capsys.readouterr().err
        == "train.epochs: 2.0 is taken instead of train.steps: 10 of the base\n"
    )


def test_set_is_above_all_and_leaves_the_base_alone() -> None:
    spec = loaded(
        "base: ../common/below.yaml\nmodel: {dim: 8}\n", "model.dim=32", "model.blocks.1.ffn=relu"
    )
    assert spec.to_dict()["model"]["dim"] == 32
    assert [block["ffn"]["type"] for block in spec.to_dict()["model"]["blocks"]] == ["gelu", "relu"]


def test_a_chain_of_three_files_each_in_its_own_folder() -> None:
    Path("mine/deep").mkdir(parents=True)
    Path("mine/deep/top.yaml").write_text("base: ../above.yaml\ntrain: {seed: 5}\n")
    loaded("base: ../common/below.yaml\nmodel: {dim: 8}\ntrain: {seed: 4}\n")
    spec = load(Path("mine/deep/top.yaml"))
    assert (spec.train.seed, spec.to_dict()["model"]["dim"], spec.train.steps) == (5, 8, 10)


def told(above: str, *changes: str, below: str = BELOW) -> list[str]:
    """What is said of a spec that is at fault."""
    with pytest.raises(SpecError) as fault:
        loaded(above, *changes, below=below)
    return str(fault.value).splitlines()


def test_faults_are_reported_in_the_file_that_has_them() -> None:
    below = BELOW.replace("dim: 16", "dim: wide").replace("steps: 10", "stepz: 10")
    lines = told("base: ../common/below.yaml\ntrain: {seed: -1}\n", below=below)
    named = "mine/../common/below.yaml"
    assert lines[0].startswith(f"{named}:3:8: model.dim: 'wide' is not a whole number")
    assert lines[1].startswith(f"{named}:10:3: train.stepz: unknown option; did you mean steps?")
    assert any(
        line.startswith("mine/above.yaml:2:15: train.seed: -1 is not at least 0") for line in lines
    )


@pytest.mark.parametrize(
    ("above", "said"),
    [
        (
            "base: ../common/bellow.yaml\n",
            "mine/above.yaml:1:7: base: mine/../common/bellow.yaml: no such file; did you mean",
        ),
        (
            "model: {}\nbase: ../common\n",
            "mine/above.yaml:2:7: base: mine/../common: this is a folder",
        ),
        (
            "base: above.yaml\n",
            "mine/above.yaml:1:7: base: a circle: mine/above.yaml -> mine/above.yaml",
        ),
        (
            "base: [a.yaml, b.yaml]\n",
            "mine/above.yaml:1:7: base: the path of one other spec is due here",
        ),
        ("base:\n", "mine/above.yaml:1:6: base: the path of one other spec is due here"),
    ],
)
def test_a_faulty_base_is_reported_with_its_place(above: str, said: str) -> None:
    assert told(above)[0].startswith(said)


def test_a_cycle_of_base_over_two_files_is_refused() -> None:
    below = "base: ../mine/above.yaml\n" + BELOW
    said = told("base: ../common/below.yaml\n", below=below)[0]
    assert said.startswith(
        "mine/../common/below.yaml:1:7: base: a circle: mine/above.yaml ->"
        " mine/../common/below.yaml -> "
    )


def test_an_empty_base_and_one_on_the_command_line() -> None:
    assert told("base: ../common/below.yaml\n", below="")[0].endswith(
        "common/below.yaml is empty; name a spec"
    )
    assert told("base: ../common/below.yaml\n", "base=x.yaml")[0].startswith(
        "--set base: a spec names its base in its file"
    )


def test_what_a_run_records_is_whole_and_a_checkpoint_may_not_name_a_base() -> None:
    spec = loaded("base: ../common/below.yaml\n")
    recorded = yaml.safe_load(spec.to_yaml())
    assert of_checkpoint(recorded, Path("checkpoint")) == spec
    with pytest.raises(CheckpointError, match="base: unknown option"):
        of_checkpoint({"base": "mine/above.yaml", **recorded}, Path("checkpoint"))


def test_the_schema_has_base(cli: Callable[..., Any]) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    import json

    sample = (ROOT / "sample_configs" / "quickstart.yaml").read_text()
    plain = yaml.safe_load(f"base: other.yaml\n{sample}".replace("3e-3", "0.003"))
    assert (
        list(jsonschema.Draft202012Validator(json.loads(cli("schema").out)).iter_errors(plain))
        == []
    )
