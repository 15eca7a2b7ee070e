"""What bf16 does to each published family's outputs, here and in transformers.

    python tests/measure/rounding.py [--seeds 6] [--only NAME ...]

A network of each form in published_configs.py is written as a folder and opened by both in bf16,
with the weights that training starts with (`first`), and with every weight drawn several times as
wide (`wide`). The figures are root mean squares of differences relative to that of the outputs, in
percent, the median over seeds and rows and in brackets the largest: ours from theirs, ours from
exact outputs (fp32), theirs from exact; and theirs from theirs with PyTorch's fused attention in
place of the eager formula, of classes that have both. Where ours from theirs is about as much as
theirs from theirs, or as the root of the sum of the squares of the two from exact, both round at
other places, independently. A network that takes other experts (two scores nearly equal) jumps:
`jumps` is how many of theirs.
"""

from __future__ import annotations

import argparse
import copy
import random
import statistics
import tempfile
from pathlib import Path

import torch
from elsewhere import (
    aligned,
    drawn_weights,
    opened,
    ours_of,
    quiet_transformers,
    rows_for,
    source_of,
    theirs_of,
    written,
)
from published_configs import CONFIGS
from random_specs import base, checked
from torch import Tensor

from bigmodel_cli.convert.family import written_out
from bigmodel_cli.models import build

JUMP = 0.1
"""A difference from the exact outputs that rounding alone does not make."""


def far(found: Tensor, want: Tensor) -> float:
    """The root mean square of the differences relative to that of what is wanted."""
    return float((found - want).norm() / want.norm())


@torch.no_grad()
def measured(name: str, seed: int, wide: bool) -> list[tuple[float, ...]]:
    """The columns of each row; without the last where a class has no fused attention."""
    drawn = checked(name, *base(name, random.Random(seed)), [])
    torch.manual_seed(seed)
    ours = build(drawn.spec.model, drawn.info).eval()
    if wide:
        drawn_weights(ours, seed, written_out(drawn.spec.model))
    for weight in ours.state_dict().values():  # what is stored is the same in both precisions
        weight.copy_(weight.bfloat16())
    with tempfile.TemporaryDirectory() as place:
        written("hf", source_of(drawn, ours), Path(place) / "hf")
        exact = opened("hf", Path(place) / "hf", drawn)
        try:
            other = opened("hf", Path(place) / "hf", drawn, "sdpa").bfloat16()
        except ValueError:  # it has none
            other = None
    both = copy.deepcopy(ours).bfloat16(), copy.deepcopy(exact).bfloat16()
    found = []
    for row in rows_for(drawn, seed):
        narrow = row.bfloat16() if row.is_floating_point() else row
        full = narrow.float() if row.is_floating_point() else row
        mine = ours_of(both[0], drawn, narrow).float()
        theirs = aligned(theirs_of(both[1], "hf", drawn, narrow), drawn, mine).float()
        want = aligned(theirs_of(exact, "hf", drawn, full), drawn, mine)
        fused = () if other is None else (theirs_of(other, "hf", drawn, narrow).float(),)
        more = (far(aligned(y, drawn, mine), theirs) for y in fused)
        found.append((far(mine, theirs), far(mine, want), far(theirs, want), *more))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--only", nargs="*", default=[*CONFIGS])
    given = parser.parse_args()
    quiet_transformers()
    columns = ("ours from theirs", "ours from exact", "theirs from exact", "theirs, fused", "jumps")
    print(f"| network | weights | {' | '.join(columns)} |")
    print("|---" * 7 + "|")
    for name in given.only:
        for wide in (False, True):
            every = [row for seed in range(given.seeds) for row in measured(name, seed, wide)]
            plain = [row for row in every if max(row[1:3]) < JUMP] or every
            found = [
                f"{100 * statistics.median(c):.2f} ({100 * max(c):.2f})"
                for c in zip(*plain, strict=True)
            ]
            found += [""] * (4 - len(found))
            jumps = f"{sum(row[2] >= JUMP for row in every)} of {len(every)}"
            kind = "wide" if wide else "first"
            print(f"| {name} | {kind} | {' | '.join(found)} | {jumps} |", flush=True)


if __name__ == "__main__":
    main()
