"""What a newcomer types in the first hour: the remedy that a message prints is what is to be
written (row 25, row 55).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bigmodel_cli import checkpoints, console
from bigmodel_cli.catalog import catalog, write_sample
from bigmodel_cli.config import Options
from bigmodel_cli.errors import CheckpointError, SpecError
from bigmodel_cli.explain.words import instead
from bigmodel_cli.overrides import apply_overrides
from bigmodel_cli.promises import check_part
from bigmodel_cli.spec import Spec, check
from bigmodel_cli.train.resumed_spec import _refusal
from bigmodel_cli.yaml_source import parse_yaml, read_yaml

SPEC = """
model: {type: decoder, dim: 16, blocks: [{mixer: {type: attention, num_heads: 2}, ffn: gelu}]}
data: {type: stdlib, context: 16}
task: causal_lm
train: {steps: 10}
"""


def told(*changes: str) -> str:
    """What is said of the spec with these --set."""
    root = parse_yaml(SPEC.encode(), "spec.yaml")
    try:
        apply_overrides(root, changes, Spec)
        check(root)
    except SpecError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("words", "option", "remedy"),
    [
        ("pretrain a.yaml --steps 40", "--steps", "--set train.steps=40"),
        ("pretrain a.yaml --lr=1e-3", "--lr", "--set train.optimizer.lr=1e-3"),
        ("finetune --from x --batch-size 8", "--batch-size", "--set train.batch_size=8"),
        ("pretrain a.yaml --gpus 2", "--gpus", "Give --device on the command line."),
        ("pretrain a.yaml --stepz 4", "--stepz", "did you mean --set train.steps=...?"),
        ("pretrain a.yaml --debug", "--debug", "bigmodel --debug pretrain ..."),
        ("pretrain a.yaml --set train.steps 40", "", "--set train.steps=40 without blanks"),
        ("eval runs/a train.seed=3", "", "--set train.seed=3"),
        ("predict runs/a --steps 3", "--steps", ""),  # it has no --set
    ],
)
def test_an_option_of_the_spec_on_the_command_line_is_written_with_set(
    words: str, option: str, remedy: str
) -> None:
    said = instead(words.split(), option, Spec)
    assert remedy in said
    assert bool(said) == bool(remedy)


def test_the_command_says_so_below_the_usage(cli: Callable[..., Any]) -> None:
    result = cli("pretrain", "a.yaml", "--steps", "40")
    assert result.status == 2
    assert result.err.splitlines()[-1] == "Write --set train.steps=40 in its place."
    assert "Possible options" not in result.err


def test_a_fault_of_two_options_is_placed_at_the_first() -> None:
    assert told("task=classification").startswith(
        "--set task=classification: task.type: classification is learnt by"
    )
    assert told("task=masked_lm").count("task.type: masked_lm") == 1


def test_a_missing_item_is_reported_with_the_existing_ones() -> None:
    assert told("model.blocks.5.ffn=relu").endswith("model.blocks has one item, 0, not '5'")
    assert told("model.blocks.ffn=relu").endswith(
        "not 'ffn'; write model.blocks.0.ffn for that of the first"
    )


def test_files_of_a_table_are_called_train() -> None:
    said = told("data={type: table, files: [a.csv]}")
    assert "data.files: unknown option; use data.train" in said


def test_names_of_specs_that_are_nearly_right(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(SPEC)
    with pytest.raises(SpecError, match=re.escape(f"did you mean {tmp_path / 'mine.yaml'}?")):
        read_yaml(tmp_path / "mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/spec.yaml").write_text(SPEC)
    with pytest.raises(SpecError, match=re.escape(f"such as {tmp_path / 'run/spec.yaml'}")):
        read_yaml(tmp_path / "run")
    with pytest.raises(CheckpointError, match="this is a spec; name the checkpoint or the run"):
        checkpoints.find(tmp_path / "mine.yaml")


def test_a_run_in_the_place_of_the_spec_to_finetune(cli: Callable[..., Any]) -> None:
    Path("runs/a").mkdir(parents=True)
    result = cli("finetune", "runs/a")
    assert result.status == 2
    assert "write --from runs/a" in result.err


def test_options_that_would_do_nothing_are_refused_and_nothing_is_left(
    cli: Callable[..., Any],
) -> None:
    path = write_sample("mine", "decoder")
    result = cli("pretrain", path, "--accept-data")
    assert result.status == 2
    assert "--accept-data has no effect" in result.err
    assert not Path("runs").exists()


def test_a_gpu_is_called_cuda_or_mps(cli: Callable[..., Any]) -> None:
    result = cli("pretrain", write_sample("mine", "decoder"), "--device", "gpu")
    assert result.status == 2
    assert "a GPU is cuda (NVIDIA, AMD) or mps (Apple)" in result.err


def test_a_resume_with_a_different_spec_is_reported_by_its_types() -> None:
    before = {
        "model.type": "decoder",
        "model.dim": 8,
        "data.type": "text",
        "train.ema": None,
        "data.words": False,
    }
    after = {
        "model.type": "cnn",
        "model.layers.0.type": "conv",
        "data.type": "text",
        "train.ema": 0.9,
        "data.words": True,
    }
    changed = sorted(p for p in before.keys() | after.keys() if before.get(p) != after.get(p))
    lines = _refusal(Path("runs/a"), changed, before, after, "pretrain").splitlines()[1:]
    assert lines == [
        "  data.words: false -> true",
        "  model.type: decoder -> cnn",
        "  train.ema: null -> 0.9",
    ]


def test_every_type_of_a_spec_is_listed_by_bigmodel_models() -> None:
    """As README says; read from the JSON Schema, which knows nothing of the catalog."""
    listed = {name for entries in catalog().values() for name in entries}
    classes = Spec.model_json_schema()["$defs"].values()
    types = [c["properties"]["type"] for c in classes if "type" in c.get("properties", {})]
    words = {word for kind in types for word in kind.get("enum", [kind.get("const")])}
    assert words - {None} <= listed


def test_the_progress_bar_leaves_room_for_the_interrupt_mark_of_the_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")
    assert console.terminal().size.width == 76


class _Faulty(Options):
    """A part that fails at once."""

    type: str = "faulty"

    def build(self, place: Any) -> Any:
        import torch

        class Part(torch.nn.Module):
            def forward(self, x: Any, *_: Any) -> Any:
                return self.nothing(x)  # the line that is named

        return Part()


def test_a_part_that_fails_is_reported_once_with_file_and_line() -> None:
    findings = check_part("ffn", _Faulty())
    assert [f.promise for f in findings] == ["builds", "shape"]
    line = next(
        n
        for n, text in enumerate(Path(__file__).read_text().splitlines(), 1)
        if "# the line" in text
    )
    assert findings[1].text.startswith(f"test_first_hour.py:{line}: AttributeError: ")
