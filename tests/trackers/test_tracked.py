"""Trackers at work: they get what metrics.jsonl gets; whatever befalls them is one warning, and the
run stays as it is.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Result, digests

from bigmodel_cli.trackers import TrackedRun
from bigmodel_cli.trackers.tensorboard import TensorBoardOptions
from bigmodel_cli.train.observers import Observer, Observers, tracked
from bigmodel_cli.train.observers.log import Log

Cli = Callable[..., Result]
STEPS = ["--set", "train.steps=6", "--set", "train.validate_every=3"]


class Fakes:
    """What the packages that stand in for wandb and mlflow were asked for, and where they fail."""

    def __init__(self) -> None:
        self.inits: list[dict[str, Any]] = []
        self.logged: list[dict[str, float]] = []
        self.ended: list[Any] = []
        self.failing = ""
        self.hanging = ""
        self.released = threading.Event()

    def at(self, name: str) -> None:
        """Fail or hang where this is the place for it."""
        if name == self.hanging:
            self.released.wait(60)
        if name == self.failing:
            raise RuntimeError(f"no {name}\nand more")


class WandbRun:
    """A run of the fake wandb."""

    def __init__(self, fakes: Fakes) -> None:
        self.fakes = fakes

    def define_metric(self, name: str, **options: Any) -> None:
        """Nothing to do."""

    def log(self, values: dict[str, float]) -> None:
        """Keep the values."""
        self.fakes.at("log")
        self.fakes.logged.append(values)

    def finish(self, exit_code: int) -> None:
        """Keep the status."""
        self.fakes.at("finish")
        self.fakes.ended.append(exit_code)


class MlflowClient:
    """A client of the fake mlflow."""

    fakes: Fakes

    def __init__(self, tracking_uri: str | None) -> None:
        self.fakes.inits.append({"uri": tracking_uri})

    def get_experiment_by_name(self, name: str) -> None:
        """There is none."""

    def create_experiment(self, name: str) -> str:
        """Its id."""
        return "7"

    def create_run(self, experiment: str, run_name: str) -> Any:
        """A run with an id."""
        self.fakes.inits[-1] |= {"experiment": experiment, "name": run_name}
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id="run-1"))

    def update_run(self, run: str, status: str) -> None:
        """Keep what the run is now."""
        self.fakes.inits[-1] |= {"resumed": run, "status": status}

    def log_batch(self, run: str, metrics: Any = (), params: Any = ()) -> None:
        """Keep the values."""
        assert run == "run-1"
        assert len(params) <= 100
        self.fakes.at("log")
        if metrics:
            self.fakes.logged.append({"step": metrics[0][3], **{m[0]: m[1] for m in metrics}})

    def set_terminated(self, run: str, status: str) -> None:
        """Keep the status."""
        self.fakes.ended.append(status)


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fakes]:
    """Packages of these names that keep what they get."""
    found = Fakes()

    def init(**options: Any) -> WandbRun:
        found.at("init")
        found.inits.append(options)
        return WandbRun(found)

    def package(name: str, **contents: Any) -> None:
        module = types.ModuleType(name)
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)

    package("wandb", init=init, Settings=dict)
    package("mlflow", MlflowClient=type("MlflowClient", (MlflowClient,), {"fakes": found}))
    package("mlflow.entities", Metric=lambda *values: values, Param=lambda *values: values)
    yield found
    found.released.set()


def expected(run: str) -> list[dict[str, float]]:
    """What a tracker gets of metrics.jsonl, read anew."""
    rows = []
    for line in Path(run, "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        row = {f"train/{k}": v for k, v in record.items() if isinstance(v, float)}
        rows.append(
            {
                "step": record["step"],
                **row,
                **{f"val/{k}": v for k, v in record.get("val", {}).items()},
            }
        )
    return rows


@pytest.mark.parametrize(
    ("tracker", "ended"),
    [
        ("{type: wandb, mode: offline, project: p}", [0, 0]),
        ("{type: mlflow, uri: there}", ["FINISHED", "FINISHED"]),
    ],
    ids=["wandb", "mlflow"],
)
def test_a_tracker_gets_every_record_and_goes_on_with_the_same_run(
    tracker: str, ended: list[Any], fakes: Fakes, decoder_spec: Path, cli: Cli
) -> None:
    trackers = ("--set", f"train.trackers=[{tracker}]")
    result = cli("pretrain", decoder_spec, "--out", "run", *STEPS, *trackers)
    assert result.status == 0, result.err
    assert fakes.logged == expected("run")
    assert "cannot delete records" not in result.err
    result = cli("pretrain", "--resume", "--out", "run", "--set", "train.steps=8")
    assert result.status == 0, result.err
    assert fakes.logged == expected("run")
    assert fakes.ended == ended
    first, again = fakes.inits
    if "wandb" in tracker:
        assert first["id"] == again["id"]
        assert (first["project"], first["mode"], first["name"], first["resume"]) == (
            "p",
            "offline",
            "run",
            "allow",
        )
        assert first["config"]["train"]["steps"] == 6
    else:
        assert (first["uri"], first["experiment"], first["name"]) == ("there", "7", "run")
        assert (again["resumed"], again["status"]) == ("run-1", "RUNNING")
    assert (
        result.err.count(
            "its records of steps after 6 stay beside the new ones: it cannot delete records"
        )
        == 1
    )


def test_a_tracker_that_fails_is_one_warning_and_the_run_stays_the_same(
    fakes: Fakes, decoder_spec: Path, cli: Cli
) -> None:
    assert cli("pretrain", decoder_spec, "--out", "plain", *STEPS).status == 0
    for place in ("init", "log", "finish"):
        fakes.failing = place
        result = cli(
            "pretrain", decoder_spec, "--out", place, *STEPS, "--set", "train.trackers=[wandb]"
        )
        assert (result.status, result.out) == (
            0,
            f"{place}/checkpoints/step-00000006\n",
        ), result.err
        told = (
            f"warning: train.trackers: wandb: RuntimeError: no {place}; training goes on without"
            " Weights & Biases\n"
        )
        assert result.err.count("warning:") == result.err.count(told) == 1
        ours, theirs = (
            digests(Path(name, "checkpoints/step-00000006")) for name in ("plain", place)
        )
        assert ours == theirs
        assert len(expected(place)) == len(expected("plain"))


@pytest.mark.parametrize("place", ["init", "finish"])
def test_the_end_does_not_wait_for_a_tracker_that_hangs(
    place: str, fakes: Fakes, decoder_spec: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracked, "LIMIT", 0.2)
    fakes.hanging = place
    result = cli(
        "pretrain", decoder_spec, "--out", "run", *STEPS, "--set", "train.trackers=[wandb]"
    )
    assert (result.status, result.out) == (0, "run/checkpoints/step-00000006\n"), result.err
    told = (
        "warning: train.trackers: wandb: not finished in time; the run ends without waiting for"
        " Weights & Biases\n"
    )
    assert result.err.count("warning:") == result.err.count(told) == 1
    assert json.loads(Path("run/status.json").read_text())["state"] == "done"


@pytest.mark.parametrize("tracker", ["wandb", "mlflow"])
def test_a_tracker_is_closed_when_a_signal_stops_the_run(
    tracker: str, fakes: Fakes, decoder_spec: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = Log.write

    def stopping(self: Log, record: dict[str, Any]) -> None:
        honest(self, record)
        if record["step"] == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Log, "write", stopping)
    result = cli(
        "pretrain", decoder_spec, "--out", "run", *STEPS, "--set", f"train.trackers=[{tracker}]"
    )
    assert result.status == 143, result.err
    assert "stopped at step 2 of 6" in result.err
    assert fakes.logged == expected("run")
    assert fakes.ended == [{"wandb": 1, "mlflow": "KILLED"}[tracker]]


def test_observers_are_all_closed_also_where_one_raises() -> None:
    closed = []

    class Closing(Observer):
        def __init__(self, fault: Exception | None) -> None:
            self.fault = fault

        def close(self) -> None:
            closed.append(self)
            if self.fault is not None:
                raise self.fault

    each = [Closing(None), Closing(ValueError("this one")), Closing(None)]
    with pytest.raises(ValueError, match="this one"):
        Observers(each).close()
    assert closed == each


def test_a_package_that_hangs_when_the_process_ends_is_left() -> None:
    """So does a tracker whose upload was given up."""
    text = (
        "import atexit, time; from bigmodel_cli import __main__ as m; m.MOST_AT_EXIT = 0.1;"
        " atexit.register(time.sleep, 50)"
    )
    began = time.monotonic()
    assert subprocess.run([sys.executable, "-c", f"{text}; m._leave(3)"]).returncode == 3
    assert time.monotonic() - began < 45


@pytest.mark.parametrize("given", [None, 3], ids=["nothing", "number"])
def test_what_is_not_a_tracker_is_one_warning_and_what_it_prints_is_not_the_result(
    given: object, decoder_spec: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(options: TensorBoardOptions, run: TrackedRun) -> object:
        print("printed")
        return given

    monkeypatch.setattr(TensorBoardOptions, "build", build)
    sets = ("train.trackers=[tensorboard]", "train.steps=1", "train.validate_every=null")
    done = cli("pretrain", decoder_spec, "--out", "run", *(w for s in sets for w in ("--set", s)))
    assert (done.status, done.out) == (0, "run/checkpoints/step-00000001\n"), done.err
    assert "printed\n" in done.err
    assert done.err.count("training goes on without the tracker") == 1
