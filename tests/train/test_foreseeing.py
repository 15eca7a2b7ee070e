"""What a dry run refuses is what the start of the run refuses: message and status, unread."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import CNN, DECODER, Result, write_text

from bigmodel_cli import checkpoints
from bigmodel_cli.checkpoints import safe, stored
from bigmodel_cli.convert import converted

Cli = Callable[..., Result]
LABELS = """\
model:
  type: encoder
  dim: 12
  blocks: [{mixer: {type: attention, num_heads: 2}, ffn: gelu}]
data:
  {type: table, train: [FOLDER/rows.csv], text: [text], label: label, context: 12, tokenizer: bytes}
task: {type: classification}
train: {steps: 1, batch_size: 4, precision: fp32, compile: "off"}
"""


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Checkpoints of a decoder, an encoder with labels, and a CNN."""
    from bigmodel_cli.__main__ import run

    folder = tmp_path_factory.mktemp("bases")
    write_text(folder / "text.txt")
    rows = [f"{'a good one' if i % 2 else 'a bad one'} {i},{'ab'[i % 2]}" for i in range(40)]
    (folder / "rows.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    decoder = DECODER.replace("text.txt", str(folder / "text.txt"))
    specs = {"decoder": decoder, "encoder": LABELS.replace("FOLDER", str(folder)), "cnn": CNN}
    found = {"FOLDER": str(folder)}
    for name, text in specs.items():
        (folder / f"{name}.yaml").write_text(text.replace("steps: 12", "steps: 1"))
        words = ["pretrain", str(folder / f"{name}.yaml"), "--out", str(folder / name)]
        assert run(words) == 0
        found[name] = str(checkpoints.find(folder / name))
    return found


def sets(*changes: str) -> list[str]:
    return [word for change in changes for word in ("--set", change)]


LORA = "adapter={type: lora, rank: 2, targets: ['*.out']}"
CASES: dict[str, tuple[str, tuple[str, ...], int, str]] = {
    # the checkpoint, what is changed, status, part of the message
    "shallower": ("decoder", ("model.blocks.0.repeat=1",), 4, "1 of its 2 blocks are chosen"),
    "deeper": ("decoder", ("model.blocks.0.repeat=5",), 4, "blocks.2.mixer.qkv.weight: missing"),
    "another width": ("decoder", ("model.dim=32",), 4, "expected float32 [96, 32]"),
    "another hidden width": (
        "decoder", ("model.blocks.0.ffn.hidden=7",), 4, "blocks.0.ffn.up.weight: expected",
    ),
    "more tokens": ("decoder", ("model.vocab_size=99",), 4, "embedding.weight: expected"),
    "more positions": ("decoder", ("data.context=24",), 4, "16 tokens at most, and the spec's 24"),
    "another norm": ("decoder", ("model.blocks.0.norm=rmsnorm",), 4, "norm.bias: not in the model"),
    "another kind": (
        "decoder", ("model={type: encoder, dim: 8, blocks: [{ffn: gelu}]}", "task=masked_lm"),
        4, "a model of type decoder, and the spec's is encoder",
    ),
    "an adapter without targets": (
        "decoder", ("adapter={type: lora, targets: ['*.nothing']}",), 2, "adapter.targets",
    ),
    "an adapter whose head stays as drawn": (
        "encoder", (LORA, "data.train=[FOLDER/others.csv]"), 2, "would stay as drawn",
    ),
    "four bits without weights": ("", (f"{LORA[:-1]}, base: nf4}}",), 2, "is for weights of a"),
    "a frozen whole": ("decoder", ("init.freeze=['*']",), 2, "every weight is frozen"),
    "a pattern of nothing": ("decoder", ("init.freeze=[bloks]",), 2, "'bloks' matches no weight"),
    "a rate of nothing": ("decoder", ("train.lr_scale={bloks: 2}",), 2, "lr_scale.bloks"),
    "a teacher of another task": (
        "decoder", ("distill={teacher: ENCODER}",), 2, "was trained for classification",
    ),
    "a teacher that is not there": ("decoder", ("distill={teacher: no}",), 4, "no"),
    "a teacher of another width": (
        "", ("distill={teacher: DECODER, hidden: 1.0}", "model.dim=8"), 2,
        "the teacher's stream is 16 wide and the student's 8",
    ),
    "a teacher of fewer layers": (
        "", ("distill={teacher: DECODER, hidden: 1.0}", "model.blocks.0.repeat=3"), 2,
        "the teacher has 2 blocks, fewer than the student's 3",
    ),
    "a teacher of other classes": (
        "encoder", ("distill={teacher: ENCODER}", "data.train=[FOLDER/others.csv]"), 2,
        "classes must be the same",
    ),
    "no task for a teacher": (
        "encoder",
        ("distill={teacher: ENCODER}", "task={type: regression}", "data.label=null",
         "data.targets=[number]", "data.train=[FOLDER/numbers.csv]"), 2,
        "has no probabilities to learn",
    ),
    "two passes and a teacher": (
        "decoder", ("distill={teacher: DECODER}", "train.consistency=1.0"), 2, "has no effect",
    ),
    "nothing to replay": ("", ("data.replay={share: 0.5}",), 2, "no initial checkpoint"),
    "a replay of other data": ("decoder", ("data.replay={share: 0.5, spec: CNN}",), 2, "replay"),
    "no start to compare with": (
        "", ("data={type: preferences, train: [FOLDER/pairs.jsonl], context: 40, tokenizer: bytes}",
             "task=dpo"), 2, "and there is none: bigmodel finetune --from",
    ),
    "a service without its package": (
        "decoder", ("train.trackers=[{type: mlflow, uri: 'file:x'}]",), 2, "mlflow",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_dry_run_refuses_what_the_start_does(
    name: str, cli: Cli, bases: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    base, changes, status, message = CASES[name]
    folder = Path(bases["FOLDER"])
    lines = [f"text {i},{'xy'[i % 2]}" for i in range(40)]
    (folder / "others.csv").write_text("text,label\n" + "\n".join(lines) + "\n")
    numbers = [f"text {i},{i % 7}.5" for i in range(40)]
    (folder / "numbers.csv").write_text("text,number\n" + "\n".join(numbers) + "\n")
    pair = '{"prompt": "a", "chosen": "bb", "rejected": "c"}\n'
    (folder / "pairs.jsonl").write_text(pair * 40)
    named = {"ENCODER": "encoder", "DECODER": "decoder", "CNN": "cnn", "FOLDER": "FOLDER"}
    given = list(changes)
    for word, key in named.items():
        given = [change.replace(word, bases[key]) for change in given]
    spec = folder / f"{base or 'decoder'}.yaml"
    start = ["finetune", "--from", bases[base]] if base else ["pretrain"]
    words = [*start, spec, *sets("train.steps=1", *given)]
    before = sorted(Path.cwd().iterdir())
    real = cli(*words)
    assert real.status == status, real.err
    assert message in real.err

    def unread(*arguments: Any, **more: Any) -> None:
        raise AssertionError("a dry run reads no weights")

    for kind in (stored.StoredTensors, converted.ConvertedTensors):
        for method in ("copy_to", "stream", "glance"):
            monkeypatch.setattr(kind, method, unread)
    dry = cli(*words, "--dry-run")
    assert dry.status == real.status, dry.err
    assert refusal(dry) == refusal(real)
    assert sorted(Path.cwd().iterdir()) in (before, [Path.cwd() / "runs"])


def refusal(result: Result) -> str:
    """The last message, of one line or several."""
    lines = result.err.splitlines()
    first = [i for i, line in enumerate(lines) if line.startswith(("bigmodel: ", "--set "))]
    return "\n".join(lines[first[-1] :]) if first else lines[-1]


def test_a_dry_run_of_what_begins_well_ends_well(cli: Cli, bases: dict[str, str]) -> None:
    teacher = f"distill={{teacher: {bases['decoder']}, hidden: 1.0}}"
    words = ["finetune", "--from", bases["decoder"], *sets("train.steps=1", teacher, LORA)]
    result = cli(*words, "--dry-run")
    assert result.status == 0, result.err
    assert "weights: " in result.err
    assert "teacher: " in result.err
    assert "parameters" in result.out


def test_what_could_not_be_read_back_is_said(
    cli: Cli, bases: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(safe, "MOST_VALUES", 1300)
    found = [
        cli("pretrain", Path(bases["FOLDER"], "decoder.yaml"), "--out", "run", *more)
        for more in ((), ("--dry-run",))
    ]
    assert [result.status for result in found] == [2, 2]
    assert "more than can be read back" in refusal(found[1])
    assert refusal(found[0]) == refusal(found[1])


def test_a_folder_that_is_taken_is_said(cli: Cli, bases: dict[str, str]) -> None:
    Path("taken").mkdir()
    Path("taken/file").touch()
    spec = Path(bases["FOLDER"], "decoder.yaml")
    result = cli("pretrain", spec, "--dry-run", "--out", "taken")
    assert result.status == 0
    assert "taken: holds a run (or other files) already" in result.err
    assert cli("pretrain", spec, "--out", "taken").status == 2
