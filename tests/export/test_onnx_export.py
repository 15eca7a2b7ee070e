"""`bigmodel export --to onnx`: the folder, whose script says what `bigmodel predict` says."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import DECODER
from pictures import png
from tones import packed, riff, tone

from bigmodel_cli.export import recording
from bigmodel_cli.export.onnx import ONNX
from bigmodel_cli.export.source import open_source

pytestmark = pytest.mark.no_cover
Cli = Callable[..., Any]
CHECKPOINTS = Path(__file__).parents[1] / "checkpoints" / "fixtures" / "format1"


@pytest.fixture(autouse=True)
def _packages() -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)


def exported(cli: Cli, name: str) -> Path:
    result = cli("export", CHECKPOINTS / name, "out", "--to", "onnx")
    assert result.status == 0, result.err
    assert re.search(r"model\.onnx: largest difference .* \d\.\de-\d\d, relative\n", result.err)
    assert result.out == "out\n"
    return Path("out")


def printed(folder: Path, argument: str) -> str:
    """What the script of the card prints."""
    (script,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    (folder / "run.py").write_text(script)
    command = [sys.executable, "run.py", argument]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.removesuffix("\n")


def predicted(cli: Cli, name: str, given: str, *options: object) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(cli("predict", CHECKPOINTS / name, given, *options).out)
    return found


@pytest.mark.parametrize("name", ["cnn", pytest.param("vit", marks=pytest.mark.slow)])
def test_the_script_labels_images_as_predict_does(name: str, cli: Cli) -> None:
    folder = exported(cli, name)
    pixels = np.random.default_rng(0).integers(0, 256, (19, 23, 3))
    Path("picture.png").write_bytes(png(pixels, kind=2))
    ours = predicted(cli, name, "picture.png")
    label, chance = printed(folder, str(Path("picture.png").absolute())).splitlines()[0].split()
    assert label == str(ours["label"])
    assert float(chance) == pytest.approx(ours["probability"], abs=2e-4)
    labels = json.loads((folder / "config.json").read_text())["id2label"]
    assert label in labels.values()


def test_the_script_labels_texts_as_predict_does(cli: Cli) -> None:
    folder = exported(cli, "sentiment")
    ours = predicted(cli, "sentiment", "a good film")
    label, chance = printed(folder, "a good film").splitlines()[0].split()
    assert label == ours["label"]
    assert float(chance) == pytest.approx(ours["probability"], abs=2e-4)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mamba", ["--temperature", 0, "--max-tokens", 64]),
        pytest.param("seq2seq", ["--beams", 1], marks=pytest.mark.slow),
    ],
)
def test_the_script_writes_as_predict_does(name: str, options: list[Any], cli: Cli) -> None:
    folder = exported(cli, name)
    given = "a b" if name == "seq2seq" else "the"
    found = printed(folder, given)  # up to the model's length, where predict slides on
    assert len(found) > 5
    assert predicted(cli, name, given, *options)["text"].startswith(found)
    names = {"model.onnx"} if name == "mamba" else {
        "encoder_model.onnx", "decoder_model.onnx", "decoder_with_past_model.onnx",
    }  # fmt: skip
    assert names == {path.name for path in folder.glob("*.onnx")}
    assert (folder / "tokenizer.json").exists()


def test_the_script_writes_down_sound_as_predict_does(cli: Cli) -> None:
    folder = exported(cli, "ctc")
    rate = json.loads((folder / "preprocessor_config.json").read_text())["sampling_rate"]
    Path("sound.wav").write_bytes(riff(packed(tone(rate, 0.4, 700), "16"), rate=rate))
    ours = predicted(cli, "ctc", "sound.wav")
    assert printed(folder, str(Path("sound.wav").absolute())) == ours["text"]


@pytest.mark.slow
def test_each_token_of_a_masked_language_model(cli: Cli) -> None:
    lines = printed(exported(cli, "masked"), "a good film").splitlines()
    assert len(lines) >= 3


def test_weights_in_bf16_are_written_in_fp32(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import onnx

    source = open_source(CHECKPOINTS / "cnn", "", {})
    source.model.to(torch.bfloat16)
    ONNX().write(source, tmp_path)
    assert "weights in bfloat16 are written in fp32" in capfd.readouterr().err
    kinds = {t.data_type for t in onnx.load(tmp_path / "model.onnx").graph.initializer}
    assert onnx.TensorProto.FLOAT in kinds
    assert onnx.TensorProto.BFLOAT16 not in kinds


def test_nothing_is_left_of_a_refused_export(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "BOUND", 0.0)
    result = cli("export", CHECKPOINTS / "cnn", "out", "--to", "onnx")
    assert result.status == 2
    assert "gives other numbers in onnxruntime than the model" in result.err
    assert not [path for path in Path().iterdir() if "out" in path.name]


def test_a_network_that_rebuilds_images_is_refused(cli: Cli) -> None:
    result = cli("export", CHECKPOINTS / "mae", "out", "--to", "onnx")
    assert result.status == 2
    assert "has no head to label them" in result.err
    assert not Path("out").exists()


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_a_missing_package(package: str, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    result = cli("export", CHECKPOINTS / "cnn", "out", "--to", "onnx")
    assert result.status == 2
    assert result.err.endswith(
        f"--to onnx needs {package}, which is not installed: pip install 'bigmodel[onnx]'\n"
    )
    assert not Path("out").exists()


def test_without_onnxruntime_it_is_written_and_said(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    from importlib.util import find_spec

    def without(name: str, *given: Any) -> Any:
        return None if name == "onnxruntime" else find_spec(name, *given)

    monkeypatch.setattr("importlib.util.find_spec", without)
    result = cli("export", CHECKPOINTS / "cnn", "out", "--to", "onnx")
    assert result.status == 0
    assert "model.onnx: not compared, since onnxruntime is not installed" in result.err
    assert Path("out/model.onnx").exists()


def test_what_is_refused_as_in_other_forms(cli: Cli, tmp_path: Path) -> None:
    """A folder that is there, one without a parent, and a checkpoint with an adapter."""
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine.txt").write_text("mine")
    for form in ("onnx", "hf"):
        found = cli("export", CHECKPOINTS / "sentiment", taken, "--to", form)
        assert (found.status, "is there already; name a new folder" in found.err) == (2, True)
        found = cli("export", CHECKPOINTS / "sentiment", tmp_path / "a" / "b", "--to", form)
        assert (found.status, "does not exist; make it" in found.err) == (5, True)
    assert [path.name for path in taken.iterdir()] == ["mine.txt"]
    Path("text.txt").write_text("a rose is a rose is a rose. " * 40)
    Path("base.yaml").write_text(DECODER.replace("steps: 12", "steps: 1"))
    adapter = "adapter={type: lora, rank: 2, targets: ['*.qkv']}"
    run = cli("pretrain", "base.yaml", "--set", adapter, "--out", tmp_path / "run")
    assert run.status == 0, run.err
    found = cli("export", run.out.strip(), tmp_path / "out", "--to", "onnx")
    assert (found.status, "holds an adapter; write it with --to adapter" in found.err) == (2, True)
    assert not (tmp_path / "out").exists()
