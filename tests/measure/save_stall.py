"""How long training stands still for a save that goes on beside it, against one that it waits for.

    python tests/measure/save_stall.py [--dim 768] [--layers 12] [--saves 5] [--folder DIR]

A decoder with AdamW in fp32, whose checkpoint has three numbers a weight, is trained on one thread
and saved by turns in both ways, to a folder that should be on a disk. Printed are the bytes, the
medians of how long each save held up the training (the first copy apart, for which memory is
taken), in seconds and in those of a processor, the ratio, and a step's time with nothing else and
while a save goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

import torch  # noqa: E402

from bigmodel_cli import checkpoints  # noqa: E402
from bigmodel_cli.lazy import load_torch  # noqa: E402
from bigmodel_cli.spec import from_dict  # noqa: E402
from bigmodel_cli.train.objectives import objective_of  # noqa: E402
from bigmodel_cli.train.saving import Saver  # noqa: E402
from bigmodel_cli.train.session import set_up  # noqa: E402
from bigmodel_cli.train.setup import open_run, open_task  # noqa: E402
from bigmodel_cli.train.step import train_step  # noqa: E402

CPU = torch.device("cpu")


class Training:
    """A decoder of this size, and its steps."""

    def __init__(self, dim: int, layers: int) -> None:
        block = {"mixer": {"type": "attention", "num_heads": dim // 64}, "ffn": {"type": "gelu"}}
        given = {
            "model": {"type": "decoder", "dim": dim, "blocks": [{"repeat": layers, **block}]},
            "data": {"type": "synthetic", "problem": "copy", "length": 15, "samples": 500},
            "task": {"type": "causal_lm"},
            "train": {
                "steps": 1000,
                "batch_size": 4,
                "precision": "fp32",
                "compile": "off",
                "optimizer": {"type": "adamw", "lr": 1e-4},
            },
        }
        opened = open_run(from_dict(given))
        task = open_task(opened.spec, opened.data)
        self.spec, self.model, self.state, loader = set_up(opened, task, CPU, None)
        self.info = opened.data.info
        self.objective = objective_of(self.spec, task, self.info, {}, self.model, CPU)
        self.batches = loader.steps(0, 1000)

    def step(self) -> float:
        """Seconds of one step."""
        started = time.perf_counter()
        micro_batches = next(self.batches)
        train_step(self.state, self.objective, self.spec.train, micro_batches, CPU, 1e-4)
        self.state.step += 1
        return time.perf_counter() - started

    def contents(self) -> checkpoints.Contents:
        weights, tensors, values = self.state.capture()
        head = self.state.step, weights, tensors, values
        return checkpoints.Contents(*head, self.spec.recorded(), self.info.to_json())


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    """Seconds, and those of a processor, which other processes change less."""
    started, busy = time.perf_counter(), time.thread_time()
    work()
    return time.perf_counter() - started, time.thread_time() - busy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--saves", type=int, default=5)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    load_torch()
    torch.set_num_threads(1)
    training = Training(options.dim, options.layers)
    weights = sum(p.numel() for p in training.model.parameters())
    alone = [training.step() for _ in range(8)][2:]
    waiting, stalls, written, beside = [], [], [], []
    with contextlib.ExitStack() as stack:
        folder = options.folder
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))

        def empty(path: Path) -> None:
            shutil.rmtree(folder, ignore_errors=True)

        savers = {option: Saver(option, folder, lambda text: None) for option in ("off", "on")}
        for _ in range(options.saves):
            size = training.contents().size()
            waiting.append(timed(lambda: savers["off"].save(training.contents(), empty)))
            training.step()
            started = time.perf_counter()
            stalls.append(timed(lambda: savers["on"].save(training.contents(), empty)))
            while not savers["on"].is_over:
                beside.append(training.step())
            savers["on"].wait()
            written.append(time.perf_counter() - started)
            training.step()
    print(f"{weights / 1e6:.0f} M weights, {size / 1e9:.2f} GB, {options.saves} saves of each kind")
    for what, n in (("seconds", 0), ("seconds of processor time", 1)):
        held, stood = [x[n] for x in waiting], [x[n] for x in stalls]
        sync, stall = statistics.median(held), statistics.median(stood[1:])
        print(
            f"{what}: training waits {sync:.2f} ({min(held):.2f} to {max(held):.2f}); going on, it"
            f" stands still for {stall:.3f} ({min(stood[1:]):.3f} to {max(stood[1:]):.3f}; first"
            f" {stood[0]:.3f}): {stall / sync:.1%}"
        )
    print(f"a save beside the training takes {statistics.median(written):.2f} s")
    print(
        f"a step: {statistics.median(alone):.3f} s, and {statistics.median(beside):.3f} s while a"
        f" save goes on ({len(beside)} steps)"
    )


if __name__ == "__main__":
    main()
