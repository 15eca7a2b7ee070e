"""Twelve divisions of one epoch among real processes: the same global batches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bigmodel_cli.data import SOURCES, open_data
from bigmodel_cli.recipe import TrainOptions
from bigmodel_cli.train.batches import micro_batches
from tests.data.shards.test_shard_rows import write_rows

PLUGIN = '''
"""Next-token prediction that writes down which rows it is trained on."""

import hashlib
import json
import os
from typing import Any, Literal

import torch

from bigmodel_cli.config import NO_DATASET
from bigmodel_cli.tasks.causal_lm import CausalLM, CausalLMOptions


class WitnessedOptions(CausalLMOptions):
    """As causal_lm."""

    type: Literal["witnessed"] = "witnessed"

    def build(self, info: Any = NO_DATASET) -> "Witnessed":
        return Witnessed(self)


class Witnessed(CausalLM):
    name = "witnessed"

    def forward(self, model: Any, batch: Any, training: bool = True) -> Any:
        if training and torch.is_grad_enabled():
            rows = [
                [key, hashlib.sha1(row.numpy().tobytes()).hexdigest()]
                for key, row in zip(batch["key"].tolist(), batch["tokens"], strict=True)
            ]
            line = {"rank": int(os.environ.get("RANK", 0)), "rows": rows}
            with open(os.environ["WITNESS"], "a") as file:
                file.write(json.dumps(line) + "\\n")
        return super().forward(model, batch, training)


PARTS = {"task": [WitnessedOptions]}
'''
DIVISIONS = (
    *((1, 0, 12), (2, 0, 6), (3, 1, 2), (4, 0, 1), (1, 2, 3), (6, 0, 2)),
    *((2, 2, 1), (4, 1, 3), (3, 0, 4), (1, 0, 1), (2, 1, 12), (6, 1, 1)),
)
"""(processes, loader workers, rows of a micro-batch) of two steps each."""
BATCH, EACH = 12, 2
DATA = {"type": "shards", "context": 8, "mixed_shards": 2}
TRAIN = {
    "batch_size": BATCH,
    "log_every": 1,
    "precision": "fp32",
    "compile": "off",
    "seed": 4,
    "validate_every": 1000,
    "checkpoint_every": EACH,
    "timeout": 300,
}


def run(folder: Path, out: str, steps: int, witness: str, division: tuple[int, int, int]) -> None:
    """Train up to that step, going on with what there is."""
    processes, workers, micro = division
    words = ["--processes", str(processes)] if processes > 1 else []
    sets = {"train.steps": steps, "train.micro_batch_size": micro, "data.workers": workers}
    words += [word for name, value in sets.items() for word in ("--set", f"{name}={value}")]
    resume = ["--resume"] if (folder / out).exists() else []
    done = subprocess.run(
        [
            *(sys.executable, "-m", "bigmodel_cli", "pretrain", "spec.yaml", "--out", out),
            *("--plugin", "witness.py", *words, *resume),
        ],
        cwd=folder,
        env={**os.environ, "WITNESS": str(folder / witness)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def rows_of(path: Path) -> list[tuple[int, int, str]]:
    """(rank, key, hash of the tokens) of each row that was trained on, in order."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [(line["rank"], key, sha) for line in lines for key, sha in line["rows"]]


def losses(folder: Path, out: str) -> dict[int, float]:
    lines = (folder / out / "metrics.jsonl").read_text().splitlines()
    return {r["step"]: r["loss"] for r in map(json.loads, lines) if "loss" in r}


@pytest.mark.slow
def test_twelve_divisions_among_processes_train_on_the_same_global_batches(tmp_path: Path) -> None:
    """Each change is a stop and a --resume; a mixture of two sources, in one epoch."""
    for i in range(6):
        write_rows(tmp_path / "a" / f"{i}.jsonl", 40 * i, 40)
    for i in range(2):
        write_rows(tmp_path / "b" / f"{i}.jsonl", 1000 + 20 * i, 20)
    mix = [{"files": [str(tmp_path / n)], "weight": w} for n, w in (("a", 0.75), ("b", 0.25))]
    spec: dict[str, Any] = {
        "model": {
            "type": "decoder",
            "dim": 8,
            "max_len": 8,
            "blocks": [{"mixer": {"type": "attention", "num_heads": 2}}],
        },
        "data": {**DATA, "mix": mix},
        "task": {"type": "witnessed", "sample_tokens": 0},
        "train": {**TRAIN, "steps": 1},
    }
    (tmp_path / "spec.yaml").write_text(json.dumps(spec))
    (tmp_path / "witness.py").write_text(PLUGIN)
    options = SOURCES["shards"].model_validate({**DATA, "mix": mix})
    split = open_data(options, base=Path(), say=lambda _: None).split("train")
    total = EACH * len(DIVISIONS)
    assert len(split) > total * BATCH  # one epoch
    stream = micro_batches(split, TrainOptions(steps=1, batch_size=BATCH, seed=4))
    wanted = [stream[step]["key"].tolist() for step in range(total)]
    run(tmp_path, "whole", total, "whole.jsonl", (1, 0, BATCH))
    whole = rows_of(tmp_path / "whole.jsonl")[-total * BATCH :]
    assert [key for _, key, _ in whole] == [key for keys in wanted for key in keys]
    tokens = {key: sha for _, key, sha in whole}
    step_of = {key: step for step, keys in enumerate(wanted) for key in keys}
    for number, division in enumerate(DIVISIONS):
        name = f"part{number}.jsonl"
        run(tmp_path, "parts", EACH * (number + 1), name, division)
        found, steps = rows_of(tmp_path / name), range(EACH * number, EACH * (number + 1))
        assert {rank for rank, _, _ in found} == set(range(division[0]))
        trained = [row for row in found if step_of.get(row[1]) in steps]
        assert Counter(key for _, key, _ in trained) == Counter(
            key for step in steps for key in wanted[step]
        )
        assert all(tokens[key] == sha for _, key, sha in trained)
        for rank in range(division[0]):  # step after step
            own = [step_of[key] for r, key, _ in trained if r == rank]
            assert own == sorted(own)
    one, other = losses(tmp_path, "whole"), losses(tmp_path, "parts")
    assert one.keys() == other.keys() == set(range(1, total + 1))
    assert np.allclose([one[s] for s in one], [other[s] for s in one], rtol=2e-6, atol=0)
