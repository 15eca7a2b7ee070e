"""The commands as a user calls them: what they print, and that what they print is true."""

from __future__ import annotations

import io
import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import DECODER, ROOT, Result, losses
from PIL import Image
from zygote import Zygote

from bigmodel_cli import checkpoints
from bigmodel_cli.loaded import load_checkpoint
from bigmodel_cli.spec import check
from bigmodel_cli.yaml_source import parse_yaml

Cli = Callable[..., Result]


def sets(*changes: str) -> list[str]:
    return [w for c in changes for w in ("--set", c)]


@pytest.fixture
def decoder(decoder_spec: Path, cli: Cli) -> Path:
    """A trained tiny decoder."""
    return Path(cli("pretrain", decoder_spec, "--out", "decoder").out.strip())


@pytest.fixture
def cnn(cnn_spec: Path, cli: Cli) -> Path:
    """A trained tiny CNN."""
    return Path(
        cli(
            "pretrain", cnn_spec, "--out", "cnn", *sets("train.steps=60", "train.batch_size=64")
        ).out.strip()
    )


def digit_files(count: int) -> list[str]:
    """The first of scikit-learn's digits as PNG files."""
    from sklearn.datasets import load_digits

    names = []
    for index, pixels in enumerate(load_digits().images[:count]):
        names.append(f"digit{index}.png")
        Image.fromarray((pixels * 255 / 16).astype("uint8")).save(names[-1])
    return names


@pytest.mark.curve
def test_a_run_leaves_what_it_says(decoder: Path) -> None:
    run = Path("decoder")
    left = {p.name for p in run.iterdir()}
    assert left == {
        "checkpoints",
        "curve.png",
        "metrics.jsonl",
        "run.lock",
        "spec.yaml",
        "status.json",
    }
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if "val" in r] == [4, 8, 12]
    assert {"step", "loss", "lr", "grad_norm", "per_second", "elapsed"} == records[0].keys()
    status = json.loads((run / "status.json").read_text())
    assert status == {
        "state": "done",
        "code": 0,
        "message": "",
        "last_step": 12,
        "last_checkpoint": f"checkpoints/{decoder.name}",
        "total_steps": 12,
        "metric": {"name": "loss", "higher_is_better": False, "percent": ["accuracy", "exact"]},
        "parameters": 7120,
    }
    assert Image.open(run / "curve.png").size == (960, 720)
    spec = yaml.safe_load((run / "spec.yaml").read_text())
    assert spec["train"]["optimizer"]["lr"] == 1e-3


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(
    decoder_spec: Path, cli: Cli
) -> None:
    for out, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert cli("pretrain", decoder_spec, "--out", out, "--seed", seed).status == 0
    assert losses(Path("a")) == losses(Path("b")) != losses(Path("c"))


def test_accumulation_does_not_change_the_losses(decoder_spec: Path, cli: Cli) -> None:
    plain = sets("model.dropout=0.0", "model.blocks.0.mixer.dropout=0.0")
    cli("pretrain", decoder_spec, "--out", "whole", *plain)
    cli("pretrain", decoder_spec, "--out", "parts", *plain, *sets("train.micro_batch_size=2"))
    assert losses(Path("parts")) == pytest.approx(losses(Path("whole")), abs=1e-5)


def test_options_of_their_own_are_named_in_messages(decoder_spec: Path, cli: Cli) -> None:
    """Not the `--set` that they stand for, which nobody wrote; and what a dry run does not do is
    refused.
    """
    result = cli("pretrain", decoder_spec, "--dry-run", "--precision", "fp8")
    assert result.status == 2
    assert "--precision: train.precision: 'fp8'" in result.err
    assert "--set" not in result.err
    result = cli("pretrain", decoder_spec, "--dry-run", "--resume", "--out", "run")
    assert (result.status, result.out) == (2, "")
    assert "--resume has no effect on a dry run; leave it out" in result.err


def test_dry_run_trains_nothing(decoder_spec: Path, cli: Cli) -> None:
    result = cli("pretrain", decoder_spec, "--dry-run", "--json")
    plan = json.loads(result.out)
    model = load_shapes(decoder_spec)
    assert plan["parameters"] == model
    assert plan["steps"] == 12
    assert plan["samples"] > 0
    assert plan["memory_bytes"] == plan["state_bytes"] + plan["activation_bytes"]
    assert next(layer["path"] for layer in plan["layers"]) == "embedding"
    assert not Path("runs").exists()
    text = cli("pretrain", decoder_spec, "--dry-run").out
    assert f"parameters        {model:,}" in text
    assert "blocks.1.ffn.down" in text


def load_shapes(spec: Path) -> int:
    """Parameters of the tiny decoder, counted by hand."""
    vocab = len(set(Path("text.txt").read_text()))
    attention = 16 * 48 + 48 + 16 * 16 + 16
    ffn = 16 * 64 + 64 + 64 * 16 + 16
    return vocab * 16 + 16 * 16 + 2 * (attention + ffn + 4 * 16) + 2 * 16


def test_eval_counts_the_whole_split(decoder: Path, cli: Cli) -> None:
    result = cli("eval", decoder, "--json")
    assert result.status == 0, result.err
    values = json.loads(result.out)
    text = Path("text.txt").read_text()
    assert values["schema_version"] == 1
    assert values["metrics"]["loss"]["count"] == len(text) - int(len(text) * 0.9) - 1
    low, high = (values["metrics"]["loss"][k] for k in ("low", "high"))
    assert low < values["loss"] < high
    # by hand, in one piece of the model's own context after the other
    loaded = load_checkpoint(decoder)
    symbols = {c: i for i, c in enumerate(sorted(set(text)))}
    tokens = torch.tensor([symbols[c] for c in text[int(len(text) * 0.9) :]])
    nats = 0.0
    for first in range(0, len(tokens) - 1, 16):
        piece = tokens[first : first + 17][None]
        with torch.no_grad():
            logits = loaded.model(piece[:, :-1])
        nats += float(torch.nn.functional.cross_entropy(logits[0], piece[0, 1:], reduction="sum"))
    assert values["loss"] == pytest.approx(nats / (len(tokens) - 1), abs=1e-4)
    assert "metric" in cli("eval", decoder, "--split", "train").out
    assert cli("eval", decoder, "--split", "nothing").status == 3


@pytest.mark.parametrize("position", ["{type: rotary}", "{type: none}"])
def test_eval_equals_the_last_validation_of_the_run(
    position: str, decoder_spec: Path, cli: Cli
) -> None:
    """A loaded model computes what the trained one did, also where tables of positions are not in
    the checkpoint.
    """
    changes = [
        f"model.blocks.0.mixer.position={position}",
        "model.position={type: sinusoidal}",
        "train.precision=fp32",
    ]
    sets = [word for change in changes for word in ("--set", change)]
    assert cli("pretrain", decoder_spec, "--out", "positions", *sets).status == 0
    last = json.loads(Path("positions/metrics.jsonl").read_text().splitlines()[-1])
    loaded = json.loads(cli("eval", "positions", "--json").out)
    assert loaded["loss"] == pytest.approx(last["val"]["loss"], rel=1e-5)


def test_eval_of_a_classifier_and_other_data(cnn: Path, cli: Cli) -> None:
    values = json.loads(cli("eval", cnn, "--json").out)
    assert values["metrics"]["accuracy"]["method"] == "exact"
    assert values["metrics"]["accuracy"]["count"] == 364
    assert values["error"] == pytest.approx(1 - values["accuracy"])
    for label in ("cat", "dog"):
        Path("pets", label).mkdir(parents=True)
        Image.new("L", (8, 8)).save(f"pets/{label}/a.png")
    result = cli("eval", cnn, "--set", "data={type: image_folder, root: pets}")
    assert result.status == 2
    assert "the data has classes that the checkpoint does not know: " in result.err
    assert "it knows 0, 1, 2" in result.err


def test_predict_labels(cnn: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    names = digit_files(40)
    result = cli("predict", cnn, *names, "--top", 2)
    records = [json.loads(line) for line in result.out.splitlines()]
    assert [r["input"] for r in records] == names
    assert all(len(r["top"]) == 2 and r["top"][0]["label"] == r["label"] for r in records)
    assert sum(r["label"] == str(i % 10) for i, r in enumerate(records[:10])) >= 5
    monkeypatch.setattr(
        sys, "stdin", io.TextIOWrapper(io.BytesIO("\n".join(names[:3]).encode() + b"\n"))
    )
    piped = [json.loads(line) for line in cli("predict", cnn, "--top", 2).out.splitlines()]
    assert piped == records[:3]
    result = cli("predict", cnn, "nothing.png")
    assert (result.status, "nothing.png: no such image" in result.err) == (3, True)


def test_predict_continues_text(decoder: Path, cli: Cli) -> None:
    words = ["predict", decoder, "attention", "all", "--max-tokens", 12]
    greedy = cli(*words, "--temperature", 0)
    assert greedy.status == 0, greedy.err
    records = [json.loads(line) for line in greedy.out.splitlines()]
    assert [r["input"] for r in records] == ["attention", "all"]
    assert all(len(r["text"]) == 12 for r in records)
    assert cli(*words, "--top-k", 1).out == greedy.out
    assert cli(*words, "--seed", 3).out == cli(*words, "--seed", 3).out
    result = cli("predict", decoder, "Ünknown")
    assert (result.status, "is not in the vocabulary" in result.err) == (3, True)


def test_attend_to_text(decoder: Path, cli: Cli) -> None:
    result = cli("attend", decoder, "attention is", "--json", "--top", 3)
    assert result.status == 0, result.err
    values = json.loads(result.out)
    assert [layer["name"] for layer in values["layers"]] == ["blocks.0.mixer", "blocks.1.mixer"]
    for layer in values["layers"]:
        assert layer["keys"]["tokens"] == list("attention is")
        assert [head["head"] for head in layer["heads"]] == [0, 1]
        assert layer["difference"] < 1e-5
        assert all(len(head["reads"]) == 3 for head in layer["heads"])
        assert all(0 <= head["sink"] <= 1 for head in layer["heads"])
    shown = cli("attend", decoder, "attention is")
    assert "Weights show where information is fetched" in shown.out
    assert "\x1b" not in shown.out
    assert len(shown.out.splitlines()) <= 40
    drawn = cli("attend", decoder, "attention is", "--heads", "0.1", "--png", "x.png")
    assert (drawn.status, drawn.out) == (0, "x.png\n"), drawn.err
    assert Image.open("x.png").size[0] > 300
    for words, message in (
        (["--layers", 9], "--layers: 9: the layers with attention are 0 to 1"),
        (["--layers", "a"], "--layers a: give numbers"),
        (["--heads", "0.7"], "--heads: 0.7: the heads of layer 0 are 0 to 1"),
        (["--heads", "7.0"], "--heads: 7: the layers with attention are 0 to 1"),
        (["--heads", 1], "--heads 1: give LAYER.HEAD"),
        (["--query", 1], "--query 1: the positions are 0 to 0"),
        (["--query", "1,2"], "--query 1,2: ROW,COLUMN is a patch of an image"),
        (["--key", 3], "--key 3: the positions are 0 to 0"),
        (["--cam", "gradcam"], "--cam, --cam-layer, --class and --baseline are for images"),
        (["--target", "b"], "--target is for models that read a source"),
        (["--png", "a.pdf"], "--png: a.pdf: the name must end in .png"),
        (["--data", "a.csv"], "--data: a.csv: the name must end in .safetensors or .jsonl"),
        (["--out", "a.png"], "--out: it is called --png, --pdf or --svg now"),
        (["--layer", 0], "--layer: it is called --layers now"),
        (["--head", 0], "--head: it is called --heads LAYER.HEAD now"),
    ):
        result = cli("attend", decoder, "a", *words)
        assert (result.status, message in result.err) == (2, True), result.err
    assert cli("attend", decoder, "").status == 3
    assert cli("attend", decoder, "a", "--png", "no/where.png").status == 5


def test_attend_to_an_image(cnn: Path, cli: Cli) -> None:
    (name,) = digit_files(1)
    result = cli("attend", cnn, name, "--json", "--png", "cam.png")
    assert result.status == 0, result.err
    values = json.loads(result.out)
    heat = torch.tensor(values["heat"])
    assert heat.shape == (8, 8)
    assert float(heat.min()) >= 0
    assert float(heat.max()) <= 1
    assert Image.open("cam.png").size[0] > 300
    shown = cli("attend", cnn, name).out
    assert f"answer: {values['label']}:" in shown


def test_grad_cam_equals_its_formula(cnn: Path) -> None:
    from bigmodel_cli.attend.gradcam import grad_cam

    loaded = load_checkpoint(cnn)
    model: Any = loaded.model
    image = torch.randn(1, 1, 8, 8)
    cam = grad_cam(model, image.clone(), loaded.info)
    features = model.layers[0](image).detach().requires_grad_()
    logits = features
    for layer in list(model.layers)[1:]:
        logits = layer(logits)
    best = int(logits.argmax())
    gradient = torch.autograd.grad(logits[0, best], features)[0]
    heat = (gradient.mean((2, 3), keepdim=True) * features).sum(1).relu()[0].detach()
    heat = torch.nn.functional.interpolate(heat[None, None], size=(8, 8), mode="bilinear")[0, 0]
    torch.testing.assert_close(cam.heat, heat / heat.max(), atol=1e-5, rtol=0)
    assert cam.label == str(best)


@pytest.mark.parametrize("target", [None, "spec", "checkpoint"])
def test_bench_measures(target: str | None, decoder_spec: Path, cli: Cli) -> None:
    words: list[Any] = {None: [], "spec": [decoder_spec]}.get(target, [])
    if target == "checkpoint":
        words = [cli("pretrain", decoder_spec).out.strip()]
    result = cli("bench", *words, "--seconds", 0.2, "--precision", "fp32", "--json")
    assert result.status == 0, result.err
    values = json.loads(result.out)
    assert len(values["benchmarks"]) == (2 if target is None else 1)
    for timing in values["benchmarks"]:
        assert 0 < timing["median_s"] <= timing["p95_s"]
        work, parameters = timing["work"], timing["facts"]["parameters"]
        rate = work["useful"] / timing["median_s"]
        assert timing["mfu"] == pytest.approx(rate / work["matrix_rate"])
        assert 0 < timing["mfu"] < 1.5
        assert parameters > 1000
        # weights, gradients, and two moments of each
        assert timing["peak_tensors"] > 4 * 4 * parameters
        assert timing["peak_process"] >= 0  # what it had freed before, it does not ask for anew
    assert "MFU" in cli("bench", *words, "--seconds", 0.1, "--precision", "fp32").out


def test_finetune_with_other_classes_and_a_frozen_body(cnn: Path, cli: Cli) -> None:
    for number, label in enumerate(("cat", "dog", "cow")):
        Path("pets", label).mkdir(parents=True)
        for index in range(4):
            Image.new("L", (8, 8), 80 * number + index).save(f"pets/{label}/{index}.png")
    Path("pets.yaml").write_text(
        "data: {type: image_folder, root: pets, channels: 1}\ninit: {train: head}\n"
        "train: {steps: 5, batch_size: 4, precision: fp32, optimizer: {lr: 0.1}}\n"
    )
    result = cli("finetune", "--from", cnn, "pets.yaml", "--out", "pets-run")
    assert result.status == 0, result.err
    assert "newly initialised, since the classes differ: layers.4" in result.err
    assert "of them frozen" in result.err
    before = checkpoints.read(cnn, train_state=False)
    after = checkpoints.read(Path(result.out.strip()), train_state=False)
    assert after.info["classes"] == ["cat", "cow", "dog"]
    # the checkpoint's normalisation goes with its weights
    assert after.info["mean"] == before.info["mean"]
    weights = before.model.load()
    for name, tensor in after.model.load().items():
        same = (
            name in weights
            and weights[name].shape == tensor.shape
            and torch.equal(weights[name], tensor)
        )
        running = "running" in name or "num_batches" in name
        assert same != name.startswith("layers.4") or running, name
    names = ["pets/dog/1.png", "pets/cat/1.png"]
    records = [
        json.loads(line) for line in cli("predict", result.out.strip(), *names).out.splitlines()
    ]
    assert {r["label"] for r in records} <= {"cat", "cow", "dog"}


def test_finetune_without_a_spec_goes_on_with_the_checkpoints(decoder: Path, cli: Cli) -> None:
    result = cli(
        "finetune", "--from", decoder, "--set", "train.steps=3", "--set", "train.precision=fp32"
    )
    assert result.status == 0, result.err
    assert result.out == "runs/decoder-finetuned/checkpoints/step-00000003\n"
    # it starts where that one ended
    assert losses(Path("decoder"))[1] - losses(Path("runs/decoder-finetuned"))[3] > 0.02
    spec = yaml.safe_load(Path("runs/decoder-finetuned/spec.yaml").read_text())
    assert spec["init"]["checkpoint"] == str(decoder)
    for pattern, message in (("blocks.7", "matches no weight"), ("*", "every weight is frozen")):
        result = cli(
            "finetune", "--from", decoder, *sets("train.steps=3", f"init.freeze=['{pattern}']")
        )
        assert result.status == 2
        assert message in result.err


def test_a_finetuned_run_is_resumed_exactly(decoder: Path, cli: Cli, zygote: Any) -> None:
    from conftest import digests
    from zygote import resume_command

    words = [
        "finetune",
        "--from",
        decoder,
        *sets("train.steps=8", "train.precision=fp32", "init.freeze=[embedding]"),
    ]
    whole = cli(*words, "--out", "whole")
    assert whole.status == 0, whole.err
    stopped = zygote.run(*words, "--out", "run", env={"BIGMODEL_FAILPOINT": "train.step:SIGTERM:3"})
    assert stopped.status == 143
    resumed = cli(*resume_command(stopped.err))
    assert resumed.status == 0, resumed.err
    assert digests(Path(resumed.out.strip())) == digests(Path(whole.out.strip()))


def test_commands_in_a_pipeline(decoder_spec: Path, zygote: Zygote) -> None:
    """pretrain SPEC | finetune --from - b.yaml | eval - --json"""
    Path("b.yaml").write_text("train: {steps: 4, batch_size: 16}\n")
    for pipe in ("pretrained", "finetuned"):
        os.mkfifo(pipe)
    children = [
        zygote.start("pretrain", decoder_spec, stdout="pretrained"),
        zygote.start("finetune", "--from", "-", "b.yaml", stdin="pretrained", stdout="finetuned"),
        zygote.start("eval", "-", "--json", stdin="finetuned"),
    ]
    ended = [child.wait() for child in children]
    assert [end.status for end in ended] == [0, 0, 0], ended
    found = json.loads(ended[-1].out)
    assert found["checkpoint"].endswith("step-00000004")
    assert found["metrics"]["loss"]["count"] == 392  # of the held-out tenth of 4,000 characters


def test_an_empty_pipe_is_reported(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    result = cli("eval", "-")
    assert result.status == 2
    assert "no checkpoint's path came on stdin" in result.err


def test_early_stopping_returns_the_best(decoder_spec: Path, cli: Cli) -> None:
    changes = [
        "train.optimizer={type: sgd, lr: 30.0}",
        "train.validate_every=1",
        "train.patience=2",
        "train.steps=50",
    ]
    result = cli(
        "pretrain", decoder_spec, "--out", "run", *sets(*changes, "train.max_grad_norm=1.0")
    )
    assert result.status == 0, result.err
    assert "stopping early: 2 validations without a better loss" in result.err
    records = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    scores = {r["step"]: r["val"]["loss"] for r in records if "val" in r}
    best = min(scores, key=lambda step: scores[step])
    assert Path(result.out.strip()).name == f"step-{best:08d}"
    assert max(scores) == best + 2


def test_tensorboard_gets_the_same_figures(decoder_spec: Path, cli: Cli) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    result = cli("pretrain", decoder_spec, "--out", "run", "--set", "train.tensorboard=true")
    assert result.status == 0, result.err
    events = accumulator.EventAccumulator(str(Path("run/tensorboard")))
    events.Reload()
    seen = {e.step: e.value for e in events.Scalars("train/loss")}
    assert seen == pytest.approx(losses(Path("run")), abs=1e-6)
    assert [e.step for e in events.Scalars("val/loss")] == [4, 8, 12]


@pytest.mark.no_cover
@pytest.mark.parametrize("precision", ["bf16", "auto"])
def test_other_precisions_learn_as_well(precision: str, decoder_spec: Path, cli: Cli) -> None:
    changes = sets(
        "train.steps=60", "train.memory_format=auto", "train.compile=auto", "train.log_every=60"
    )
    result = cli("pretrain", decoder_spec, "--out", "run", *changes, "--precision", precision)
    assert result.status == 0, result.err
    plain = cli("pretrain", decoder_spec, "--out", "plain", *changes, "--precision", "fp32")
    assert plain.status == 0, plain.err
    assert losses(Path("run"))[60] == pytest.approx(losses(Path("plain"))[60], abs=0.02)
    assert losses(Path("run"))[60] < math.log(20) - 0.1  # of some twenty characters
    spec = yaml.safe_load(Path("run/spec.yaml").read_text())
    assert spec["train"]["precision"] in ("bf16", "fp32")
    # by the time that it takes
    assert (precision == "auto") == ("(median of " in result.err or "(one pass" in result.err)


@pytest.mark.no_cover
def test_a_compiled_model_gives_the_same_losses(decoder_spec: Path, cli: Cli) -> None:
    plain = sets("model.dropout=0.0", "model.blocks.0.mixer.dropout=0.0", "train.steps=4")
    plain += sets("model.blocks.0.repeat=1", "task.sample_tokens=0", "data.val_fraction=0")
    plain += sets("train.validate_every=null")
    assert cli("pretrain", decoder_spec, "--out", "plain", *plain).status == 0
    result = cli(
        "pretrain", decoder_spec, "--out", "compiled", *plain, "--set", "train.compile='on'"
    )
    assert result.status == 0, result.err
    assert losses(Path("compiled")) == pytest.approx(losses(Path("plain")), abs=1e-4)


def test_models_schema_and_init(cli: Cli) -> None:
    listed = json.loads(cli("models", "--json").out)
    assert {"decoder", "cnn", "torchvision"} <= listed["model"].keys()
    assert "attention" in cli("models").out
    schema = json.loads(cli("schema").out)
    assert set(schema["required"]) == {"model", "data", "task", "train"}
    assert "^x-" in schema["patternProperties"]
    for like in ("decoder", "cnn"):
        assert cli("init", f"mine-{like}", "--like", like).out == f"mine-{like}.yaml\n"
        check(parse_yaml(Path(f"mine-{like}.yaml").read_bytes(), "mine.yaml"))
    result = cli("init", "mine-cnn")
    assert (result.status, "exists already" in result.err) == (2, True)
    result = cli("init", "other", "--like", "cnnn")
    assert (result.status, "did you mean cnn?" in result.err) == (2, True)


def test_init_starts_from_any_sample_and_each_task(cli: Cli) -> None:
    from bigmodel_cli.catalog import like_what, samples
    from bigmodel_cli.tasks import TASKS

    assert set(samples()) == {path.stem for path in (ROOT / "sample_configs").glob("*.yaml")}
    for task in TASKS:
        plain = parse_yaml(like_what(task).encode(), "sample").plain()
        assert check(parse_yaml(like_what(task).encode(), "sample")).task.type == task, plain[
            "task"
        ]
    assert cli("init", "mine-sst", "--like", "sst2").out == "mine-sst.yaml\n"
    assert "#   bigmodel pretrain mine-sst.yaml\n" in Path("mine-sst.yaml").read_text()


def test_the_schema_accepts_the_specs_and_refuses_faults(cli: Cli) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(json.loads(cli("schema").out))
    for path in (ROOT / "sample_configs").glob("*.yaml"):
        if "finetune" not in path.name:
            plain = parse_yaml(path.read_bytes(), str(path)).plain()
            assert list(validator.iter_errors(plain)) == [], path
    faulty = parse_yaml(DECODER.replace("dim: 16", "dim: wide").encode(), "s").plain()
    assert list(validator.iter_errors(faulty))


def test_every_command_has_an_example_and_every_option_a_help(cli: Cli) -> None:
    import typer.main

    from bigmodel_cli.cli import app

    group: Any = typer.main.get_command(app)
    for name, command in group.commands.items():
        assert "Example: bigmodel " in (command.help or ""), name
        for parameter in command.params:
            if parameter.name != "help":
                assert getattr(parameter, "help", None), f"{name} {parameter.name}"


def test_the_list_of_commands_is_whole_in_80_columns(
    cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    done = cli("--help")
    listed = done.out.partition("Commands:\n")[2].splitlines()
    assert len(listed) >= 15
    assert all(line.endswith(".") and not line.endswith("...") for line in listed)
