"""What saving and loading a checkpoint takes beside the weights: peak memory, and time.

    python tests/measure/checkpoint_memory.py [--gigabytes 2] [--folder FOLDER] [--against
    OTHER_CHECKOUT] [--rounds 3]

Each measurement is a process of its own: it holds the weights (of a save; of a load it holds a
model that was never touched), and the figures are above that floor. With `--against` the same is
measured with the code of another checkout, turn by turn. The saved files are in the system's cache
when they are loaded.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SPEC: dict[str, Any] = {"model": {}, "data": {}, "task": {}, "train": {}}
ROOT = Path(__file__).resolve().parents[2]


def memory(name: str) -> int:
    """Bytes of `VmRSS` or `VmHWM` of this process."""
    line = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)
    )
    return int(line.split()[1]) * 1024


def network(size: int) -> Any:
    """An embedding of 30 % of `size` bytes, as small language models have, and blocks of 64 MB."""
    import torch
    from torch import nn

    rows = max(1, int(0.3 * size) // 4096)
    blocks = int(0.7 * size) // 64_000_000 or 1
    made = nn.Module()
    made.embedding = nn.Embedding(rows, 1024, _weight=torch.empty(rows, 1024))
    shape = (int(0.7 * size) // blocks // 4096, 1024)
    made.blocks = nn.ParameterList([nn.Parameter(torch.empty(shape)) for _ in range(blocks)])
    return made


def measure(way: str, size: int, folder: Path) -> dict[str, float]:
    """Peak bytes above the floor and seconds of a save, or of a load into a model."""
    import torch

    from bigmodel_cli import checkpoints
    from bigmodel_cli.checkpoints import safe
    from bigmodel_cli.checkpoints.contents import Contents
    from bigmodel_cli.lazy import load_torch

    load_torch()
    assert safe.can_list([1], [1])
    model = network(size)
    weights = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    if way == "save":
        with torch.no_grad():
            for tensor in weights.values():
                tensor.fill_(0.5)
    info: dict[str, Any] = {}
    contents = Contents(1, weights, {"rng.cpu": torch.get_rng_state()}, {"step": 1}, SPEC, info)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what is in use now
    floor, start = memory("VmRSS"), time.monotonic()
    if way == "save":
        checkpoints.save(folder, contents)
    else:
        checkpoints.load_weights(
            model, checkpoints.read(folder / "step-00000001", train_state=False).model
        )
    seconds = time.monotonic() - start
    if way == "load":
        assert all(bool((tensor == 0.5).all()) for tensor in weights.values())
    return {
        "peak": memory("VmHWM") - floor,
        "seconds": seconds,
        "largest": max(t.nbytes for t in weights.values()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gigabytes", type=float, default=2)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--against", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    size = int(arguments.gigabytes * 1e9)
    if arguments.one:
        print(json.dumps(measure(arguments.one, size, arguments.folder)))
        return
    codes = {"this": ROOT, **({"other": arguments.against} if arguments.against else {})}
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    for _ in range(arguments.rounds):
        for code, root in codes.items():
            folder = arguments.folder / "checkpoint_memory"
            for way in ("save", "load"):
                words = [
                    sys.executable,
                    __file__,
                    "--one",
                    way,
                    "--gigabytes",
                    str(arguments.gigabytes),
                ]
                env = {**os.environ, "PYTHONPATH": str(root)}
                done = subprocess.run(
                    [*words, "--folder", folder], env=env, check=True, stdout=subprocess.PIPE
                )
                found.setdefault((code, way), []).append(json.loads(done.stdout))
            shutil.rmtree(folder)
    for (code, way), several in found.items():
        peak, largest = max(one["peak"] for one in several), several[0]["largest"]
        seconds = [one["seconds"] for one in several]
        print(
            f"{code:6}{way}  peak {peak / 1e9:.2f} GB above the floor: {peak / size:.3f} x the"
            f" weights, {peak / largest:.3f} x the largest tensor; {statistics.median(seconds):.2f}"
            f" s (least {min(seconds):.2f}, most {max(seconds):.2f})"
        )


if __name__ == "__main__":
    main()
