"""What the processes of a run share, as `train.parallel` says or as memory asks for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from parallel_cases import text

from bigmodel_cli.distributed import World
from bigmodel_cli.errors import SpecError
from bigmodel_cli.sharding import WHOLE, Mesh
from bigmodel_cli.spec import from_dict
from bigmodel_cli.train import divided
from bigmodel_cli.train.setup import open_run

CPU = torch.device("cpu")


def mesh(
    monkeypatch: pytest.MonkeyPatch, count: int, room: int, train: dict[str, Any], **more: Any
) -> tuple[Mesh, list[str]]:
    """How so many processes on one machine with that much memory share a small decoder."""
    said: list[str] = []
    monkeypatch.setattr(divided, "world", lambda: World(0, count))
    monkeypatch.setattr(divided, "neighbours", lambda: count)
    monkeypatch.setattr(divided, "total_memory", lambda device: room)
    monkeypatch.setattr(divided, "say", said.append)
    opened = open_run(from_dict(text({"steps": 1, **train}, **more)))
    split = opened.data.split("train")
    return divided.mesh_of(opened.spec, opened.data.info, split, CPU), said


def test_one_process_has_all(monkeypatch: pytest.MonkeyPatch) -> None:
    assert mesh(monkeypatch, 1, 1, {}) == (WHOLE, [])


def test_memory_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    found, said = mesh(monkeypatch, 3, 30_000_000, {})
    assert (found.replicate, found.shard, found.sharded) == (3, 1, False)
    assert said[0].startswith("parallel: 3 copies of the weights (about ")
    assert said[0].endswith("fit the 10.0 MB of a process)")
    found, said = mesh(monkeypatch, 3, 30_000, {})
    assert (found.replicate, found.shard, found.sharded) == (1, 3, True)
    assert "1 copy of the weights, divided among 3 processes (about" in said[0]
    assert said[0].endswith("do not fit the 10.0 kB of a process)")


def test_what_is_given_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    found, said = mesh(monkeypatch, 6, 30_000_000, {"parallel": {"shard": 2, "reshard": False}})
    assert found == Mesh(3, 2, reshard=False)
    assert said == [
        "parallel: 3 copies of the weights, each divided among 2 processes (train.parallel)"
    ]


@pytest.mark.parametrize(
    ("train", "named"),
    [
        ({"deterministic": True}, "train.deterministic: true"),
        ({"compile": "on"}, "train.compile: on"),
    ],
)
def test_what_is_refused(
    monkeypatch: pytest.MonkeyPatch, train: dict[str, Any], named: str
) -> None:
    with pytest.raises(SpecError, match=f"^{named} is not for weights that are divided among"):
        mesh(monkeypatch, 2, 30_000_000, {**train, "parallel": {"shard": 2}})


def test_nothing_is_measured_with_a_part() -> None:
    given = from_dict(text({"steps": 1, "memory_format": "channels_last"})).train
    found = divided.unmeasured(given, CPU)
    assert (found.precision, found.memory_format, found.compile) == ("fp32", "channels_last", "off")


@pytest.mark.parametrize(
    ("shard", "why"), [(2, "are in its memory anyway"), (1, "are not divided among processes")]
)
def test_offloading_on_a_cpu_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, shard: int, why: str
) -> None:
    parallel = {"shard": shard, "offload": True}
    found, said = mesh(monkeypatch, 2, 30_000_000, {"parallel": parallel})
    assert not found.offload
    assert said[-1] == f"train.parallel.offload changes nothing: the weights {why}"
