"""Mutated checkpoints of three families through eval, predict, finetune and --resume.

    python tests/measure/fuzz_checkpoints.py [--count 5000] [--first SEED] [--seeds SEED ...]

A decoder, a CNN and an encoder-decoder with a tokenizer are trained for two steps; then files of
their checkpoints are changed as bytes, as trees (JSON, YAML, headers of tensors) and in their place
(folders, pipes, links), signed anew or not. What must show: status 4, or 0 where the change does no
harm; 2 and 3 only where the spec or facts.json now ask for something else; 6 only where weights are
not finite; at most 5 s and 500 MiB. An audit hook notes every file, program, socket and module that
a run of the undamaged checkpoint does not open too.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
import traceback
from pathlib import Path
from typing import Any

import yaml
from damage import KINDS, TENSORS, sign
from fuzzing import Campaign, Trial, main, quiet
from samples_of_data import write_all
from watching import DECLARED, Watch

TRAIN = {
    "steps": 2,
    "batch_size": 4,
    "precision": "fp32",
    "memory_format": "contiguous",
    "compile": "off",
    "validate_every": 2,
}
BLOCK = {"mixer": {"type": "attention", "num_heads": 2}, "ffn": {"type": "gelu"}}
FAMILIES: dict[str, Any] = {
    "decoder": {
        "model": {"type": "decoder", "dim": 16, "position": {"type": "learned"},
         "blocks": [{**BLOCK, "repeat": 2}]},
        "data": {"type": "text", "files": ["text/a.txt"], "context": 16,
         "tokenizer": {"type": "characters"}},
        "task": {"type": "causal_lm", "sample_tokens": 4, "sample_prompt": "a"},
    },
    "cnn": {
        "model": {"type": "cnn", "layers": [{"type": "conv", "channels": 4, "norm": "batch"},
         {"type": "adaptive_pool"},
                                            {"type": "flatten"}, {"type": "dense",
                                             "units": "classes"}]},
        "data": {"type": "image_folder", "root": "images", "size": 12},
        "task": {"type": "classification"},
    },
    "seq2seq": {
        "model": {"type": "seq2seq", "dim": 16, "encoder": [BLOCK],
         "decoder": [{**BLOCK, "cross": {"num_heads": 2}}]},
        "data": {"type": "pairs", "source": ["data/multi30k/train.en.gz"],
         "target": ["data/multi30k/train.de.gz"], "context": 24,
                 "val_source": ["data/multi30k/val.en.gz"],
                 "val_target": ["data/multi30k/val.de.gz"],
                 "tokenizer": {"type": "bpe", "vocab_size": 300}},
        "task": {"type": "seq2seq", "beams": 2, "max_tokens": 4},
    },
}  # fmt: skip
INPUTS = {
    "decoder": ["all you", "--max-tokens", "3"],
    "cnn": ["images/a/0.png"],
    "seq2seq": ["a small model"],
}
RUN = Path("case/run")


def operations(family: str) -> dict[str, list[str]]:
    """The commands that read a checkpoint, by name."""
    on = ["--device", "cpu"]
    return {
        "eval": ["eval", str(RUN), *on],
        "predict": ["predict", str(RUN), *INPUTS[family], *on],
        "finetune": [
            "finetune",
            "--from",
            str(RUN),
            "--set",
            "train.steps=1",
            "--out",
            "case/tuned",
            *on,
        ],
        "resume": [
            "pretrain",
            f"{family}.yaml",
            "--resume",
            "--out",
            str(RUN),
            "--set",
            "train.steps=3",
            *on,
        ],
    }


class Checkpoints:
    """Cases of mutated checkpoints."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.known: list[str] = []
        self.watch: Watch | None = None
        write_all(folder)
        outside = folder.parent / "outside"
        outside.mkdir(exist_ok=True)
        (outside / "secret.json").write_text("{}")
        for family, spec in FAMILIES.items():
            (folder / f"{family}.yaml").write_text(
                yaml.safe_dump({**spec, "train": TRAIN}, sort_keys=False)
            )
        self.trees: list[Any] = []

    def train(self) -> None:
        """Train a checkpoint of each family."""
        from bigmodel_cli.__main__ import run

        for family in FAMILIES:
            assert (
                run(["pretrain", f"{family}.yaml", "--out", f"base/{family}", "--device", "cpu"])
                == 0
            ), family
        for path in sorted(self.folder.glob("base/*/checkpoints/step*/*.json")):
            self.trees.append(json.loads(path.read_bytes()))

    def clean(self) -> None:
        """Run what the cases run on checkpoints as they are: it must succeed, and what is opened
        then is known.
        """
        from bigmodel_cli.__main__ import run

        self.watch = self.watcher()
        for family in FAMILIES:
            for name, words in operations(family).items():
                for _ in range(2):  # the second as it is with a full cache
                    self.copied(family)
                    self.watch.begin()
                    assert run(words) == 0, (family, name)
                    self.known += self.watch.found()

    def watcher(self) -> Watch:
        """Allowed are the case, the data and the cache."""
        return Watch([self.folder], [self.folder.parent / "outside"], self.known)

    def copied(self, family: str) -> Path:
        """A copy of a run in the case's folder; the checkpoint's folder."""
        shutil.rmtree("case", ignore_errors=True)
        shutil.copytree(f"base/{family}", RUN, symlinks=True)
        return next(RUN.glob("checkpoints/step-*"))

    def case(self, seed: int) -> Trial:
        """The case of a seed."""
        rng = random.Random(seed)
        family = rng.choice(list(FAMILIES))
        operation, words = rng.choice(list(operations(family).items()))
        checkpoint = self.copied(family)
        name = rng.choice(sorted(p.name for p in checkpoint.iterdir()))
        kind, change = rng.choice(KINDS)
        allowed = {0, 4}
        if name in ("spec.yaml", "facts.json"):
            allowed |= {2, 3}
        if name in TENSORS:
            allowed |= {6}
        if operation == "resume" and kind == "place":
            allowed |= {5}  # a folder where the link `last` is to be written
        change(rng, checkpoint / name, self.trees)
        signed = rng.random() < 0.75 and name != "manifest.json"
        if signed:
            sign(checkpoint)

        def call() -> int:
            from bigmodel_cli.__main__ import run

            self.watch = self.watch or self.watcher()
            self.watch.begin()
            try:
                return run(words)
            finally:
                self.watch.on = False

        def check(status: int, written: str) -> str:
            assert self.watch is not None
            found = self.watch.found()
            return (
                f"{found[0]}{f' and {len(found) - 1} more' if len(found) > 1 else ''}"
                if found
                else ""
            )

        return Trial(
            (
                f"{family} {operation} {name.partition('.')[0]} {kind}"
                if DETAILED
                else f"{operation} {kind}"
            ),
            call,
            sorted(allowed),
            check,
        )


DETAILED = "--seeds" in sys.argv


def watched(checkpoints: Checkpoints) -> Campaign:
    """The cases, once a process of its own has found out what clean runs open: an audit hook stays
    in a process.
    """
    folder = checkpoints.folder
    os.chdir(folder)
    pid = os.fork()
    if pid == 0:
        try:
            with quiet(folder / "clean.log"):
                checkpoints.clean()
            (folder / "known.json").write_text(json.dumps(sorted(set(checkpoints.known))))
        except BaseException:
            (folder / "clean.log").write_text(traceback.format_exc())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert (folder / "known.json").exists(), (folder / "clean.log").read_text()
    checkpoints.known = json.loads((folder / "known.json").read_text())
    return Campaign(checkpoints.case, folder)


def campaign(folder: Path) -> Campaign:
    """Train the checkpoints, and make cases of them."""
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    os.chdir(folder)
    for name in sorted(DECLARED):
        __import__(name)
    checkpoints = Checkpoints(folder)
    with quiet(folder / "start.log"):
        checkpoints.train()
    return watched(checkpoints)


if __name__ == "__main__":
    main(str(__doc__), 5_000, campaign)
