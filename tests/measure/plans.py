"""Step times that `bigmodel bench --plan 1xthis` foresees, beside measured ones.

    python tests/measure/plans.py [--precision fp32 bf16] [--random 10] [--first 500] [--out FILE]
        [--processor]

Twenty networks, none of them among those by which the machine's rates are learnt: ten that are
written here, ten of random_specs.py. Each is planned before any step of it is taken, then timed on
random batches, in a process of its own. The machine changes its speed within minutes, so a measured
step is divided by the reference work beside it, and multiplied by that beside the learning, as
bench compares results of different days. With `--processor` all of it is in seconds of processor
time, for a machine where other work runs: set OMP_NUM_THREADS=1, and XDG_CACHE_HOME to a new
folder. Ends with status 1 where the median of the errors is above 10 %, or one above 25 %.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from concurrent.futures import Executor, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from random_specs import draw

from bigmodel_cli.bench.calibrating import network, rates
from bigmodel_cli.bench.doing import Opened, block, warm
from bigmodel_cli.bench.paper import calls_of, on_paper
from bigmodel_cli.bench.reference import Reference
from bigmodel_cli.bench.training import Training
from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.device import keep_freed_memory
from bigmodel_cli.errors import BigmodelError
from bigmodel_cli.lazy import load_torch, torch
from bigmodel_cli.spec import Spec

SECONDS, TIMES = 0.6, 4
Row = dict[str, Any]
MOST, MIDDLE = 0.25, 0.10
ROTARY = {"type": "rotary"}


def text(dim: int, vocab: int, length: int, batch: int, *blocks: dict[str, Any]) -> dict[str, Any]:
    """A decoder."""
    model = {"type": "decoder", "dim": dim, "blocks": list(blocks), "norm": {"type": "rmsnorm"}}
    info = {"vocab_size": vocab, "context": length}
    return {"model": model, "task": {"type": "causal_lm"}, "info": info, "batch": batch}


def images(model: dict[str, Any], side: int, batch: int) -> dict[str, Any]:
    """A classifier of colour images."""
    info = {"image_shape": (3, side, side), "mean": (0.5,) * 3, "std": (0.2,) * 3}
    task = {"type": "classification"}
    return {"model": model, "task": task, "info": {**info, "classes": ("a", "b")}, "batch": batch}


def attention(heads: int, **more: Any) -> dict[str, Any]:
    return {"type": "attention", "num_heads": heads, **more}


CONV = {"type": "conv", "kernel": 5, "padding": 2}
END = [{"type": "flatten"}, {"type": "dense", "units": 200}, {"type": "dense", "units": "classes"}]
OWN = {
    "gpt": text(320, 700, 160, 6, {"repeat": 4, "mixer": attention(5), "ffn": "gelu"}),
    "llama": text(
        192, 2500, 96, 10,
        {"repeat": 5, "mixer": attention(6, kv_heads=2, position=ROTARY), "ffn": "swiglu"},
    ),
    "wide": text(640, 3000, 48, 6, {"repeat": 2, "mixer": attention(8), "ffn": "relu"}),
    "window": text(96, 150, 384, 3, {"repeat": 4, "mixer": attention(3, window=48), "ffn": "gelu"}),
    "experts": text(
        160, 900, 80, 6,
        {"repeat": 3, "mixer": attention(4),
         "ffn": {"type": "moe", "experts": 6, "top_k": 3, "hidden": 200}},
    ),
    "hybrid": text(
        144, 400, 160, 4,
        {"repeat": 2, "mixer": {"type": "mamba2", "state": 48, "head_dim": 48}},
        {"repeat": 1, "mixer": attention(3, position=ROTARY), "ffn": "swiglu"},
    ),
    "vit": images(
        {"type": "vit", "dim": 240, "patch": 8,
         "blocks": [{"repeat": 4, "mixer": attention(4), "ffn": "gelu"}]}, 64, 10,
    ),
    "cnn": images(
        {"type": "cnn", "layers": [
            {**CONV, "channels": 24}, {"type": "pool", "kind": "max", "kernel": 2},
            {**CONV, "channels": 80, "norm": "batch"}, {"type": "pool", "kind": "max", "kernel": 2},
            {**CONV, "channels": 112, "kernel": 3, "padding": 1}, *END]}, 36, 20,
    ),
    "resnet34": images({"type": "torchvision", "name": "resnet34"}, 48, 6),
    "shufflenet": images({"type": "torchvision", "name": "shufflenet_v2_x0_5"}, 80, 6),
}  # fmt: skip


def every(random: int, first: int = 500) -> list[tuple[str, Spec, DatasetInfo]]:
    """(name, spec, facts of the data)."""
    found = [(name, *network(values, "fp32", "contiguous")) for name, values in OWN.items()]
    for seed in range(first, first + random):
        drawn = draw(seed)
        options = drawn.spec.train.model_copy(update={"batch_size": 16})
        spec = drawn.spec.model_copy(update={"train": options})
        found.append((f"{seed}: {drawn.base}", spec, drawn.info))
    return found


def begun(processor: bool) -> None:
    """In each process: memory is kept as the command line keeps it."""
    load_torch()
    keep_freed_memory()
    if processor:
        time.perf_counter = time.process_time


def fixed(number: int, precision: str, random: int, first: int) -> tuple[str, Spec, DatasetInfo]:
    """One of `every`, in a precision."""
    name, spec, info = every(random, first)[number]
    own = {"precision": precision, "memory_format": "contiguous", "compile": "off"}
    return name, spec.model_copy(update={"train": spec.train.model_copy(update=own)}), info


def taken(*given: Any) -> tuple[float, float]:
    """Seconds of a step, and of the reference work beside; in a process of its own, as bench and
    trainings are.
    """
    name, spec, info = fixed(*given)
    device = torch.device("cpu")
    training, reference = Training(Opened((name,), spec, info, None), device), Reference(device)
    warm(training, 4)
    times, beside = [], []
    for _ in range(TIMES):
        beside.append(reference.seconds())
        times += block(training, SECONDS / TIMES, 2).seconds
        beside.append(reference.seconds())
    training.close()
    return statistics.median(times), statistics.median(beside)


def compared(alone: Executor, number: int, precision: str, random: int, first: int) -> Row:
    """What is foreseen, and what it takes."""
    name, spec, info = fixed(number, precision, random, first)
    known, rows = rates(torch.device("cpu"), precision), spec.train.rows(info.context)
    paper = on_paper(spec, info, precision, "contiguous", rows)
    foreseen = known.step(paper, spec.train.accumulate)
    took, beside = alone.submit(taken, number, precision, random, first).result()
    steady = took * known.reference / beside
    count = sum(calls_of(paper, spec.train.accumulate).values())
    return {
        "name": name, "precision": precision, "foreseen": foreseen, "measured": took,
        "at the speed of the learning": steady, "error": foreseen / steady - 1, "calls": count,
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--precision", nargs="+", default=["fp32"])
    parser.add_argument("--random", type=int, default=10)
    parser.add_argument("--first", type=int, default=500)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--processor", action="store_true")
    options = parser.parse_args()
    begun(options.processor)
    alone = ProcessPoolExecutor(
        1, get_context("spawn"), begun, (options.processor,), max_tasks_per_child=1
    )
    errors: list[float] = []
    for precision in options.precision:
        for number in range(len(every(options.random, options.first))):
            try:
                row = compared(alone, number, precision, options.random, options.first)
            except BigmodelError as error:
                print(f"number {number}, {precision}: left out: {error}", flush=True)
                continue
            errors.append(row["error"])
            print(
                f"{row['name']}, {precision}: foreseen {1e3 * row['foreseen']:.2f} ms, measured"
                f" {1e3 * row['measured']:.2f} ms, at the speed of the learning"
                f" {1e3 * row['at the speed of the learning']:.2f} ms: {100 * row['error']:+.1f} %",
                flush=True,
            )
            if options.out is not None:
                with options.out.open("a") as file:
                    print(json.dumps(row), file=file)
    apart = sorted(map(abs, errors))
    middle = statistics.median(apart)
    print(
        f"{len(apart)} networks: median of the errors {100 * middle:.1f} %, largest"
        f" {100 * apart[-1]:.1f} %, {sum(e <= MOST for e in apart)} within 25 %, mean with its sign"
        f" {100 * statistics.fmean(errors):+.1f} %"
    )
    return int(middle > MIDDLE or apart[-1] > MOST)


if __name__ == "__main__":
    sys.exit(main())
