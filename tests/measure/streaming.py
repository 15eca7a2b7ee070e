"""Shards from a slow, faulty server against the same in a local folder.

A corpus of twenty times the cache; answers 50 ms late, 1 % of them errors and 5 % cut. Both are
read by turns in fresh processes, with a pause of `--compute` milliseconds after each batch, for
a training step. Prints rows/s, the most bytes on the disk as a part of the limit, and how much
memory grew from the second quarter on.

    python tests/measure/streaming.py [--compute 10] [--turns 3]
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
SHARDS, TOKENS, CONTEXT, BATCH, MIXED = 160, 1 << 17, 255, 32, 3
SHARD_BYTES = 2 * TOKENS + 1024
LIMIT = 8 * SHARD_BYTES


def resident() -> int:
    """This process's memory in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def read(place: str, compute: float) -> None:
    """Read an epoch, and print what was measured."""
    from bigmodel_cli.data import SOURCES, open_data
    from bigmodel_cli.recipe import TrainOptions
    from bigmodel_cli.train.batches import micro_batches

    values = {"type": "shards", "train": [place], "context": CONTEXT}
    options = {**values, "mixed_shards": MIXED, "cache_bytes": LIMIT}
    split = open_data(
        SOURCES["shards"].model_validate(options), base=Path(), say=lambda _: None
    ).split("train")
    stream = micro_batches(split, TrainOptions(steps=1, batch_size=BATCH))
    folder, most, done = Path(os.environ["XDG_CACHE_HOME"]) / "bigmodel" / "shards", [0], []

    def watch() -> None:
        while not done:
            # nothing is removed or begun meanwhile: files would be counted of two moments
            with open(folder / "lock", "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                sizes = []
                for path in folder.iterdir():
                    try:
                        sizes.append(path.stat().st_size)
                    except FileNotFoundError:  # a draft that got its name
                        continue
            most[0] = max(most[0], sum(sizes))
            time.sleep(0.02)

    threading.Thread(target=watch, daemon=True).start()
    count, memory, total = len(split) // BATCH, [], 0
    stream[0]
    began = time.perf_counter()
    for k in range(count):
        total += int(stream[k]["tokens"].sum())
        time.sleep(compute / 1e3)
        memory.append(resident())
    seconds = time.perf_counter() - began
    done.append(True)
    grown = max(memory[count // 2 :]) - max(memory[count // 4 : count // 2])
    found = {"rows_per_s": count * BATCH / seconds, "disk": most[0] / LIMIT}
    print(json.dumps({**found, "grown_MB": grown / 1e6, "sum": total}))


def main() -> None:
    """Make the corpus, serve it, and compare."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--compute", type=float, default=10)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--read")
    given = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    if given.read:
        read(given.read, given.compute)
        return
    from bigmodel_cli.data.shards.packing import Packable, pack, slices
    from bigmodel_cli.data.text.own_tokenizers import ByteTokenizer
    from tests.data.shards.serving import serving

    with tempfile.TemporaryDirectory() as folder:
        tokens = np.random.default_rng(0).integers(0, 256, SHARDS * TOKENS).astype(np.uint16)
        source = Packable({"train": slices(tokens, "x")}, ByteTokenizer().to_json(), 257)
        pack(source, Path(folder, "data"), 1, TOKENS)
        with serving(Path(folder, "data"), latency=0.05, errors=0.01, cuts=0.05) as server:
            for turn in range(given.turns):
                for name, place in (
                    ("local", f"{folder}/data/train"),
                    ("served", f"{server.url}/train"),
                ):
                    environment = {
                        **os.environ,
                        "XDG_CACHE_HOME": f"{folder}/{name}{turn}",
                        "PYTHONPATH": str(ROOT),
                    }
                    command = [sys.executable, __file__, "--read", place]
                    done = subprocess.run(
                        [*command, "--compute", str(given.compute)],
                        capture_output=True,
                        text=True,
                        env=environment,
                        check=True,
                    )
                    print(name, done.stdout.strip(), flush=True)


if __name__ == "__main__":
    main()
