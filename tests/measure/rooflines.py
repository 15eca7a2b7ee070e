"""Rooflines of random networks: is any share above 100 %, do the least time and all losses make up
the step, and does the step agree with a plain timer?

    python tests/measure/rooflines.py --count 200 [--seed 0]

Each network is one of random_specs.py, trained for a few steps on random batches, in this process.
Ends with status 1 where a share is above 100 % or the sum is not within 5 % of the step.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from random_specs import draw

from bigmodel_cli.bench.doing import Opened, block, warm
from bigmodel_cli.bench.result import WHOLE, Measured
from bigmodel_cli.bench.training import Training
from bigmodel_cli.errors import BigmodelError
from bigmodel_cli.lazy import load_torch, torch


def measured(seed: int) -> tuple[str, Measured, float]:
    """(name, what bench measures, seconds of a step by a plain timer) of a seed's network."""
    drawn = draw(seed)
    fixed = {"precision": "fp32", "memory_format": "contiguous", "compile": "off", "batch_size": 4}
    train = drawn.spec.train.model_copy(update=fixed)
    spec = drawn.spec.model_copy(update={"train": train})
    doing = Training(Opened((drawn.base,), spec, drawn.info, None), torch.device("cpu"))
    warm(doing)
    found = block(doing, 0.1)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        doing.step()
        times.append(time.perf_counter() - start)
    result = Measured(doing.facts(), [found], doing.work())
    doing.close()
    return drawn.base, result, statistics.median(times)


def main() -> None:
    """Print a line for each network, and a summary."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    load_torch()
    shares, sums, pressed, timers, left = [], [], [], [], 0
    for seed in range(options.seed, options.seed + options.count):
        try:
            name, found, timer = measured(seed)
        except BigmodelError as error:
            left += 1
            print(f"{seed}: left out: {error}")
            continue
        roof = found.roofline
        assert roof is not None, f"{seed}: nothing was watched"
        whole = (roof.least + math.fsum(loss.seconds for loss in roof.losses)) / found.median
        shares.append(roof.share)
        sums.append(abs(whole - 1))
        pressed.append(roof.pressed)
        timers.append(abs(timer / found.median - 1))
        print(
            f"{seed}: {name}: {1000 * found.median:.2f} ms ({WHOLE}), roofline {roof.share:.1%},"
            f" useful {found.share:.1%}, pressed {roof.pressed:.2f}, sum {whole:.4f}",
            flush=True,
        )
    print(
        f"{len(shares)} networks ({left} left out): roofline at most {max(shares):.1%}, median"
        f" {statistics.median(shares):.1%}; sums off by at most {max(sums):.2%}; operations pressed"
        f" by more than 5 % in {sum(p < 0.95 for p in pressed)}; a plain timer of other steps"
        f" differs by {statistics.median(timers):.1%} (median)"
    )
    sys.exit(max(shares) > 1 or max(sums) > 0.05)


if __name__ == "__main__":
    main()
