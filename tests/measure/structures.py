"""Structures side by side: one recipe, as much wall time for each, taking turns; loss, speed,
memory and cache as a table.

    python tests/measure/structures.py --data ../shared/data --minutes 3 --seeds 2 --jobs 2

Every structure is sample_configs/structures.yaml with one change. Each run first takes 40 steps, to
know how many fit into the time (--steps takes as many as it says); with --jobs 2 two runs go on
side by side, each on half of the cores. --only NAME ... takes some of them, --precision another one
than bf16, for machines that have none.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.console import quantity, table
from bigmodel_cli.lazy import load_torch
from bigmodel_cli.models import build
from bigmodel_cli.spec import load

SPEC = Path(__file__).resolve().parent.parent.parent / "sample_configs" / "structures.yaml"
ROTARY = "position: {type: rotary}"
REST = "ffn: {type: swiglu}, norm: {type: rmsnorm}"
STRUCTURES = {
    "attention": "model.blocks.0.repeat=5",
    "sliding window (64)": "model.blocks.0.mixer.window=64",
    "grouped query (4 : 1)": "model.blocks.0.mixer.kv_heads=1",
    "latent (MLA)": "model.blocks.0.mixer={type: mla, num_heads: 4, kv_rank: 32, rotary_dim: 16}",
    "differential": f"model.blocks.0.mixer={{type: differential, num_heads: 2, {ROTARY}}}",
    "Mamba-2": "model.blocks.0.mixer={type: mamba2, state: 32, head_dim: 32}",
    "gated DeltaNet": "model.blocks.0.mixer={type: gated_deltanet, num_heads: 4}",
    "convolution (8)": "model.blocks.0.mixer={type: convolution, kernel: 8}",
    "hybrid (conv, attention)": (
        f"model.blocks=[{{repeat: 3, mixer: {{type: convolution, kernel: 4}}, {REST}}}, "
        f"{{repeat: 2, mixer: {{type: attention, num_heads: 4, bias: false, {ROTARY}}}, {REST}}}]"
    ),
    "experts (2 of 8)": "model.blocks.0.ffn={type: moe, experts: 8, top_k: 2, hidden: 172}",
}
CALIBRATION = 40
LENGTHS = (256, 2048)


@dataclass(frozen=True)
class Ground:
    """What all runs share."""

    data: Path
    threads: int
    precision: str


def pretrain(structure: str, ground: Ground, seed: int, steps: int) -> dict[str, float]:
    """Train for so many steps in a process of its own: the last validation's loss, and seconds and
    tokens per step.
    """
    with tempfile.TemporaryDirectory() as folder:
        settings = [
            f"data.files=['{ground.data / 'tinyshakespeare' / 'input.txt'}']",
            STRUCTURES[structure], f"train.steps={steps}",
            f"train.validate_every={steps}", f"train.precision={ground.precision}",
            "task.sample_tokens=0",
        ]  # fmt: skip
        words = [
            "pretrain",
            str(SPEC),
            "--out",
            f"{folder}/run",
            "--device",
            "cpu",
            "--seed",
            str(seed),
        ]
        command = [
            sys.executable,
            "-m",
            "bigmodel_cli",
            *words,
            *(w for s in settings for w in ("--set", s)),
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": str(ground.threads)}
        subprocess.run(command, check=True, capture_output=True, env=environment)
        records = [
            json.loads(line)
            for line in Path(folder, "run", "metrics.jsonl").read_text().splitlines()
        ]
    first, last = (r for r in records if "elapsed" in r and r["step"] in (10, steps))
    seconds = (last["elapsed"] - first["elapsed"]) / (steps - 10)
    loss = next(r["val"]["loss"] for r in reversed(records) if "val" in r)
    return {"loss": loss, "seconds": seconds, "tokens": 8 * 256 / seconds}


def within(
    structure: str, ground: Ground, seed: int, minutes: float, steps: int | None
) -> dict[str, float]:
    """Train for as many steps as fit into the time, or as are asked for."""
    if steps is None:
        speed = pretrain(structure, ground, seed, CALIBRATION)["seconds"]
        steps = max(20, 10 * round(60 * minutes / speed / 10))
    result = {**pretrain(structure, ground, seed, steps), "steps": steps}
    print(
        f"seed {seed}  {structure}: {steps} steps, loss {result['loss']:.4f}",
        file=sys.stderr,
        flush=True,
    )
    return result


def tensors(values: Any) -> Iterator[torch.Tensor]:
    """Every tensor in a cache."""
    if isinstance(values, torch.Tensor):
        yield values
    elif isinstance(values, dict | list):
        for value in values.values() if isinstance(values, dict) else values:
            yield from tensors(value)
    elif hasattr(values, "__dict__"):
        yield from tensors(vars(values))


def measure(structure: str, length: int) -> dict[str, float]:
    """In this process: peak memory of a forward and backward pass at batch 1 above what stood
    before, and the cache's size.
    """
    load_torch()
    torch.manual_seed(0)
    spec = load(SPEC, [STRUCTURES[structure], f"data.context={length}"])
    model: Any = build(spec.model, DatasetInfo(vocab_size=65, context=length))
    tokens = torch.randint(65, (1, length))
    with torch.inference_mode():
        cache = model.new_cache(1)
        model(tokens, cache)
    cached = sum(t.numel() * t.element_size() for t in tensors(cache.blocks))
    before = resident()
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak
    model(tokens).float().logsumexp(-1).sum().backward()
    parameters = sum(p.numel() for p in model.parameters())
    return {"peak": resident("VmHWM") - before, "cache": cached / length, "parameters": parameters}


def resident(field: str = "VmRSS") -> int:
    """Bytes of this process in memory, now or at most."""
    line = next(
        x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field)
    )
    return int(line.split()[1]) * 1024


def measured(structure: str, length: int) -> dict[str, float]:
    """`measure` in a process of its own."""
    command = [sys.executable, __file__, "--data", "-", "--measure", structure, str(length)]
    values: dict[str, float] = json.loads(
        subprocess.run(command, check=True, capture_output=True, text=True).stdout
    )
    return values


def main() -> None:
    """Run all, and print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument(
        "--only", nargs="+", choices=list(STRUCTURES), default=list(STRUCTURES), metavar="NAME"
    )
    parser.add_argument(
        "--steps", type=int, help="as many for each, instead of as many as fit into the time"
    )
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure[0], int(arguments.measure[1]))))
        return
    threads = max(1, (os.cpu_count() or 1) // arguments.jobs)
    work = [(name, seed) for seed in range(arguments.seeds) for name in arguments.only]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        ground = Ground(arguments.data.resolve(), threads, arguments.precision)
        done = list(
            pool.map(lambda w: within(w[0], ground, w[1], arguments.minutes, arguments.steps), work)
        )
    rows = []
    for name in arguments.only:
        runs = [result for (other, _), result in zip(work, done, strict=True) if other == name]
        sizes = {length: measured(name, length) for length in LENGTHS}
        bits = [r["loss"] / math.log(2) for r in runs]
        by_seed = ", ".join(f"{b:.3f}" for b in bits)
        rows.append(
            [
                name, f"{sizes[256]['parameters'] / 1e6:.2f} M",
                f"{statistics.mean(bits):.3f} ({by_seed})",
                f"{statistics.mean(r['steps'] for r in runs):,.0f}",
                f"{statistics.mean(r['tokens'] for r in runs):,.0f}",
                " / ".join(quantity(sizes[n]["peak"], "B") for n in LENGTHS),
                " / ".join(f"{sizes[n]['cache']:,.0f}" for n in LENGTHS),
            ]
        )  # fmt: skip
    at = " / ".join(f"{n:,}" for n in LENGTHS)
    columns = ["structure", "parameters", "bits per byte (mean; seeds)", "steps", "tokens/s"]
    print(
        table(
            [*columns, f"peak memory {at}", f"cache bytes per token {at}"],
            sorted(rows, key=lambda row: row[2]),
        )
    )


if __name__ == "__main__":
    main()
