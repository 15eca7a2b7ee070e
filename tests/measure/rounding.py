"""What bf16 does to each published family's outputs, here and in transformers.

    python tests/measure/rounding.py [--seeds 6] [--only NAME ...]

A network of each form in published_configs.py is drawn, written as a folder and opened by both in
bf16: `own`, as transformers draws a new network of that config; `wide`, with every weight drawn
several times as wide. The figures are root mean squares of differences relative to that of the
outputs, in percent, the median over seeds and rows and in brackets the largest: A, ours from theirs
with the attention that it takes by default; B, theirs with its eager attention from that; C, ours
from exact outputs (fp32); D, theirs from those. Where A is as much as B, or as the root of the sum
of the squares of C and D, both round at other places, independently. A network that takes other
experts (two scores nearly equal) jumps: `jumps` is how many of theirs.
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
    read_back,
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

JUMP = 0.03
"""A difference from the exact outputs that rounding alone does not make."""


def far(found: Tensor, want: Tensor) -> float:
    """The root mean square of the differences relative to that of what is wanted."""
    return float((found - want).norm() / want.norm())


@torch.no_grad()
def measured(name: str, seed: int, own: bool) -> list[tuple[float, ...]]:
    """A to D of each row."""
    drawn = checked(name, *base(name, random.Random(seed)), [])
    torch.manual_seed(seed)
    ours = build(drawn.spec.model, drawn.info).eval()
    if not own:
        drawn_weights(ours, seed, written_out(drawn.spec.model))
    for weight in ours.state_dict().values():  # what is stored is the same in both precisions
        weight.copy_(weight.bfloat16())
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "hf"
        written("hf", source_of(drawn, ours), folder)
        exact = opened("hf", folder, drawn)
        if own:
            torch.manual_seed(seed)
            exact = type(exact)(exact.config).eval().bfloat16().float()
            exact.save_pretrained(folder)
            exact = opened("hf", folder, drawn)
            ours = read_back(folder, drawn)[0]
        eager = copy.deepcopy(exact).bfloat16()
        try:
            default = opened("hf", folder, drawn, "sdpa").bfloat16()
        except ValueError:  # it has none
            default = eager
    ours.bfloat16()
    found = []
    for row in rows_for(drawn, seed):
        narrow = row.bfloat16() if row.is_floating_point() else row
        full = narrow.float() if row.is_floating_point() else row
        mine = ours_of(ours, drawn, narrow).float()
        usual, other, want = (
            aligned(theirs_of(network, "hf", drawn, values), drawn, mine).float()
            for network, values in ((default, narrow), (eager, narrow), (exact, full))
        )
        found.append((far(mine, usual), far(other, usual), far(mine, want), far(usual, want)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--only", nargs="*", default=[*CONFIGS])
    given = parser.parse_args()
    quiet_transformers()
    print("| network | own A | B | C | D | jumps | wide A | B | C | D | jumps |")
    print("|---" * 11 + "|")
    for name in given.only:
        cells = [name]
        for own in (True, False):
            every = [row for seed in range(given.seeds) for row in measured(name, seed, own)]
            plain = [row for row in every if row[3] < JUMP] or every
            cells += [
                f"{100 * statistics.median(c):.2f} ({100 * max(c):.2f})"
                for c in zip(*plain, strict=True)
            ]
            jumps = len(every) - len(plain)
            cells.append(f"{jumps} of {len(every)}" if jumps else "")
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
