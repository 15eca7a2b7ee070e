"""Shards from a slow, faulty server against the same in a local folder, and seeks.

A corpus of twenty times the cache; answers 50 ms late, 1 % of them errors and 5 % cut. Both are
read by turns in fresh processes, with a pause of `--compute` milliseconds after each batch, for
a training step. Each figure is a line with its goal; about three minutes.

    python tests/measure/streaming.py [--compute 8] [--turns 3]
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
SHARDS, TOKENS, CONTEXT, BATCH, MIXED = 160, 1 << 17, 255, 32, 3
SHARD_BYTES = 2 * TOKENS + 1024
LIMIT = 8 * SHARD_BYTES
FAR = 10**12


def resident() -> int:
    """This process's memory in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def taken(folder: Path) -> int:
    """Bytes of the cache that files take, and that are reserved for those which come."""
    with open(folder / "lock", "a") as lock:  # nothing is removed or begun meanwhile
        fcntl.flock(lock, fcntl.LOCK_EX)
        total = 0
        for path in folder.iterdir():
            try:
                size = path.stat().st_size
            except FileNotFoundError:  # a draft that was given up
                continue
            is_draft = path.name.startswith("draft-")
            total += max(size, int(path.name.rpartition("-")[2])) if is_draft else size
        return total


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
            most[0] = max(most[0], taken(folder))
            time.sleep(0.02)

    threading.Thread(target=watch, daemon=True).start()
    count, memory, total = len(split) // BATCH, [], 0
    stream[0]
    began, busy = time.perf_counter(), time.process_time()
    for k in range(count):
        total += int(stream[k]["tokens"].sum())
        time.sleep(compute / 1e3)
        memory.append(resident())
    seconds, busy = time.perf_counter() - began, time.process_time() - busy
    done.append(True)
    grown = max(memory[count // 2 :]) - max(memory[count // 4 : count // 2])
    found = {"rows_per_s": count * BATCH / seconds, "cpu_s": busy, "disk": most[0] / LIMIT}
    print(json.dumps({**found, "grown_MB": grown / 1e6, "sum": total}))


def seeks() -> None:
    """How long the first batch at a far sample takes to be found; and orders are bijections."""
    from bigmodel_cli.data.base import Split
    from bigmodel_cli.data.order import permute_in_blocks
    from bigmodel_cli.data.shards.mixture import Pattern
    from bigmodel_cli.recipe import TrainOptions
    from bigmodel_cli.train.batches import micro_batches

    class Far(Split):
        """Ten times as many samples as are sought, in shards of 100,000."""

        def __len__(self) -> int:
            return 10 * FAR

        def order(self, places: Any, epoch: int, seed: int) -> Any:
            return permute_in_blocks(places, len(self), 100_000, 8, (seed, epoch))

        def tensors(self, samples: Any, epoch: int, seed: int, augment: bool) -> dict[str, Any]:
            return {}

    split, pattern, took = Far(), Pattern([0.7, 0.2, 0.1]), []
    for turn in range(100):
        options = TrainOptions(steps=1, batch_size=32, seed=turn)
        began = time.perf_counter()
        micro_batches(split, options)[FAR // 32 + turn]
        pattern.before(FAR)
        took.append(time.perf_counter() - began)
    say("seek to sample 10^12, median of 100", statistics.median(took) * 1e3, "ms", "<= 1", 1)
    n = 10**6
    order = permute_in_blocks(np.arange(n), n, 1000, 8, (0, 0))
    wrong = int((np.sort(order) != np.arange(n)).sum())
    say("samples of 10^6 that do not come exactly once", wrong, "", "0", 0)


def say(what: str, value: float, unit: str, goal: str, most: float, least: float = 0) -> None:
    """Print a figure beside its goal."""
    verdict = "met" if least <= value <= most else "MISSED"
    print(f"{what}: {value:.3f} {unit} (goal {goal}: {verdict})", flush=True)


def main() -> None:
    """Make the corpus, serve it, and compare."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--compute", type=float, default=8)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--read")
    given = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    if given.read:
        read(given.read, given.compute)
        return
    seeks()
    from bigmodel_cli.data.shards.packing import Packable, pack, slices
    from bigmodel_cli.data.text.own_tokenizers import ByteTokenizer
    from tests.data.shards.serving import serving

    found: dict[str, list[dict[str, float]]] = {"local": [], "served": []}
    with tempfile.TemporaryDirectory() as folder:
        tokens = np.random.default_rng(0).integers(0, 256, SHARDS * TOKENS).astype(np.uint16)
        source = Packable({"train": slices(tokens, "x")}, ByteTokenizer().to_json(), 257)
        pack(source, Path(folder, "data"), 1, TOKENS)
        with serving(Path(folder, "data"), latency=0.05, errors=0.01, cuts=0.05) as server:
            places = {"local": f"{folder}/data/train", "served": f"{server.url}/train"}
            for turn in range(given.turns):
                for name in sorted(places, reverse=turn % 2 == 1):
                    cache = {"XDG_CACHE_HOME": f"{folder}/{name}{turn}", "PYTHONPATH": str(ROOT)}
                    command = [sys.executable, __file__, "--read", places[name]]
                    done = subprocess.run(
                        [*command, "--compute", str(given.compute)],
                        capture_output=True,
                        text=True,
                        env={**os.environ, **cache},
                        check=True,
                    )
                    found[name].append(json.loads(done.stdout))
                    print(name, done.stdout.strip(), flush=True)
    report(found)


def report(found: dict[str, list[dict[str, float]]]) -> None:
    """The figures of all turns."""

    def middle(name: str, what: str) -> float:
        return statistics.median(turn[what] for turn in found[name])

    sums = {turn["sum"] for turns in found.values() for turn in turns}
    say("epochs whose tokens differ", len(sums) - 1, "", "0", 0)
    rate = middle("served", "rows_per_s") / middle("local", "rows_per_s")
    say("speed, served / local", rate, "", ">= 0.95", float("inf"), 0.95)
    disk = max(turn["disk"] for turn in found["served"])
    say("most bytes on the disk / limit", disk, "", "<= 1.1", 1.1)
    grown = max(turn["grown_MB"] for turn in found["served"])
    say("memory grown from the second quarter on", grown, "MB", "<= 2", 2)
    busy = middle("served", "cpu_s") - middle("local", "cpu_s")
    megabytes = SHARDS * SHARD_BYTES / 1e6
    print(f"processor's time of fetching: {1e3 * busy / megabytes:.1f} ms a MB", flush=True)


if __name__ == "__main__":
    main()
