"""Bytes that a plan of several processes foresees, beside those that they hold and send.

    python tests/measure/mesh_plan.py [--spec decoder ...] [--mesh shard=2 ...]

Trains each of four small networks (tests/train/byte_cases.py) for two steps in one, two and four
processes over gloo, divided in each way, and prints of the last step what the plan says, what was
measured, and the ratio. Weights, gradients, optimizer state and averages are the storages of this
process's tensors; what is added at the peak, all storages that live after any operation; what is
sent, the tensors that are given to torch.distributed. Ends with status 1 where a ratio is further
than 10 % from 1.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "train"))

from byte_cases import MESHES, SPECS, compared, divides

BOUND = 0.10


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--spec", nargs="+", default=list(SPECS), choices=list(SPECS))
    parser.add_argument("--mesh", nargs="+", default=list(MESHES), choices=list(MESHES))
    options = parser.parse_args()
    every = [(name, mesh) for mesh in options.mesh for name in options.spec if divides(name, mesh)]
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        for (name, mesh), rows in compared(every, Path(folder)):
            for row in rows:
                ratios.append(row.ratio)
                print(
                    f"{name:8} {mesh:20} {row.name:26} {row.foreseen / 1e6:9.3f} MB"
                    f" {row.measured / 1e6:9.3f} MB {row.ratio:6.3f}",
                    flush=True,
                )
    apart = max(abs(ratio - 1) for ratio in ratios)
    print(f"{len(ratios)} figures; the furthest is {100 * apart:.1f} % from the plan's")
    return int(apart > BOUND)


if __name__ == "__main__":
    sys.exit(main())
