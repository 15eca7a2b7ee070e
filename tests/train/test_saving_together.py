"""Several processes write one checkpoint: the files of one that a single process writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from parallel_cases import SPECS, text
from parallel_cases import run as run_cases

from bigmodel_cli import checkpoints

Case = dict[str, Any]
WAYS = ("first", "parts", "aside")
BLOCK = {"mixer": {"type": "attention", "num_heads": 3}, "ffn": {"type": "gelu", "hidden": 35}}
MODEL = {"dim": 33, "tie_embeddings": True, "blocks": [{"repeat": 2, **BLOCK}]}
"""Rows that no number of processes divides evenly."""
EVEN = {
    "blocks": [{"mixer": {"type": "attention", "num_heads": 2}, "ffn": {"type": "gelu"}}],
    "tie_embeddings": False,
}


def shared(replicate: int, shard: int, tensor: int, spec: Case) -> Case:
    """A spec for so many processes."""
    parallel = {"replicate": replicate, "shard": shard, "tensor": tensor}
    return {**spec, "train": {**spec["train"], "parallel": parallel}}


TWO = {
    "copies": shared(2, 1, 1, SPECS["batch norm"]),
    "copies, dropout": shared(2, 1, 1, text({}, MODEL)),
    "divided": shared(1, 2, 1, text({"ema": 0.9}, MODEL)),
    "tensor": shared(1, 1, 2, text({}, EVEN)),
}
MORE = {
    (3, "divided"): shared(1, 3, 1, text({"ema": 0.9}, MODEL)),
    (4, "copies, divided"): shared(2, 2, 1, text({"optimizer": {"type": "muon", "lr": 0.01}})),
    (4, "copies, tensor"): shared(2, 1, 2, text({}, EVEN)),
}


def run(cases: dict[str, Case], out: Path, count: int) -> dict[str, Case]:
    return run_cases(
        [{"name": n, "spec": s} for n, s in cases.items()], out, count, "saving_ranks.py"
    )


def check(found: Case, place: Path, count: int) -> None:
    """One checkpoint, whoever wrote it; what fails in one process fails in all."""
    assert "error" not in found, found
    folders = [checkpoints.steps(place / way)[-1] for way in WAYS]
    contents = [{p.name: p.read_bytes() for p in folder.iterdir()} for folder in folders]
    assert contents[0] == contents[1] == contents[2]
    checkpoints.read(folders[0], train_state=True).verify()
    written, there, replaced = found["nodes"]
    assert written == there != replaced
    changed = checkpoints.read(checkpoints.steps(place / "again")[-1], train_state=True)
    changed.verify()
    before = checkpoints.read(folders[0], train_state=True)
    for own, other in ((before.model, changed.model), (before.train, changed.train)):
        assert list(own) == list(other)
        after = dict(other.stream())
        assert any(not torch.equal(tensor, after[name]) for name, tensor in own.stream())
    assert set(found["writers"]["first"].values()) == {0}
    assert set(found["writers"]["parts"].values()) == set(range(count))
    for name in ("full", "full, waiting"):
        (said,) = {text.split("it needs")[0] for text in found[name]}
        assert said == f"5 {place / 'full'}: a checkpoint was not saved: No space left on device; "
    assert list((place / "full").iterdir()) == []
    assert [line for line in found["said"] if "process 0 writes all" in line] == [
        "checkpoints: process 0 writes all of them: unseen is not one folder that all processes can"
        " write to"
    ]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Case], Path]:
    folder = tmp_path_factory.mktemp("together")
    return run(TWO, folder, 2), folder


@pytest.mark.parametrize("name", TWO)
def test_two_processes_write_one_checkpoint(two: tuple[dict[str, Case], Path], name: str) -> None:
    check(two[0][name], two[1] / name, 2)


@pytest.mark.slow
@pytest.mark.parametrize(("count", "name"), MORE)
def test_more_processes_write_one_checkpoint(count: int, name: str, tmp_path: Path) -> None:
    check(run({name: MORE[count, name]}, tmp_path, count)[name], tmp_path / name, count)
