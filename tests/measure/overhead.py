"""What two processes of one thread lose against one process of two threads: `bigmodel pretrain` on
the same spec and global batch, in turns A B B A.

    python tests/measure/overhead.py [--only decoder|cnn] [--rounds 1] [--data FOLDER]

A decoder of 10 M weights (context 256, 2,048 tokens a step) on random words, and the CNN of
`sample_configs/mnist_cnn.yaml` (93,322 weights, 64 images a step) on MNIST below FOLDER, or
$BIGMODEL_TEST_DATA. Measured are the steps of each run after its first ones, as metrics.jsonl has
them; printed are the medians of a run's steps, and their ratios, which are to be 0.9 or more. Both
sides end with the same loss within rounding, or the status is 1. Two cores that nothing else uses.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FIRST = 4
"""Steps that are not measured: memory and threads are made in them."""
SAME = 1e-4
"""Relative difference of the last losses that rounding makes."""
TRAIN = {
    "precision": "fp32",
    "compile": "off",
    "memory_format": "contiguous",
    "log_every": 1,
    "optimizer": {"type": "adamw", "lr": 1e-4},
}
DECODER: dict[str, Any] = {
    "model": {
        "type": "decoder",
        "dim": 320,
        "blocks": [
            {"repeat": 8, "mixer": {"type": "attention", "num_heads": 5}, "ffn": {"type": "gelu"}}
        ],
    },
    "data": {
        "type": "text",
        "files": ["words.txt"],
        "context": 256,
        "val_fraction": 0,
        "tokenizer": {"type": "characters"},
    },
    "task": {"type": "causal_lm"},
    "train": {**TRAIN, "batch_size": 8},
}
STEPS = {"decoder": 16, "cnn": 300}


def words(count: int) -> str:
    """A text of so many random words."""
    draw = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    return " ".join("".join(draw.choices(letters, k=draw.randint(2, 9))) for _ in range(count))


def spec_of(name: str, data: Path) -> dict[str, Any]:
    """The spec to train."""
    if name == "decoder":
        return DECODER
    import yaml

    spec: dict[str, Any] = yaml.safe_load((ROOT / "sample_configs/mnist_cnn.yaml").read_text())
    spec["data"] |= {"root": str(data / "mnist"), "val_fraction": 0}
    return {**spec, "train": {**TRAIN, "batch_size": 64}}


def trained(folder: Path, name: str, steps: int, processes: int) -> tuple[float, float]:
    """The median of tokens or samples a second, and the last loss, of one run."""
    out = folder / f"{name} {processes} {len(list(folder.iterdir()))}"
    command = ["-m", "bigmodel_cli", "pretrain", f"{name}.yaml", "--device", "cpu"]
    command += ["--out", str(out), "--set", f"train.steps={steps}"]
    command += ["--processes", str(processes)] if processes > 1 else []
    threads = {"OMP_NUM_THREADS": str(2 // processes)}
    ended = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **threads},
        capture_output=True,
        text=True,
    )
    if ended.returncode:
        sys.exit(f"bigmodel pretrain ended with status {ended.returncode}:\n{ended.stderr[-2000:]}")
    lines = (out / "metrics.jsonl").read_text().splitlines()
    records = [r for r in map(json.loads, lines) if "per_second" in r]
    return statistics.median(r["per_second"] for r in records[FIRST:]), records[-1]["loss"]


def main() -> None:
    """Train in turns, and print rates and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=sorted(STEPS))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--data", type=Path, default=os.environ.get("BIGMODEL_TEST_DATA"))
    options = parser.parse_args()
    same = True
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        (folder / "words.txt").write_text(words(40_000))
        for name, steps in STEPS.items():
            if options.only not in (None, name):
                continue
            if name == "cnn" and options.data is None:
                sys.exit("cnn: give --data, the folder with MNIST, or --only decoder")
            (folder / f"{name}.yaml").write_text(json.dumps(spec_of(name, options.data or folder)))
            rates: dict[int, list[float]] = {1: [], 2: []}
            losses = []
            for processes in (1, 2, 2, 1) * options.rounds:
                rate, loss = trained(folder, name, steps, processes)
                rates[processes].append(rate)
                losses.append(loss)
                print(f"{name}, processes: {processes}, a second: {rate:,.0f}", flush=True)
            ratio = statistics.mean(rates[2]) / statistics.mean(rates[1])
            print(f"{name}: two processes / one process of two threads: {ratio:.3f}", flush=True)
            same = same and max(losses) - min(losses) <= SAME * abs(losses[0])
    sys.exit(0 if same else "the losses differ")


if __name__ == "__main__":
    main()
