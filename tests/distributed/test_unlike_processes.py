"""Processes that are not where another one is, or began with something else."""

from __future__ import annotations

import json
import signal
import socket
import sys
import textwrap
import time
from pathlib import Path

import pytest
from conftest import ROOT, digests
from launched import SPEC, started

from bigmodel_cli.commands.processes import check_processes, start_processes
from bigmodel_cli.distributed import launch as launching
from bigmodel_cli.errors import SpecError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("unlike")
    (path / "text.txt").write_text("a rose is a rose is a rose. " * 100)
    (path / "spec.yaml").write_text(SPEC)
    return path


def changed(folder: Path, code: str) -> dict[str, str]:
    """The environment in which the second process runs this code before all else."""
    (folder / "changed").mkdir(exist_ok=True)
    own = f"import os\nif os.environ.get('RANK') == '1':\n{textwrap.indent(code, '    ')}"
    (folder / "changed" / "sitecustomize.py").write_text(own)
    return {"PYTHONPATH": f"{folder / 'changed'}:{ROOT}"}


SLOW = """\
import time
from bigmodel_cli.train.run import Run

own = Run.validate

def slowly(run):
    time.sleep(2.5)
    return own(run)

Run.validate = slowly
"""


def test_a_signal_finds_one_in_a_validation_and_another_before_it(folder: Path) -> None:
    """They stop after it: the first waits there for the other, which had else stopped before."""
    words = ["pretrain", "spec.yaml", "--out", "apart", "--processes", "2"]
    with started(folder, *words, **changed(folder, SLOW)) as run:
        run.reach("apart", 10)
        time.sleep(1)
        run.process.send_signal(signal.SIGTERM)
        code, _, err = run.end()
    assert code == 143, err
    assert err.count("stopped at step 10 of 40; checkpoint apart/checkpoints/step-00000010") == 1
    records = (folder / "apart" / "metrics.jsonl").read_text().splitlines()
    assert [r["step"] for r in map(json.loads, records) if "val" in r] == [10]


ODD = """\
import bigmodel_cli.train.session as session

own = session.assemble

def other(*given, **more):
    model = own(*given, **more)
    next(iter(model.parameters())).data += 0.01
    return model

session.assemble = other
"""


@pytest.mark.slow
def test_all_begin_with_the_weights_of_the_first(folder: Path) -> None:
    for name, more in (("even", {}), ("odd", changed(folder, ODD))):
        words = ["pretrain", "spec.yaml", "--out", name, "--processes", "2"]
        with started(folder, *words, "--set", "train.steps=3", **more) as run:
            code, _, err = run.end()
        assert code == 0, err
        assert err.count("weights: process 1 of 2 began with others") == len(more)
    found = [digests(folder / name / "checkpoints" / "step-00000003") for name in ("even", "odd")]
    assert found[0]["model.safetensors"] == found[1]["model.safetensors"]


def test_another_spec_in_one_process_is_refused(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    words = ["pretrain", "spec.yaml", "--out", "unlike"]
    lower = ["--set", "train.optimizer.lr=1e-4"]
    with (
        started(folder, *words, RANK="0", LOCAL_RANK="0", **common) as first,
        started(folder, *words, *lower, RANK="1", LOCAL_RANK="1", **common) as other,
    ):
        codes = [run.end() for run in (first, other)]
    assert [code for code, _, _ in codes] == [2, 2], codes
    said = "process 1 of 2 has another train.optimizer.lr than the first one: 0.0001, and that has"
    assert codes[0][2].count(f"{said} 0.001; start all of them with the same spec") == 1
    assert not (folder / "unlike").exists()


def test_a_path_from_stdin_is_given_to_all(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[list[str]] = []
    monkeypatch.setattr(
        launching, "launch", lambda words, *more, **named: given.append(list(words)) or 0
    )
    for words in (["eval", "-", "--json"], ["finetune", "--from=-", "b.yaml"]):
        monkeypatch.setattr(sys, "argv", ["bigmodel", *words, "--processes", "2"])
        with pytest.raises(SystemExit, match=r"^0$"):
            start_processes(2, 0, "runs/a b")
    assert given == [["eval", "runs/a b", "--json"], ["finetune", "--from=runs/a b", "b.yaml"]]


def test_one_process_is_not_started_again() -> None:
    with pytest.raises(SpecError, match="--restarts has no effect without --processes, 2 or more"):
        check_processes(1, 3, {})
