"""`bigmodel runs`: what it says of runs in any state, and that damaged files cost a line of
warning.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, Result
from PIL import Image

from bigmodel_cli.differences import differing, short_paths

Cli = Callable[..., Result]
ACCURACY = {"name": "accuracy", "higher_is_better": True, "percent": ["accuracy"]}
SPEC = {
    "model": {
        "type": "cnn",
        "layers": [{"type": "conv", "channels": 8}, {"type": "dense", "units": 10}],
    },
    "data": {"type": "digits", "val_fraction": 0.1},
    "task": {"type": "classification"},
    "train": {"steps": 40, "optimizer": {"type": "adamw", "lr": 0.001}, "seed": 0},
}


def made(path: str, state: str = "done", spec: dict[str, Any] | None = None, **more: Any) -> Path:
    """A run's folder as a training leaves it: validations at steps 10, 20, 30, 40, the third of
    which is the best.
    """
    run = Path(path)
    run.mkdir(parents=True)
    status = {"state": state, "code": 0, "message": "", "last_step": 40, "last_checkpoint": None}
    status |= {"total_steps": 50, "metric": ACCURACY, "parameters": 1234, **more}
    (run / "status.json").write_text(json.dumps(status))
    (run / "spec.yaml").write_text(yaml.safe_dump(spec or SPEC, sort_keys=False))
    records: list[dict[str, Any]] = []
    for step, accuracy in ((10, 0.5), (20, None), (30, 0.75), (40, 0.7)):
        records.append(
            {"step": step, "loss": 2.0 / step, "lr": 1e-3, "grad_norm": 1.0, "elapsed": step * 1.5}
        )
        records.append({"step": step, "val": {"loss": 3.0 / step, "accuracy": accuracy}})
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (run / "run.lock").write_text(f"process {2**22 + 5} on {socket.gethostname()}")
    return run


@pytest.fixture
def holding() -> Iterator[Callable[[Path], None]]:
    """Takes the lock of a run, as its process does."""
    held: list[int] = []

    def hold(run: Path) -> None:
        held.append(os.open(run / "run.lock", os.O_RDWR))
        fcntl.flock(held[-1], fcntl.LOCK_EX)
        os.ftruncate(held[-1], 0)
        os.write(held[-1], f"process {os.getpid()} on {socket.gethostname()}".encode())

    yield hold
    for descriptor in held:
        os.close(descriptor)


def test_a_listing_says_state_step_best_metric_time_and_differences(
    cli: Cli, holding: Callable[[Path], None]
) -> None:
    made("runs/a-10")
    made(
        "runs/a-2",
        spec={**SPEC, "train": {**SPEC["train"], "optimizer": {"type": "muon", "lr": 0.02}}},
    )
    made("runs/b", "stopped", total_steps=None)
    made("runs/sweep/c", "running")
    holding(made("runs/sweep/d", "running"))
    result = cli("runs")
    assert (result.status, result.err) == (0, "")
    lines = [line.split() for line in result.out.splitlines()]
    assert lines[0] == ["run", "state", "step", "best", "trained", "differs", "in"]
    best = ["accuracy", "75.00", "%", "1:00"]
    assert lines[1] == ["a-2", "finished", "40", "of", "50", *best, "optimizer=muon"]
    assert lines[2] == ["a-10", "finished", "40", "of", "50", *best, "optimizer=adamw"]
    assert lines[3] == ["b", "stopped", "40", "of", "40", *best, "optimizer=adamw"]
    assert lines[4] == ["c", "killed", "40", "of", "50", *best, "optimizer=adamw"]
    assert lines[5][:4] == ["d", "running", "(process", f"{os.getpid()})"]
    values = json.loads(cli("runs", "runs/a-2", "--json").out)["runs"][0]
    assert (values["best"], values["metric"], values["seconds"]) == (
        {"step": 30, "value": 0.75},
        "accuracy",
        60.0,
    )


def test_a_listing_of_many_runs_takes_no_second_and_no_torch(tmp_path: Path) -> None:
    for number in range(200):
        made(f"runs/r{number}", spec={**SPEC, "train": {**SPEC["train"], "seed": number}})
    code = (
        "import sys, time; t = time.process_time(); from bigmodel_cli.runs import list_runs,"
        " listing; listing(list_runs([]))"
    )
    code += "; print(time.process_time() - t, 'torch' in sys.modules, 'pydantic' in sys.modules)"
    out = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
    )
    seconds, *heavy = out.stdout.split()
    assert heavy == [b"False", b"False"], out.stderr
    assert float(seconds) < 1


DAMAGE: dict[str, tuple[str, bytes]] = {
    "a status that is cut": ("status.json", b'{"state": "do'),
    "a status that is a list": ("status.json", b"[]"),
    "a status as deep as a well": ("status.json", b"[" * 100_000),
    "a record that is cut": (
        "metrics.jsonl",
        b'{"step": 1, "val": {"loss"\n{"step": 2, "val": {"loss": 1.0}}\n',
    ),
    "records of other types": ("metrics.jsonl", b'{"step": "x", "val": 3}\n'),
    "a spec that is cut": ("spec.yaml", b"model: {type: [cnn\n"),
    "a spec that is an alias bomb": (
        "spec.yaml",
        b"model: &a [1, 2]\n" + b"data: [" + b"*a," * 60_000 + b"]\n",
    ),
    "a spec that is not UTF-8": ("spec.yaml", b"model: \xff\n"),
}


@pytest.mark.parametrize(("name", "content"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_one_line_of_warning(name: str, content: bytes, cli: Cli) -> None:
    made("runs/good")
    (made("runs/bad") / name).write_bytes(content)
    for words in ([], ["--json"]):
        result = cli("runs", *words)
        assert result.status == 0
        warnings = [line for line in result.err.splitlines() if line.startswith("warning")]
        assert len(warnings) == 1
        assert warnings[0].startswith(f"warning: runs/bad/{name}: ")
        assert "bad" in result.out
        assert "good" in result.out


def test_a_pipe_or_a_folder_in_the_place_of_a_file_does_not_hang(cli: Cli) -> None:
    run = made("runs/odd")
    for name, make in (
        ("status.json", os.mkfifo),
        ("spec.yaml", os.mkdir),
        ("run.lock", os.mkfifo),
    ):
        (run / name).unlink()
        make(run / name)
    result = cli("runs")
    assert result.status == 0
    assert result.err.count("warning: ") == 2
    assert "odd  not known" in result.out


def test_folders_that_are_not_runs_are_reported_once(cli: Cli) -> None:
    made("runs/deep/er/a")
    for name in ("notes", "x/y", "\x1b[31m"):
        Path("runs", name).mkdir(parents=True)
    Path("runs/loop").symlink_to(".")
    Path("runs/again").symlink_to("deep/er/a")
    result = cli("runs")
    assert result.status == 0
    assert len(result.out.splitlines()) == 2
    assert result.err.count("\n") == 1
    assert "\\x1b[31m" in result.err
    assert cli("runs", "nothing").status == 2
    assert "did you mean deep?" in cli("runs", "dep").err
    assert "left out: runs/notes" in cli("runs", "notes", "runs/deep").err
    Path("runs/file").touch()
    assert cli("runs", "file").err == "bigmodel: file: no such run or folder\n"
    os.rename("runs", "others")
    assert "no such folder" in cli("runs").err
    assert cli("runs", "--plot", "x.png").status == 2


def test_a_comparison_has_a_column_for_each_run_and_one_plot(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    made("runs/a")
    made("other/a", spec={**SPEC, "data": {"type": "digits", "val_fraction": 0.2}}, parameters=99)
    Path("runs/a/checkpoints/step-00000040").mkdir(parents=True)
    Path("runs/a/checkpoints/step-00000040/manifest.json").touch()
    result = cli("runs", "--compare", "a/checkpoints/step-00000040", "other/a", "runs/a")
    assert result.status == 0
    assert result.err.splitlines() == [
        (
            "note: runs differ in data.val_fraction: their losses and metrics may not be of the"
            " same thing"
        ),
        "plot: compare.png",
    ]
    rows = {line[:13].strip(): line[13:].split() for line in result.out.splitlines()}
    assert rows[""] == ["runs/a", "other/a"]
    assert rows["val_fraction"] == ["0.1", "0.2"]
    assert rows["best accuracy"] == ["75.00", "%"] * 2
    assert rows["last accuracy"] == ["70.00", "%"] * 2
    assert rows["last loss"] == ["0.0750"] * 2
    assert rows["parameters"] == ["1,234", "99"]
    assert Image.open("compare.png").width == 1320


@pytest.mark.parametrize(
    ("name", "begins"), [("c.pdf", b"%PDF"), ("c.svg", b"<?xml"), ("c.PNG", b"\x89PNG")]
)
def test_a_plot_is_of_the_kind_that_its_name_ends_in(name: str, begins: bytes, cli: Cli) -> None:
    made("runs/a $x_1$ \x1b")
    assert cli("runs", "--compare", "--plot", name).status == 0
    assert Path(name).read_bytes().startswith(begins)
    assert cli("runs", "--compare", "--plot", "c.docx").status == 2


def test_runs_that_learn_other_things_are_not_drawn_together(cli: Cli) -> None:
    made("runs/a")
    made("runs/b", spec={**SPEC, "task": {"type": "causal_lm"}}, metric=None)
    (made("runs/nothing") / "metrics.jsonl").unlink()
    result = cli("runs", "--compare", "a", "b", "nothing")
    kinds = "classification by accuracy (2), causal_lm by loss (1)"
    assert (
        f"note: the runs are not all of one kind, and each kind has its own plot: {kinds}\n"
        in result.err
    )
    assert Image.open("compare.png").size == (1320, 1008)
    result = cli("runs", "--compare", "nothing", "--plot", "none.png")
    assert "no plot: " in result.err
    assert not Path("none.png").exists()


def test_options_by_former_names_are_no_differences(cli: Cli) -> None:
    old, new = ({**SPEC["train"], name: 0.5} for name in ("clip", "max_grad_norm"))
    made("runs/old", spec={**SPEC, "train": old})
    made("runs/new", spec={**SPEC, "train": new})
    assert [run["differs"] for run in json.loads(cli("runs", "--json").out)["runs"]] == [{}, {}]


def test_differences_below_a_type_are_of_runs_of_that_type() -> None:
    cnn = {
        "model.type": "cnn",
        "model.layers.0.channels": 8,
        "train.lr": 1e-3,
        "train.optimizer.type": "sgd",
    }
    vit = {
        "model.type": "vit",
        "model.dim": 32,
        "train.lr": 1e-3,
        "train.optimizer.type": "sgd",
        "train.new": None,
    }
    assert differing([cnn, vit, {}]) == ["model.type"]
    assert differing([cnn, vit, {**cnn, "model.layers.0.channels": 9}]) == [
        "model.type",
        "model.layers.0.channels",
    ]
    assert short_paths(["a.0.dim", "b.0.dim", "a.1.heads", "data.files.0", "x.type"]) == {
        "a.0.dim": "a.0.dim",
        "b.0.dim": "b.0.dim",
        "a.1.heads": "heads",
        "data.files.0": "files.0",
        "x.type": "x",
    }
