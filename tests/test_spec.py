"""A spec is checked whole: every fault with its place, quickly, and without torch."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import DECODER, ROOT, Result

from bigmodel_cli.errors import SpecError
from bigmodel_cli.models import MODELS
from bigmodel_cli.overrides import apply_override
from bigmodel_cli.spec import Spec, check, from_dict, load
from bigmodel_cli.tasks import TASKS
from bigmodel_cli.yaml_source import parse_yaml

Cli = Callable[..., Result]


def faults(text: str) -> list[str]:
    """The messages that a spec's text gives."""
    with pytest.raises(SpecError) as error:
        check(parse_yaml(text.encode(), "spec.yaml"))
    return str(error.value).splitlines()


def test_five_faults_in_one_go_with_their_places(tmp_path: Path, cli: Cli) -> None:
    text = (
        DECODER.replace("num_heads: 2", "num_head: 2")
        .replace("dim: 16", "dim: -3")
        .replace("type: gelu", "type: gelo")
    )
    text = text.replace("steps: 12", "steps: many").replace(
        "context: 16", "context: 16\n  contxt: 3"
    )
    (tmp_path / "bad.yaml").write_text(text)
    result = cli("pretrain", "bad.yaml")
    assert result.status == 2
    assert result.out == ""
    lines = result.err.splitlines()
    assert lines[0] == "bad.yaml:3:8: model.dim: -3 is not greater than 0"
    assert lines[1].startswith("bad.yaml:8:14: model.blocks.0.mixer.num_heads: missing")
    assert (
        lines[2]
        == "bad.yaml:8:32: model.blocks.0.mixer.num_head: unknown option; did you mean num_heads?"
    )
    assert lines[3].startswith(
        "bad.yaml:9:12: model.blocks.0.ffn: unknown type 'gelo'; one of gelu, relu, silu,"
        " relu2, swiglu, geglu, moe; did you"
    )
    assert lines[4] == "bad.yaml:14:3: data.contxt: unknown option; did you mean context?"
    assert lines[5] == "bad.yaml:18:10: train.steps: 'many' is not a whole number"
    assert len(lines) == 6  # the renamed option is missing as well
    assert not (tmp_path / "runs").exists()


def test_faults_are_reported_without_torch_in_under_a_second(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(DECODER.replace("dim: 16", "dim: wide"))
    code = (
        "import sys; from bigmodel_cli.__main__ import run; status = run(['pretrain', 'bad.yaml']);"
        "assert 'torch' not in sys.modules and 'numpy.testing' not in sys.modules; sys.exit(status)"
    )
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert time.perf_counter() - start < 30  # a hang, not a measurement


@pytest.mark.parametrize(
    "command", [["--help"], ["pretrain", "--help"], ["models", "--help"], ["--version"]]
)
def test_help_does_not_import_torch(command: list[str]) -> None:
    code = (
        f"import sys; from bigmodel_cli.__main__ import run; status = run({command!r});"
        "assert not {'torch', 'numpy', 'yaml'} & set(sys.modules), 'too much'; sys.exit(status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("tag", "column"),
    [("!!python/object/apply:os.system ['true']", 8), ("!custom 3", 8), ("!!binary aGk=", 8)],
)
def test_yaml_tags_are_refused(tag: str, column: int) -> None:
    (message,) = faults(DECODER.replace("dim: 16", f"dim: {tag}"))
    assert message.startswith(f"spec.yaml:3:{column}: the tag ")


def test_duplicate_and_unknown_keys() -> None:
    assert faults("model: {type: decoder}\nmodel: {type: cnn}\n") == [
        "spec.yaml:2:1: model: given twice (first at spec.yaml:1:1); keep one"
    ]
    assert any(
        "spec.yaml:1:1: modle: unknown option; did you mean model?" in m
        for m in faults("modle: {}\n")
    )


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("1e-3", 1e-3),
        ("0.001", 1e-3),
        ("1", 1.0),
        ("0o17", 15.0),
        ("0x10", 16.0),
        ("010", 10.0),
        ("1_000", 1000.0),
    ],
)
def test_how_numbers_are_read(written: str, value: float) -> None:
    text = DECODER + f"  optimizer: {{type: adamw, lr: {written}}}\n"
    assert check(parse_yaml(text.encode(), "spec.yaml")).train.optimizer.lr == value


@pytest.mark.parametrize(
    "written",
    ["no", "off", "'1e-3'", "yes", "true", "[1]", "1:30", "2026-01-01", "1.2.3", "null", ""],
)
def test_values_that_are_not_numbers_are_refused(written: str) -> None:
    (message,) = faults(
        DECODER + f"  max_grad_norm: 1.0\n  optimizer: {{type: adamw, lr: {written}}}\n"
    )
    assert message.startswith("spec.yaml:25:")
    assert "train.optimizer.lr" in message


def test_no_is_a_string_and_only_true_and_false_are_booleans() -> None:
    (message,) = faults(DECODER + "  optimizer: {type: sgd, nesterov: no}\n")
    assert "train.optimizer.nesterov: 'no' is not true or false; write false" in message


def numeric_fields(spec: dict[str, Any]) -> Iterator[str]:
    """The dotted path of every number in a resolved spec, or null that may be one."""

    def walk(value: Any, path: str) -> Iterator[str]:
        if isinstance(value, dict):
            for key, inner in value.items():
                yield from walk(inner, f"{path}.{key}" if path else key)
        elif isinstance(value, list):
            for index, inner in enumerate(value):
                yield from walk(inner, f"{path}.{index}")
        elif (isinstance(value, int | float) and not isinstance(value, bool)) or value is None:
            yield path

    yield from walk(spec, "")


def specs_to_try() -> dict[str, Spec]:
    """The sample specs by name."""
    paths = sorted((ROOT / "sample_configs").glob("*.yaml"))
    return {path.stem: load(path) for path in paths if "finetune" not in path.name}


def one_of_each_model() -> list[Any]:
    """The sample specs as parameters; beyond the first of each kind of model they are slow."""
    found, seen = [], set[str]()
    for name, spec in specs_to_try().items():
        marks = [pytest.mark.slow] if spec.model.type in seen else []
        found.append(pytest.param(spec, id=name, marks=marks))
        seen.add(spec.model.type)
    return found


@pytest.mark.parametrize("spec", one_of_each_model())
def test_no_number_takes_nan_infinity_or_a_negative_value(spec: Spec) -> None:
    resolved = spec.to_dict()
    fields = list(numeric_fields(resolved))
    assert len(fields) > 10
    for path in fields:
        for bad in (".nan", ".inf", "-.inf", "-1"):
            if path.startswith("data.normalize.mean"):
                continue
            with pytest.raises(SpecError, match=r"--set " + path):
                from_dict(resolved, [f"{path}={bad}"])


@pytest.mark.parametrize(
    "path",
    [
        "model.dim",
        "train.steps",
        "train.batch_size",
        "train.optimizer.lr",
        "train.max_grad_norm",
        "data.context",
        "train.log_every",
    ],
)
def test_zero_is_refused_where_it_makes_no_sense(path: str) -> None:
    with pytest.raises(SpecError, match="greater than 0"):
        from_dict(check(parse_yaml(DECODER.encode(), "s")).to_dict(), [f"{path}=0"])


@pytest.mark.parametrize(
    "change",
    ["train.steps=1e15", "train.steps=1000000000000000", "model.blocks.0.repeat=1000000000"],
)
def test_absurd_sizes_are_refused_by_their_bounds(
    change: str, decoder_spec: Path, cli: Cli
) -> None:
    result = cli("pretrain", decoder_spec, "--set", change)
    assert result.status == 2
    assert change.split("=")[0] in result.err


@pytest.mark.parametrize("change", ["model.dim=1000000000", "model.dim=1000000"])
def test_a_model_that_no_machine_holds_is_refused_before_it_is_allocated(
    change: str, decoder_spec: Path, cli: Cli
) -> None:
    result = cli("pretrain", decoder_spec, "--set", change)
    assert result.status == 2
    if "1000000000" in change:  # more than an integer can say: row 28
        assert (
            "model: too large for any machine: one tensor of 3,000,000,000 x 1,000,000,000 numbers"
            " needs 48" in result.err
        )
    else:
        assert (
            "model: 24,000,061,000,000 parameters need 384.0 TB for weights, gradients and"
            " optimizer" in result.err
        )
    assert "make the model smaller" in result.err
    assert "recursion" not in result.err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"# nothing\n", "empty"),
        (b"- 1\n", "a spec is a mapping"),
        (b"model: \x00\n", "not valid YAML"),
        (b"model: caf\xe9\n", "spec.yaml:1:11: not UTF-8 (byte 0xe9)"),
        (b"model: {\n", "not valid YAML"),
        (b"a: *b\n", "spec.yaml:1:4: *b has no anchor &b before it"),
        (b"a: 1\n---\nb: 2\n", "a second document"),
    ],
)
def test_files_that_are_not_specs_are_refused(
    content: bytes, message: str, tmp_path: Path, cli: Cli
) -> None:
    (tmp_path / "spec.yaml").write_bytes(content)
    result = cli("pretrain", "spec.yaml")
    assert result.status == 2
    assert message in result.err
    assert list(tmp_path.iterdir()) == [tmp_path / "spec.yaml"]


def test_a_byte_order_mark_and_crlf_are_accepted() -> None:
    content = b"\xef\xbb\xbf" + DECODER.replace("\n", "\r\n").encode()
    assert check(parse_yaml(content, "s")) == check(parse_yaml(DECODER.encode(), "s"))


def bomb() -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (bomb(), "once its aliases are followed"),
        ("a: " + "[" * 200 + "]" * 200, "nested more than 100 deep"),
        ("[" * 100_000, "not valid YAML|nested more than"),
        ("a: " + "1" * 5000, "unknown option"),
    ],
)
def test_yaml_bombs_are_refused(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        check(parse_yaml(text.encode(), "spec.yaml"))


def test_a_huge_file_is_not_read(tmp_path: Path, cli: Cli) -> None:
    with open(tmp_path / "huge.yaml", "wb") as file:
        file.truncate(100_000_000)
    result = cli("pretrain", "huge.yaml")
    assert result.status == 2
    assert "100,000,000 bytes; a spec has at most 1,000,000" in result.err


def test_a_missing_file_and_a_folder(cli: Cli, tmp_path: Path) -> None:
    assert (
        "nothing.yaml: no such file; `bigmodel init NAME` writes"
        in cli("pretrain", "nothing.yaml").err
    )
    assert "this is a folder" in cli("pretrain", tmp_path).err


def test_anchors_merge_keys_and_free_keys() -> None:
    text = "x-base: &base {type: attention, num_heads: 2}\n" + DECODER.replace(
        "{type: attention, num_heads: 2, dropout: 0.1}", "{<<: *base, dropout: 0.1}"
    )
    root = parse_yaml(text.encode(), "s")
    del root.value["x-base"]
    assert check(root) == check(parse_yaml(DECODER.encode(), "s"))


def test_an_override_below_an_alias_does_not_change_the_anchor() -> None:
    root = parse_yaml(b"a: &a {n: 1}\nb: *a\n", "s")
    apply_override(root, "b.n=2", Spec)
    assert root.plain() == {"a": {"n": 1}, "b": {"n": 2}}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.steps", "write --set KEY=VALUE"),
        (
            "task.sample_prompt=\udce9",
            "--set task.sample_prompt=\\udce9: not UTF-8",
        ),  # row 85: an argument in Latin-1
        ("model.blocks.7.repeat=1", "has one item, 0"),
        ("model.dim.x=1", "is a value, and has no 'x' inside"),
        ("train.stepz=1", "--set train.stepz=1: train.stepz: unknown option; did you mean steps?"),
        ("train.steps=[", "not valid YAML"),
    ],
)
def test_faulty_overrides(override: str, message: str, decoder_spec: Path, cli: Cli) -> None:
    result = cli("pretrain", decoder_spec, "--set", override)
    assert result.status == 2
    assert message in result.err


def test_the_resolved_spec_reads_back_as_itself() -> None:
    for spec in specs_to_try().values():
        assert from_dict(yaml.safe_load(spec.to_yaml())) == spec


def test_steps_and_epochs() -> None:
    base = check(parse_yaml(DECODER.encode(), "s")).to_dict()
    with pytest.raises(SpecError, match="not both"):
        from_dict(base, ["train.epochs=2", "train.steps=2"])
    with pytest.raises(SpecError, match="give steps, epochs or minutes"):
        from_dict(base, ["train.steps=null"])
    train = from_dict(base, ["train.steps=null", "train.epochs=1.5", "train.batch_size=64"]).train
    assert train.total_steps(Fraction(1000, train.batch_size)) == math.ceil(1.5 * 1000 / 64)
    # whose floats are a little more or less than what is written
    for written in (
        "0.1",
        "0.3",
        "1.1",
        "2.2",
        "1e-2",
    ):
        tenths = from_dict(base, ["train.steps=null", f"train.epochs={written}"]).train
        assert tenths.total_steps(Fraction(100)) == round(float(written) * 100)
    with pytest.raises(SpecError, match="not a multiple of micro_batch_size 3"):
        from_dict(base, ["train.micro_batch_size=3"])


NETWORKS: dict[str, dict[str, Any]] = {
    "decoder": {"dim": 8, "blocks": [{}]},
    "encoder": {"dim": 8, "blocks": [{}]},
    "seq2seq": {"dim": 8, "encoder": [{}], "decoder": [{"cross": {"num_heads": 2}}]},
    "vit": {"dim": 8, "patch": 4, "blocks": [{}]},
    "cnn": {"layers": [{"type": "flatten"}]},
    "torchvision": {"name": "resnet18"},
}


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("model", MODELS)
def test_a_model_that_cannot_learn_the_task_is_refused(model: str, task: str) -> None:
    """An encoder sees the next token (its loss would be that of copying), a decoder knows no mask,
    and so on.
    """
    able = {"causal_lm": "decoder", "masked_lm": "encoder", "seq2seq": "seq2seq", "ctc": "encoder"}
    able["dpo"] = "decoder"
    labelling = {"encoder", "vit", "cnn", "torchvision"}
    values = {
        **check(parse_yaml(DECODER.encode(), "s")).to_dict(),
        "model": {"type": model, **NETWORKS[model]},
    }
    values["task"] = {"type": task}
    of_items = task in ("classification", "regression", "multilabel")
    tags = task == "tagging" and model in ("encoder", "decoder")
    labels = of_items and model in labelling
    if task != "masked_image" and (able.get(task) == model or labels or tags):
        assert from_dict(values).task.type == task
        return
    with pytest.raises(
        SpecError,
        match=f"task.type: {task} (is learnt by model.type: |rebuilds hidden patches, and )",
    ):
        from_dict(values)
