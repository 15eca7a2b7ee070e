"""Weights & Biases and MLflow themselves, without a server, where they are installed: all records,
and a resume's beside them.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Result

from bigmodel_cli.train.observers import tracked

Cli = Callable[..., Result]
BLOCK = 32 * 1024


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    # a busy machine takes its time to make a data base
    monkeypatch.setattr(tracked, "LIMIT", 600.0)


def logged(key: str) -> list[tuple[int, float]]:
    """(step, value) of each record in metrics.jsonl that has this training figure."""
    records = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    return [(r["step"], r[key]) for r in records if key in r]


def train_and_resume(spec: Path, cli: Cli, tracker: str) -> None:
    """Four steps, and two more after a resume."""
    changes = ("--set", "train.steps=4", "--set", f"train.trackers=[{tracker}]")
    first = cli("pretrain", spec, "--out", "run", *changes)
    assert (first.status, "warning" in first.err) == (0, False), first.err
    again = cli("pretrain", "--resume", "--out", "run", "--set", "train.steps=6")
    assert (again.status, "warning" in again.err) == (0, False), again.err


def test_mlflow_has_one_run_with_every_record(decoder_spec: Path, cli: Cli) -> None:
    mlflow = pytest.importorskip("mlflow")
    train_and_resume(decoder_spec, cli, "{type: mlflow, uri: 'sqlite:///m.db', experiment: mine}")
    client = mlflow.MlflowClient(tracking_uri="sqlite:///m.db")
    (run,) = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
    assert (run.info.status, run.info.run_name) == ("FINISHED", "run")
    assert run.data.params["model.dim"] == "16"
    found = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(m.step, m.value) for m in found] == logged("loss")


def entries(path: Path) -> Iterator[bytes]:
    """The records of a log in LevelDB's format, which Weights & Biases puts after seven bytes of
    its own.
    """
    data, position, whole = path.read_bytes(), 7, b""
    while position + 7 <= len(data):
        if BLOCK - position % BLOCK < 7:
            position += BLOCK - position % BLOCK
            continue
        _, size, kind = struct.unpack_from("<IHB", data, position)
        whole += data[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):  # whole, or the last piece
            yield whole
            whole = b""


def test_weights_and_biases_keeps_every_record_offline(decoder_spec: Path, cli: Cli) -> None:
    pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2  # type: ignore[import-not-found, unused-ignore]

    train_and_resume(decoder_spec, cli, "{type: wandb, mode: offline, project: mine}")
    found, identities, ends = [], set(), []
    for file in sorted(Path("run/wandb").glob("offline-run-*/*.wandb")):
        for entry in entries(file):
            record: Any = wandb_internal_pb2.Record()
            record.ParseFromString(entry)
            row = {
                "/".join(i.nested_key) or i.key: json.loads(i.value_json)
                for i in record.history.item
            }
            if "train/loss" in row:
                found.append((row["step"], row["train/loss"]))
            if record.HasField("run"):
                identities.add((record.run.run_id, record.run.project, record.run.display_name))
            if record.HasField("exit"):
                ends.append(record.exit.exit_code)
    assert found == logged("loss")
    assert identities == {(Path("run/wandb.id").read_text().strip(), "mine", "run")}
    assert ends == [0, 0]
