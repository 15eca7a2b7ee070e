"""The step time of `bench` beside that of an outside loop over `train_step`, on three specs.

    python tests/measure/step_time.py [--seconds 10] [SPEC ...]

In one process both take turns at the very same network and batches, forwards and backwards: blocks
as `bench` takes them (each step with its marks), and a plain loop between two readings of
`time.perf_counter`. The last column is the median of the ratios of neighbouring turns; the exit
status is 1 where one is more than 3 % from 1.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

from bigmodel_cli.bench.doing import block
from bigmodel_cli.bench.targets import built_in, opened
from bigmodel_cli.bench.training import Training
from bigmodel_cli.lazy import load_torch, torch
from bigmodel_cli.train.step import train_step

BUILT_IN = ("cnn", "decoder")
SPECS = ("cnn", "decoder", "digits_cnn")
STEPS, LEAST, WITHIN = 5, 8, 0.03


def loop(training: Training) -> Callable[[], float]:
    """Mean seconds of a few steps, timed from outside as a whole."""
    options = training.spec.train

    def run() -> float:
        start = time.perf_counter()
        for _ in range(STEPS):
            train_step(
                training.state,
                training.objective,
                options,
                next(training.batches),
                training.device,
                options.optimizer.lr,
            )
            training.state.after_step()
        return (time.perf_counter() - start) / STEPS

    return run


def ratios(training: Training, seconds: float) -> tuple[float, list[float]]:
    """The median of bench's steps, and its ratio to the loop's in each pair of turns."""
    outside, steps, found = loop(training), list[float](), list[float]()
    outside()
    block(training, 0, STEPS)
    deadline, number = time.perf_counter() + seconds, 0
    while len(found) < LEAST or time.perf_counter() < deadline:
        first = outside() if number % 2 else None
        inside = block(training, 0, STEPS).seconds
        other = outside() if first is None else first
        found.append(statistics.fmean(inside) / other)
        steps += inside
        number += 1
    return statistics.median(steps), found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("specs", nargs="*", default=SPECS)
    parser.add_argument("--seconds", type=float, default=10.0)
    asked = parser.parse_args()
    load_torch()
    worst = 0.0
    for name in asked.specs:
        found = (built_in if name in BUILT_IN else opened)(name, ["train.precision=fp32"])
        training = Training(found, torch.device("cpu"))
        step, all_ratios = ratios(training, asked.seconds)
        training.close()
        middle = statistics.median(all_ratios)
        worst = max(worst, abs(middle - 1))
        low, *_, high = statistics.quantiles(all_ratios, n=4)
        print(
            f"{name}: bench {1e3 * step:.3f} ms, {len(all_ratios)} pairs of turns,"
            f" bench / loop {middle:.4f} (quartiles {low:.4f} to {high:.4f})"
        )
    return int(worst > WITHIN)


if __name__ == "__main__":
    sys.exit(main())
