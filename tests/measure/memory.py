"""Is the memory that `--dry-run` foresees what a training step takes? For each sample spec, in fp32
on the CPU.

    python tests/measure/memory.py --data DATA [NAME ...]

The measured peak is PyTorch's allocator's own count (its profiler's), of two steps on the
micro-batches with the longest rows. What does not fit `--room` bytes is left out and said.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from bigmodel_cli.assemble import outline
from bigmodel_cli.console import quantity, table
from bigmodel_cli.data import open_data
from bigmodel_cli.data.batches import join
from bigmodel_cli.lazy import load_torch
from bigmodel_cli.models import build
from bigmodel_cli.roles import named_weights
from bigmodel_cli.spec import load
from bigmodel_cli.tasks import build_task
from bigmodel_cli.train.plan import plan
from bigmodel_cli.train.state import TrainState
from bigmodel_cli.train.step import train_step

SAMPLES = Path(__file__).resolve().parents[2] / "sample_configs"


def settings(name: str, data: Path) -> list[str]:
    """Where a sample spec's data are."""
    files = {side: f"{data}/multi30k/train.{side}.gz" for side in ("en", "de")}
    pairs = [f"data.source=[{files['en']}]", f"data.target=[{files['de']}]"]
    val = [f"data.{s}_{side}=[]" for s in ("val", "test") for side in ("source", "target")]
    cifar = f"data={{type: parquet_images, train: [{data}/cifar10/train.parquet], val_fraction: 0.1"
    sst2 = [
        f"data.{s}=[{data}/sst2/{f}.tsv]"
        for s, f in (("train", "train"), ("val", "dev"), ("test", "test"))
    ]
    sound = [f"data.files=[{data}/fsdd/recordings.tar.gz]"]
    text = (
        f"data={{type: text, files: [{data}/tinyshakespeare/input.txt], context: CONTEXT,"
        " tokenizer: {type: bytes}}"
    )
    known: dict[str, list[str]] = {
        "alexnet": [cifar + ", size: 224, channels: 3}"],
        "vit": [cifar + "}"],
        "cifar10_mae": [cifar + ", labels: false}"],
        "cifar10_finetune": [cifar + "}"],
        "sst2": sst2,
        "sst2_finetune": sst2,
        "sst2_pretrain": [f"data.train=[{data}/sst2/train.tsv]", f"data.val=[{data}/sst2/dev.tsv]"],
        "spoken_digits": sound,
        "spoken_digits_transformer": sound,
        "spoken_digits_ctc": sound,
        "multi30k_en_de": [*pairs, *val],
        "transformer_base": [*pairs, *val],
        **{n: [f"data.root={data}/mnist"] for n in ("mnist_cnn", "mnist_cnn_best")},
        **{
            n: [f"data.files=[{data}/tinyshakespeare/input.txt]"]
            for n in ("shakespeare_char", "shakespeare_char_best")
        },
        "structures": [f"data.files=[{data}/tinyshakespeare/input.txt]"],
    }
    if name in ("gpt2", "llama_like", "deepseek_like", "mamba2", "hybrid", "invent_your_own"):
        context = load(SAMPLES / f"{name}.yaml").data.context  # type: ignore[union-attr]
        return [text.replace("CONTEXT", str(context))]
    return known.get(name, [])


def longest_batch(split: Any, options: Any) -> dict[str, Any]:
    """As many rows as a micro-batch has, the longest of the split."""
    rows = options.rows(max(split.longest_rows(), default=None))
    order = (
        np.arange(len(split))
        if split.lengths is None
        else np.argsort(-split.lengths, kind="stable")
    )
    chosen = np.resize(order[:rows], rows)
    return join([split.batch(chosen[i : i + 1], 0, 0, True) for i in range(rows)])


def measured(name: str, data: Path, room: int) -> tuple[int, int]:
    """(foreseen, measured) bytes; measured is 0 where it would not fit."""
    load_torch()
    torch.set_num_threads(1)
    spec = load(SAMPLES / f"{name}.yaml", [*settings(name, data), "train.precision=fp32"])
    found = open_data(spec.data, base=Path(), say=lambda text: None)
    split = found.split("train")
    foreseen = plan(spec, found.info, split, outline(spec, found.info))
    total = foreseen.memory.peak
    if total > room:
        return total, 0
    batch = longest_batch(split, spec.train)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        model = build(spec.model, found.info)
        state = TrainState(
            model.train(), spec.train.optimizer.build(named_weights(model)), spec.train.ema
        )
        for _ in range(2):
            train_step(
                state,
                build_task(spec.task, found.info),
                spec.train,
                [batch] * spec.train.accumulate,
                torch.device("cpu"),
                1e-4,
            )
    return total, peak_of(profiled)


def peak_of(profiled: Any) -> int:
    """The most bytes allocated at once."""
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def main() -> None:
    """Print the table: each spec in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--room", type=float, default=12e9)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(*measured(given.names[0], given.data.resolve(), int(given.room)))
        return
    rows = []
    for name in given.names or sorted(path.stem for path in SAMPLES.glob("*.yaml")):
        command = [
            sys.executable,
            __file__,
            name,
            "--data",
            str(given.data),
            "--room",
            str(given.room),
            "--one",
        ]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if ended.returncode:
            rows.append([name, "", "", ended.stderr.strip().splitlines()[-1][:90]])
            continue
        foreseen, there = map(int, ended.stdout.split()[-2:])
        share = f"{foreseen / there:.2f}" if there else "not measured: too large"
        rows.append([name, quantity(foreseen, "B"), quantity(there, "B") if there else "", share])
        print(*rows[-1], file=sys.stderr)
    print(table(["spec", "foreseen", "measured", "ratio"], rows))


if __name__ == "__main__":
    main()
