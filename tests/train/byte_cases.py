"""Trainings whose bytes are foreseen, and measured in as many processes: of 10 MB of weights and
more, so that 10 % of something is not the rest of a small tensor.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parallel_cases import run

from bigmodel_cli.bench.clusters import CARDS
from bigmodel_cli.bench.mesh.axes import Axes, divided_by
from bigmodel_cli.bench.mesh.memory import Memory, memory_of
from bigmodel_cli.bench.mesh.traffic import GRADIENTS, UPDATES, WEIGHTS, exchanges
from bigmodel_cli.bench.paper import on_paper
from bigmodel_cli.bench.plan import Share
from bigmodel_cli.lazy import load_torch
from bigmodel_cli.spec import from_dict
from bigmodel_cli.train.setup import open_run

TRAIN = {
    "batch_size": 8,
    "precision": "fp32",
    "memory_format": "contiguous",
    "compile": "off",
    "optimizer": {"type": "adamw", "lr": 1e-3},
    "max_grad_norm": 1.0,
}
COPY = {"type": "synthetic", "problem": "copy", "length": 63, "symbols": 250, "samples": 64}
PARITY = {"type": "synthetic", "problem": "parity", "form": "labels", "length": 120, "samples": 64}
MIXER = {"type": "attention", "num_heads": 4, "bias": False}
CONV = {"type": "conv", "kernel": 3, "padding": 1, "norm": "batch"}


def text(model: dict[str, Any], **train: Any) -> dict[str, Any]:
    """A decoder that copies."""
    own = {"type": "decoder", "norm": {"type": "rmsnorm"}, **model}
    task = {"type": "causal_lm"}
    return {"model": own, "data": COPY, "task": task, "train": {**TRAIN, **train}}


SPECS: dict[str, dict[str, Any]] = {
    "decoder": text(
        {"dim": 256, "blocks": [{"repeat": 4, "mixer": MIXER, "ffn": "swiglu"}]},
        ema=0.99,
    ),
    "experts": text(
        {
            "dim": 192,
            "tie_embeddings": False,
            "blocks": [
                {
                    "repeat": 3,
                    "mixer": MIXER,
                    "ffn": {"type": "moe", "experts": 4, "top_k": 2, "hidden": 320},
                }
            ],
        },
        batch_size=16,
        micro_batch_size=2,
    ),
    "encoder": {
        "model": {
            "type": "encoder",
            "dim": 288,
            "blocks": [{"repeat": 4, "mixer": {**MIXER, "causal": False}, "ffn": "gelu"}],
        },
        "data": PARITY,
        "task": {"type": "classification"},
        "train": {**TRAIN, "checkpointing": "blocks", "optimizer": {"type": "muon", "lr": 1e-3}},
    },
    "cnn": {
        "model": {
            "type": "cnn",
            "layers": [
                {**CONV, "channels": 96},
                {**CONV, "channels": 192},
                {"type": "pool", "kind": "max", "kernel": 2},
                {**CONV, "channels": 256},
                {"type": "flatten"},
                {"type": "dense", "units": 512},
                {"type": "dense", "units": "classes"},
            ],
        },
        "data": {"type": "digits"},
        "task": {"type": "classification"},
        "train": {**TRAIN, "batch_size": 32, "optimizer": {"type": "sgd", "lr": 0.05}},
    },
}
MESHES = {
    "one process": Axes(),
    "replicate=2": Axes(replicate=2),
    "shard=2": Axes(shard=2),
    "shard=4": Axes(shard=4),
    "tensor=2": Axes(tensor=2),
    "replicate=2,shard=2": Axes(replicate=2, shard=2),
}
STAYING = ("weights", "gradients", "optimizer state", "averages")
SENT = {
    "gathered": "weights gathered",
    "scattered": "gradients in parts",
    "summed": "sums",
    "others": "others",
}
LEAST = 0.01
"""A part of all that a process keeps below which a difference is one of small tensors."""


@dataclass(frozen=True)
class Row:
    """One thing that is foreseen, and measured: bytes."""

    name: str
    foreseen: float
    measured: float

    @property
    def ratio(self) -> float:
        """Measured over foreseen."""
        return self.measured / self.foreseen if self.foreseen else float(self.measured == 0) or 9.9


def foreseen(spec: dict[str, Any], axes: Axes) -> tuple[Memory, dict[str, float]]:
    """The memory of one process, and what it sends in a step by the way that it goes."""
    load_torch()
    opened = open_run(divided_by(from_dict({**spec, "train": {**spec["train"], "steps": 4}}), axes))
    info, options = opened.data.info, opened.spec.train
    share = Share.of(opened.spec, info.context, axes.samples)
    paper = on_paper(opened.spec, info, "fp32", "contiguous", share.rows, axes=axes)
    sent = dict.fromkeys(SENT, 0.0)
    ahead = paper.ahead and max(share.passes, axes.count) > 1
    for exchange in exchanges(paper.traffic, share.passes, ahead):
        parts = exchange.axis == "shard"
        kinds = {WEIGHTS: "gathered", GRADIENTS: "scattered", UPDATES: "gathered"}
        others = {UPDATES: "others"}
        sent[(kinds if parts else others).get(exchange.kind, "summed")] += exchange.bytes
    memory = memory_of(paper, axes, share.passes, 0, CARDS["h100"].memory)
    assert not options.deterministic
    return memory, sent


def divides(name: str, mesh: str) -> bool:
    """Whether the network can be divided so: a CNN has no parts that say how."""
    return not (name == "cnn" and MESHES[mesh].tensor > 1)


def case(name: str, mesh: str) -> dict[str, Any]:
    """A training for `byte_ranks.py`."""
    axes, spec = MESHES[mesh], SPECS[name]
    parallel = {"replicate": axes.replicate, "shard": axes.shard, "tensor": axes.tensor}
    train = {**spec["train"], "parallel": parallel}
    return {"name": f"{name} {mesh}", "spec": {**spec, "train": train}}


def compared(
    wanted: list[tuple[str, str]], out: Path
) -> Iterator[tuple[tuple[str, str], list[Row]]]:
    """Of each training and mesh what is foreseen, and what was measured in as many processes: the
    most of all of them.
    """
    for count in sorted({MESHES[mesh].count for _, mesh in wanted}):
        these = [(name, mesh) for name, mesh in wanted if MESHES[mesh].count == count]
        cases = [case(name, mesh) for name, mesh in these]
        measured = run(cases, out / str(count), count, "byte_ranks.py")
        for (name, mesh), own in zip(these, cases, strict=True):
            yield (name, mesh), rows_of(SPECS[name], MESHES[mesh], measured[own["name"]])


def rows_of(spec: dict[str, Any], axes: Axes, measured: dict[str, Any]) -> list[Row]:
    """What is foreseen beside what was measured."""
    assert "error" not in measured, measured
    memory, sent = foreseen(spec, axes)
    rows = [Row(n, memory.stays[n], measured[n]) for n in STAYING if memory.stays[n]]
    still = sum(size for name, size in memory.stays.items() if name != "gradients")
    rows.append(Row("added at the peak", memory.peak - still, measured["added"]))
    rows.append(Row("peak", memory.peak, still + measured["added"]))
    least = LEAST * memory.kept
    for way, name in SENT.items():
        if max(sent[way], measured[way]) > least:
            rows.append(Row(f"sent: {name}", sent[way], measured[way]))
    return rows
