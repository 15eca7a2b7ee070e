"""What the training loop costs above a hand-written one, and what its defaults gain: ratios from
interleaved runs.

    python tests/measure/overhead.py cnn --data ../shared/data
    python tests/measure/overhead.py decoder --data ../shared/data

The hand-written loop has the same model, data, precision and optimizer (PyTorch's own, fused), and
nothing else: no records, no checks, no checkpoints. Every round runs it and `bigmodel pretrain` one
after the other, each in a process of its own; the median of the ratios is printed. `fit /
hand-written` gives the hand-written loop bigmodel's setting of the memory allocator as well, so
that it compares the loops alone; `hand-written fp32 / default` leaves it as Python starts it, which
on Linux costs the hand-written loop some thousand page faults a step.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from bigmodel_cli.__main__ import run
from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.device import keep_freed_memory
from bigmodel_cli.lazy import load_torch
from bigmodel_cli.models import build
from bigmodel_cli.spec import load

SAMPLES = Path(__file__).resolve().parent.parent.parent / "sample_configs"
FIRST = 50  # steps that are not counted: allocation and warm-up


def hand_cnn(data: Path, steps: int, precision: str, channels_last: bool) -> float:
    """Seconds per step of a plain loop: one tensor of images, indexed; Adam; batch 64."""
    from torchvision.datasets import MNIST

    train = MNIST(data / "mnist", train=True)
    images, labels = train.data[:, None].float().div(255).sub(0.1307).div(0.3081), train.targets
    layout: Any = torch.channels_last if channels_last else torch.contiguous_format
    model = nn.Sequential(
        nn.Conv2d(1, 32, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(576, 64), nn.ReLU(), nn.Linear(64, 10),
    ).to(memory_format=layout)  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    order, start = torch.randperm(len(images)), 0.0
    for step in range(steps):
        if step == FIRST:
            start = time.perf_counter()
        rows = order[(step * 64) % 59_968 : (step * 64) % 59_968 + 64]
        x, y = images[rows].contiguous(memory_format=layout), labels[rows]
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = F.cross_entropy(model(x).float(), y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return (time.perf_counter() - start) / (steps - FIRST)


def hand_decoder(data: Path, steps: int, precision: str, channels_last: bool) -> float:
    """Seconds per step of a plain loop: random windows of one tensor of tokens; AdamW; clipping;
    batch 12 x 64.
    """
    text = (data / "tinyshakespeare" / "input.txt").read_text()
    symbols = {c: i for i, c in enumerate(sorted(set(text)))}
    tokens = torch.tensor([symbols[c] for c in text[: int(0.9 * len(text))]])
    model = build(
        load(SAMPLES / "shakespeare_char.yaml").model, DatasetInfo(vocab_size=65, context=64)
    )
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1, fused=True
    )
    window, start = torch.arange(65), 0.0
    for step in range(steps):
        if step == FIRST:
            start = time.perf_counter()
        rows = tokens[torch.randint(len(tokens) - 65, (12, 1)) + window]
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            logits = model(rows[:, :-1])
        loss = F.cross_entropy(logits.float().flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return (time.perf_counter() - start) / (steps - FIRST)


def pretrain(name: str, data: Path, steps: int, settings: list[str]) -> float:
    """Seconds per step of `bigmodel pretrain`, by its own records."""
    spec, source = {
        "cnn": ("mnist_cnn.yaml", f"data.root='{data / 'mnist'}'"),
        "decoder": (
            "shakespeare_char.yaml",
            f"data.files=['{data / 'tinyshakespeare' / 'input.txt'}']",
        ),
    }[name]
    changes = [
        source,
        f"train.steps={steps}",
        "train.epochs=null",
        "train.validate_every=null",
        "train.validate_epochs=null",
    ]
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        out = Path(folder) / "run"
        words = [
            "pretrain",
            str(SAMPLES / spec),
            "--out",
            str(out),
            "--set",
            f"train.log_every={FIRST}",
        ]
        with contextlib.redirect_stdout(io.StringIO()):
            status = run([*words, *(w for c in [*changes, *settings] for w in ("--set", c))])
        assert status == 0
        records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    elapsed = {r["step"]: r["elapsed"] for r in records if "elapsed" in r}
    return float((elapsed[steps] - elapsed[FIRST]) / (steps - FIRST))


HANDS: dict[str, Callable[[Path, int, str, bool], float]] = {
    "cnn": hand_cnn,
    "decoder": hand_decoder,
}


def one(network: str, way: str, precision: str, data: Path, steps: int) -> float:
    """Seconds per step of one way of training, in this process."""
    load_torch()
    layout = "channels_last" if network == "cnn" and precision == "bf16" else "contiguous"
    if way == "default":
        return pretrain(network, data, steps, [])
    if way == "fit":
        pinned = [
            f"train.precision={precision}",
            f"train.memory_format={layout}",
            "train.compile='off'",
        ]
        return pretrain(network, data, steps, pinned)
    if way == "tuned":
        keep_freed_memory()
    return HANDS[network](data, steps, precision, layout == "channels_last")


def in_process(words: list[str], way: str, precision: str) -> float:
    """The same in a process of its own."""
    command = [sys.executable, __file__, *words, "--one", way, precision]
    return float(
        subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
    )


def unpack(data: Path, folder: Path) -> None:
    """The data in `folder` as torchvision reads it: the idx files of MNIST unpacked."""
    (folder / "tinyshakespeare").symlink_to(data / "tinyshakespeare")
    raw = folder / "mnist" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for packed in (data / "mnist" / "MNIST" / "raw").glob("*.gz"):
        (raw / packed.stem).write_bytes(gzip.decompress(packed.read_bytes()))


def main() -> None:
    """Compare, round by round."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", choices=sorted(HANDS))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=550)
    parser.add_argument("--one", nargs=2, metavar=("WAY", "PRECISION"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(one(arguments.network, *arguments.one, arguments.data, arguments.steps))
        return
    with tempfile.TemporaryDirectory() as folder:
        unpack(arguments.data.resolve(), Path(folder))
        compare(arguments, Path(folder))


def compare(arguments: argparse.Namespace, data: Path) -> None:
    """Run every way in every round, and print the ratios."""
    words = [arguments.network, "--data", str(data), "--steps", str(arguments.steps)]
    rows: dict[str, list[float]] = {}
    for _ in range(arguments.rounds):
        plain, default = (in_process(words, way, "fp32") for way in ("plain", "default"))
        rows.setdefault("hand-written fp32 / default", []).append(plain / default)
        for precision in ("fp32", "bf16"):
            tuned, fit = (in_process(words, way, precision) for way in ("tuned", "fit"))
            rows.setdefault(f"fit / hand-written, {precision}", []).append(fit / tuned)
    for name, ratios in rows.items():
        spread = f"{np.quantile(ratios, 0.25):.3f} to {np.quantile(ratios, 0.75):.3f}"
        print(
            f"{arguments.network}: {name}: {statistics.median(ratios):.3f} (middle half {spread},"
            f" {len(ratios)} rounds)"
        )


if __name__ == "__main__":
    os.environ.setdefault("XDG_CACHE_HOME", tempfile.mkdtemp())
    main()
