"""How memory grows with the context, and generation with the position: for each structure of
structures.py.

    python tests/measure/growth.py

Peak memory is that of a forward and a backward pass at batch 1 above what stood before, each in a
process of its own; the time is that of one token at positions 100 and 10,000, the median of 200,
for mixers whose state does not grow.
"""

from __future__ import annotations

import statistics
import sys
import time
from itertools import pairwise
from typing import Any

import torch
from structures import SPEC, STRUCTURES, measured

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.console import quantity, table
from bigmodel_cli.lazy import load_torch
from bigmodel_cli.models import build
from bigmodel_cli.spec import load

LENGTHS = (1024, 2048, 4096, 8192)


def token_times(structure: str, at: tuple[int, ...]) -> list[float] | None:
    """Milliseconds of a token after so many; None for a mixer that keeps every position."""
    load_torch()
    torch.manual_seed(0)
    model: Any = build(
        load(SPEC, [STRUCTURES[structure]]).model, DatasetInfo(vocab_size=65, context=256)
    ).eval()
    if model.limit < max(at):
        return None
    times = []
    for position in at:
        cache, taken = model.new_cache(1), []
        with torch.inference_mode():
            model(torch.randint(65, (1, position)), cache)
            for _ in range(200):
                start = time.perf_counter()
                model(torch.randint(65, (1, 1)), cache)
                taken.append(time.perf_counter() - start)
        times.append(1e3 * statistics.median(taken))
    return times


def main() -> None:
    """Print the table."""
    rows = []
    for name in STRUCTURES:
        peaks = [measured(name, length)["peak"] for length in LENGTHS]
        doublings = [f"{b / a:.2f}" for a, b in pairwise(peaks)]
        times = token_times(name, (100, 10_000))
        shown = [f"{t:.2f} ms" for t in times] if times else ["", ""]
        rows.append([name, *(quantity(p, "B") for p in peaks), " ".join(doublings), *shown])
        print(name, file=sys.stderr)
    print(
        table(
            [
                "structure",
                *(f"{n:,}" for n in LENGTHS),
                "a doubling costs x",
                "token at 100",
                "at 10,000",
            ],
            rows,
        )
    )


if __name__ == "__main__":
    main()
