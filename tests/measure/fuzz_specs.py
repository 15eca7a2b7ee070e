"""Mutated specs through loading, checking against the data, building on the meta device and the
plan; a share through training.

    python tests/measure/fuzz_specs.py [--count 20000] [--first SEED] [--seeds SEED ...]

The specs of sample_configs and small ones of each form of data are changed as trees, as lines and
as bytes, and by `--set`. What must show: only statuses 0, 2, 3 and 5 (4 where a checkpoint is
named), no traceback, at most 5 s and 500 MiB, and a place (of the file, of --set, or of the option)
in every message of status 2. A spec whose plan is small trains two steps as it is.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from pathlib import Path
from typing import Any

import yaml
from fuzzing import Campaign, Trial, main, quiet
from mutators import WORDS, mutate_bytes, mutate_lines, mutate_tree, places, seen, value
from samples_of_data import write_all

ROOT = Path(__file__).resolve().parents[2]
PLACED = re.compile(r"(spec\.yaml|--[a-z]+)")
OPTION = re.compile(r"bigmodel: [a-z_-]+(\.\w+)*:? ")
SMALL = (100_000_000, 20_000_000)
"""Bytes, and FLOPs of a sample, below which a spec is trained."""


def trees() -> list[Any]:
    """The sample specs, on small data of the same form and with few blocks, and one small spec for
    each other form of data.
    """
    found = []
    for path in sorted((ROOT / "sample_configs").glob("*.yaml")):
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
        if "model" not in tree:  # it comes from a checkpoint
            continue
        for container, key in list(places(tree)):
            if key in ("repeat", "epochs"):
                container[key] = 1
            elif key in ("blocks", "encoder", "decoder"):
                container[key] = container[key][:2]
        data = tree.get("data", {})
        if data.get("type") in ("cifar10", "docstrings", "stdlib"):
            tree["data"] = {
                "cifar10": {"type": "mnist", "root": "data"},
                "docstrings": {
                    "type": "pair_table",
                    "train": ["pairs.csv"],
                    "source": "en",
                    "target": "de",
                    "tokenizer": {"type": "bytes"},
                },
                "stdlib": {"type": "text", "files": ["text/*.txt"], "context": 32},
            }[data["type"]]
        found.append(tree)
    model = {"type": "cnn", "layers": [{"type": "conv", "channels": 4, "kernel": 3},
     {"type": "adaptive_pool"}, {"type": "flatten"},
                                       {"type": "dense", "units": "classes"}]}  # fmt: skip
    for data in ({"type": "image_folder", "root": "images"},
     {"type": "parquet_images", "train": ["images.parquet"]},
                 {"type": "digits"}, {"type": "audio", "files": ["sounds"], "seconds": 0.1,
                  "rate": 8000}):  # fmt: skip
        found.append(
            {
                "model": model,
                "data": data,
                "task": {"type": "classification"},
                "train": {"steps": 2, "batch_size": 2},
            }
        )
    return found


class Specs:
    """Cases of mutated specs."""

    def __init__(self, folder: Path, every: int) -> None:
        self.folder = folder
        write_all(folder)
        self.trees = trees()[::every]
        self.texts = [yaml.safe_dump(tree, sort_keys=False) for tree in self.trees]
        from bigmodel_cli.catalog import schema

        self.seen = seen(self.trees)
        self.names = sorted({name for holder in _holders(schema()) for name in holder})

    def content(self, rng: random.Random) -> tuple[str, bytes]:
        """(kind of mutation, the file)."""
        index = rng.randrange(len(self.trees))
        kind = rng.choice(["tree", "tree", "tree", "lines", "bytes", "set"])
        if kind == "tree":
            changed = mutate_tree(rng, self.trees[index], self.trees, self.names)
            return kind, yaml.dump(
                changed, sort_keys=False, allow_unicode=rng.random() < 0.5
            ).encode("utf-8", "surrogatepass")
        if kind == "lines":
            return kind, mutate_lines(rng, self.texts[index]).encode("utf-8", "surrogatepass")
        if kind == "bytes":
            return kind, mutate_bytes(rng, self.texts[index].encode())
        return kind, self.texts[index].encode()

    def overrides(self, rng: random.Random, count: int) -> list[str]:
        """Some `--set`s: a path of some spec, perhaps misspelt, and any value."""
        words = []
        for _ in range(count):
            path, node = [], rng.choice(self.trees)
            while isinstance(node, dict | list) and node and (len(path) < 1 or rng.random() < 0.9):
                key = rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
                path.append(str(key))
                node = node[key]
            if rng.random() < 0.2:
                path[rng.randrange(len(path))] = rng.choice([*self.names, *WORDS, "0", "99", "-1"])
            given = (
                value(rng)
                if rng.random() < 0.6
                else rng.choice(self.seen.get(path[-1]) or [1, 2, 0.5])
            )
            text = given if isinstance(given, str) else json.dumps(given)
            words += [
                "--set",
                rng.choice([f"{'.'.join(path)}={text}"] * 9 + [".".join(path), f"={text}"]),
            ]
        return [word.replace("\0", "\\0") for word in words]  # no argument of a process holds it

    def case(self, seed: int) -> Trial:
        """The case of a seed."""
        rng = random.Random(seed)
        kind, content = self.content(rng)
        words = self.overrides(
            rng, rng.choice([1, 2, 3]) if kind == "set" else rng.choice([0, 0, 0, 1])
        )
        trains = rng.random() < 0.3
        (self.folder / "spec.yaml").write_bytes(content)

        def call() -> int:
            from bigmodel_cli.__main__ import run

            os.chdir(self.folder)
            status = run(
                ["pretrain", "spec.yaml", "--dry-run", "--json", "--device", "cpu", *words]
            )
            if status or not trains or not _is_small(Path("stream1").read_text(errors="replace")):
                return status
            try:
                return run(
                    [
                        "pretrain",
                        "spec.yaml",
                        "--device",
                        "cpu",
                        "--out",
                        "run",
                        *words,
                        *_two_steps(content, words),
                    ]
                )
            finally:
                shutil.rmtree("run", ignore_errors=True)

        return Trial(kind, call, (0, 2, 3, 4, 5, 6), _check)


def _holders(node: Any) -> Any:
    """The `properties` of a JSON Schema, at any depth."""
    for container, key in places(node):
        if key == "properties":
            yield container[key]


def _is_small(written: str) -> bool:
    plan = json.loads(written.strip().splitlines()[-1])
    return plan["memory_bytes"] < SMALL[0] and plan["flops_per_sample"] < SMALL[1]


def _two_steps(content: bytes, words: list[str]) -> list[str]:
    """Overrides that keep the training short and in this process, and leave all else as it is."""
    changes = ["train.steps=2", "train.epochs=null", "train.compile='off'", "train.trackers=[]"]
    if b"workers" in content or "workers" in str(words):
        changes.append("data.workers=0")
    return [word for change in changes for word in ("--set", change)]


def _check(status: int, written: str) -> str:
    """Whether a message of status 2 has a place, and statuses 4 and 6 a reason."""
    lines = [line for line in written.splitlines() if not line.startswith(("device:", "warning:"))]
    if status == 4 and "checkpoint" not in written:
        return "status 4 without a checkpoint"
    if status != 2:
        return ""
    if any(PLACED.match(line) for line in lines) or any(OPTION.match(line) for line in lines):
        return ""
    return "status 2 without a place"


def campaign(folder: Path, every: int = 1) -> Campaign:
    """The data and specs, and a first run of each, so that what it imports and caches is there
    before the cases.

    `every` takes one spec of so many.
    """
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    os.chdir(folder)
    specs = Specs(folder, every)
    from bigmodel_cli.__main__ import run

    with quiet(folder / "start.log"):
        for text in specs.texts:
            Path("spec.yaml").write_text(text)
            run(["pretrain", "spec.yaml", "--dry-run", "--device", "cpu"])
    return Campaign(specs.case, folder)


if __name__ == "__main__":
    main(str(__doc__), 20_000, campaign)
