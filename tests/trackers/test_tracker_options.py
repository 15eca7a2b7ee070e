"""train.trackers in a spec, train.tensorboard in older ones, and trackers of one's own."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydantic
import pytest
from conftest import Result
from zygote import Zygote

from bigmodel_cli.catalog import catalog, schema
from bigmodel_cli.recipe import TrainOptions
from bigmodel_cli.trackers.tensorboard import TensorBoard

OWN = '''"""A table of the figures that a spreadsheet opens."""

import csv
from pathlib import Path
from typing import Any, Literal

from bigmodel_cli.trackers import AnyTrackerOptions, TrackedRun, Tracker, figures


class CsvOptions(AnyTrackerOptions):
    """A table in the run's directory: step, name, value."""

    type: Literal["csv"] = "csv"
    file: str = "figures.csv"

    def build(self, run: TrackedRun) -> Tracker:
        return Csv(run.path / self.file)


class Csv(Tracker):
    what = "its table"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[list[str]] = []

    def start(self) -> None:
        if self.path.exists():
            with open(self.path, newline="") as file:
                self.rows = list(csv.reader(file))

    def write(self, record: dict[str, Any]) -> None:
        step = str(record["step"])
        self.rows += [[step, name, str(value)] for name, value in figures(record).items()]

    def cut(self, step: int) -> None:
        self.rows = [row for row in self.rows if int(row[0]) <= step]

    def close(self, done: bool) -> None:
        with open(self.path, "w", newline="") as file:
            csv.writer(file).writerows(self.rows)


PARTS = {"tracker": [CsvOptions]}
'''


def trackers(**given: Any) -> list[dict[str, Any]]:
    """The trackers of a training, as plain values."""
    found: list[dict[str, Any]] = TrainOptions.model_validate({"steps": 1, **given}).model_dump()[
        "trackers"
    ]
    return found


def test_a_word_stands_for_a_tracker() -> None:
    assert trackers(trackers=["tensorboard"]) == [{"type": "tensorboard"}]
    (found,) = trackers(trackers=[{"type": "wandb", "mode": "offline", "project": "x"}])
    assert (found["type"], found["mode"], found["project"]) == ("wandb", "offline", "x")
    assert trackers() == []


def test_tensorboard_of_an_older_spec_is_a_tracker() -> None:
    assert trackers(tensorboard=True) == [{"type": "tensorboard"}]
    assert trackers(tensorboard=False) == []
    for given in ("tensorboard", {"type": "tensorboard"}):
        assert trackers(tensorboard=True, trackers=[given]) == [{"type": "tensorboard"}]
    both = trackers(tensorboard=True, trackers=["mlflow"])
    assert [tracker["type"] for tracker in both] == ["mlflow", "tensorboard"]


def test_faulty_tracker_options_are_refused() -> None:
    with pytest.raises(pydantic.ValidationError, match="trackers: wandb is given twice"):
        trackers(trackers=["wandb", {"type": "wandb"}])
    with pytest.raises(pydantic.ValidationError, match="mode"):
        trackers(trackers=[{"type": "wandb", "mode": "sometimes"}])
    with pytest.raises(pydantic.ValidationError):
        trackers(tensorboard="yes")
    for given in ("wandb", None, 3, {"type": "wandb"}):
        with pytest.raises(pydantic.ValidationError, match="trackers"):
            trackers(tensorboard=True, trackers=given)


def test_trackers_are_listed_and_in_the_schema() -> None:
    assert {"tensorboard", "wandb", "mlflow"} <= catalog()["tracker"].keys()
    definitions = schema()["$defs"]
    for name in ("WandbOptions", "MLflowOptions"):
        described = [p for key, p in definitions[name]["properties"].items() if key != "type"]
        assert described
        assert all("description" in option for option in described)


def test_tensorboard_shows_no_record_that_a_resume_takes_back(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    killed, resumed = (TensorBoard(tmp_path / "events") for _ in range(2))
    for step in range(1, 8):
        killed.write({"step": step, "loss": float(step)})
    resumed.cut(4)
    for step in (5, 6):
        resumed.write({"step": step, "loss": 10.0 * step})
    for board in (killed, resumed):
        board.close(True)
    events = accumulator.EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    found = [(e.step, e.value) for e in events.Scalars("train/loss")]
    assert found == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0), (5, 50.0), (6, 60.0)]


def test_a_tracker_of_ones_own_is_a_plugin(
    decoder_spec: Path, cli: Callable[..., Result], plain_zygote: Zygote
) -> None:
    Path("own.py").write_text(OWN)
    start = (
        "pretrain",
        decoder_spec,
        "--plugin",
        "own.py",
        "--out",
        "run",
        "--set",
        "train.steps=4",
    )
    trained = plain_zygote.run(*start, "--set", "train.trackers=[csv]")
    assert trained.status == 0, trained.err
    with open("run/figures.csv", "a") as file:
        file.write("5,train/loss,0.5\n")  # as of a run that was killed later
    words = ("pretrain", "--resume", "--out", "run", "--plugin", "own.py", "--set", "train.steps=6")
    resumed = plain_zygote.run(*words)
    assert resumed.status == 0, resumed.err
    records = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    with open("run/figures.csv", newline="") as file:
        found = [
            (int(step), float(value))
            for step, name, value in csv.reader(file)
            if name == "train/loss"
        ]
    assert found == [(r["step"], r["loss"]) for r in records if "loss" in r]
    assert [step for step, _ in found] == [1, 2, 3, 4, 5, 6]
    without = cli("eval", "run")
    assert without.status == 2
    assert "unknown type 'csv'" in without.err
    assert "this spec was made with --plugin own.py: give it" in without.err
