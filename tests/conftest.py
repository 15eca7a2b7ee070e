"""Shared fixtures: the real data's folder, a small cache, small specs, and the command line."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer.main
from zygote import Zygote, mark_curve

from bigmodel_cli import checkpoints
from bigmodel_cli.__main__ import run
from bigmodel_cli.lazy import load_torch
from bigmodel_cli.train.observers import curve

ROOT = Path(__file__).resolve().parent.parent
os.environ["OMP_NUM_THREADS"] = "1"  # also for processes that tests start: threads of several wait
# for one another, spinning, where there are as many processes as cores
load_torch()
import torch  # noqa: E402

# small sums, split between threads, would differ from those of the processes that tests start
torch.set_num_threads(1)
typer.main.get_command = functools.cache(typer.main.get_command)  # the same for each command line


def find_data() -> Path | None:
    """The real data sets' folder: `BIGMODEL_TEST_DATA`, else ../shared/data beside the checkout,
    else None.
    """
    named = os.environ.get("BIGMODEL_TEST_DATA")
    candidates = [Path(named)] if named else [ROOT.parent / "shared" / "data"]
    return next((path.resolve() for path in candidates if path.is_dir()), None)


def loss_of(task: Any, model: Any, batch: Any) -> tuple[Any, Any]:
    """The summed loss and its count, as a step of training has them."""
    return task.loss(task.forward(model, batch), batch)


def scores_of(task: Any, model: Any, batch: Any) -> dict[str, tuple[Any, Any]]:
    """Sums and counts of each item, as an evaluation has them."""
    return task.score(task.forward(model, batch, training=False), batch)[0]


LONG = (
    "tests/test_house.py::test_no_lint_and_no_type_errors[types]",
    "tests/test_commands.py::test_a_compiled_model_gives_the_same_losses",
    "tests/train/test_storms.py",
    "tests/evaluation/test_lm_eval.py",
    "tests/parts/test_references.py",
    "tests/data/text/test_pairs.py::test_an_encoder_decoder_learns_to_reverse_words",
    "tests/test_fuzz.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest tests come first, so that none of them runs alone at the end."""
    items.sort(key=lambda item: not item.nodeid.startswith(LONG))


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The real data's root; the test is skipped where there is none."""
    root = find_data()
    if root is None:
        pytest.skip(
            "real data not found: set BIGMODEL_TEST_DATA to the folder that holds mnist/,"
            " tinyshakespeare/ ..."
        )
    return root


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of prepared data for this session alone."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _workplace(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Each test runs in a folder of its own; curve.png, which takes longer than a small training,
    is drawn for tests marked `curve` and is a few bytes for the others.
    """
    monkeypatch.chdir(tmp_path)
    if request.node.get_closest_marker("curve") is None:
        monkeypatch.setattr(curve, "draw_curve", mark_curve)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.delenv("BIGMODEL_FAILPOINT", raising=False)


@dataclass
class Result:
    """What a command gave back."""

    status: int
    out: str
    err: str


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Run a command in this process."""

    def call(*arguments: object) -> Result:
        capfd.readouterr()
        status = run([str(a) for a in arguments])
        captured = capfd.readouterr()
        return Result(status, captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    """Starts commands as processes of their own."""
    parent = Zygote(tmp_path_factory.mktemp("processes"))
    yield parent
    parent.close()


@pytest.fixture(scope="session")
def plain_zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    """Starts commands that plugins join, which is done once in a process."""
    parent = Zygote(tmp_path_factory.mktemp("processes"), plain=True)
    yield parent
    parent.close()


def shell(
    *arguments: object, env: dict[str, str] | None = None, **options: object
) -> subprocess.Popen[str]:
    """Start a command as a process of its own, with two streams to read."""
    full = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **(env or {})}
    command = [sys.executable, "-m", "bigmodel_cli", *map(str, arguments)]
    return subprocess.Popen(  # type: ignore[call-overload, no-any-return]
        command, env=full, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def finish(process: subprocess.Popen[str], timeout: float = 120) -> Result:
    """Wait for a process and collect what it wrote."""
    out, err = process.communicate(timeout=timeout)
    return Result(process.returncode, out, err)


def digests(checkpoint: Path) -> dict[str, str]:
    """SHA-256 of the files of a checkpoint that decide how training goes on; state.json without the
    clock's figure.
    """
    state = json.loads((checkpoint / "state.json").read_text())
    state.pop("elapsed")
    found = {"state": hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()}
    for name in ("model.safetensors", "train_state.safetensors"):
        found[name] = hashlib.sha256((checkpoint / name).read_bytes()).hexdigest()
    return found


def losses(run_directory: Path) -> dict[int, float]:
    """The training loss of each logged step."""
    records = [
        json.loads(line) for line in (run_directory / "metrics.jsonl").read_text().splitlines()
    ]
    return {r["step"]: r["loss"] for r in records if "loss" in r}


DECODER = """\
model:
  type: decoder
  dim: 16
  position: {type: learned}
  dropout: 0.1
  blocks:
    - repeat: 2
      mixer: {type: attention, num_heads: 2, dropout: 0.1}
      ffn: {type: gelu}
data:
  type: text
  files: [text.txt]
  context: 16
  tokenizer: {type: characters}
task: {type: causal_lm, sample_tokens: 8, sample_prompt: a}
train:
  steps: 12
  batch_size: 4
  precision: fp32
  memory_format: contiguous
  compile: "off"
  log_every: 1
  validate_every: 4
"""

CNN = """\
model:
  type: cnn
  layers:
    - {type: conv, channels: 8, kernel: 3, norm: batch}
    - {type: pool}
    - {type: flatten}
    - {type: dropout, p: 0.2}
    - {type: dense, units: classes}
data:
  type: digits
  augment:
    - {type: RandomAffine, degrees: 10, translate: [0.1, 0.1]}
task: {type: classification}
train:
  steps: 12
  batch_size: 256
  ema: 0.9
  precision: fp32
  memory_format: contiguous
  compile: "off"
  log_every: 1
  validate_every: 4
"""


def write_text(path: Path, size: int = 4000) -> None:
    """A text of a few words in random order, the same each time."""
    rng = random.Random(0)
    words = [
        "attention",
        "is",
        "all",
        "you",
        "need",
        "a",
        "small",
        "model",
        "learns",
        "from",
        "text",
        "\n",
    ]
    path.write_text(" ".join(rng.choice(words) for _ in range(size // 5))[:size], encoding="utf-8")


@pytest.fixture
def decoder_spec(tmp_path: Path) -> Path:
    """A tiny decoder on a tiny text, pinned for exact repetition."""
    write_text(tmp_path / "text.txt")
    path = tmp_path / "decoder.yaml"
    path.write_text(DECODER, encoding="utf-8")
    return path


@pytest.fixture
def cnn_spec(tmp_path: Path) -> Path:
    """A tiny CNN on digits with augmentation, dropout, batch norm and averaging, pinned for exact
    repetition.
    """
    path = tmp_path / "cnn.yaml"
    path.write_text(CNN, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a small decoder, to start from; only to be read."""
    folder = tmp_path_factory.mktemp("base")
    (folder / "text.txt").write_text("a rose is a rose is a rose. " * 40)
    spec = DECODER.replace("text.txt", str(folder / "text.txt")).replace("steps: 12", "steps: 2")
    (folder / "base.yaml").write_text(spec)
    assert run(["pretrain", str(folder / "base.yaml"), "--out", str(folder / "base")]) == 0
    return checkpoints.find(folder / "base")
