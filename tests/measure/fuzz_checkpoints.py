"""Mutated checkpoints of three families through eval, predict, finetune and --resume.

    python tests/measure/fuzz_checkpoints.py [--count 5000] [--first SEED] [--seeds SEED ...]

A decoder, a CNN and an encoder-decoder with a tokenizer are trained for two steps; then files of their checkpoints are changed as
bytes, as trees (JSON, YAML, headers of tensors) and in their place (folders, pipes, links), signed anew or not. What must show:
status 4, or 0 where the change does no harm; 2 and 3 only where the spec or the facts now ask for something else; 6 only where
weights are not finite; at most 5 s and 500 MiB. An audit hook notes every file, program, socket and module that a run of the
undamaged checkpoint does not open too.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from fuzzing import Campaign, Trial, main
from mutators import mutate_bytes, mutate_lines, mutate_tree
from samples_of_data import write_all
from watching import DECLARED, Watch

TRAIN = {"steps": 2, "batch_size": 4, "precision": "fp32", "memory_format": "contiguous", "compile": "off", "validate_every": 2}
BLOCK = {"mixer": {"type": "attention", "num_heads": 2}, "ffn": {"type": "gelu"}}
FAMILIES: dict[str, Any] = {
    "decoder": {
        "model": {"type": "decoder", "dim": 16, "position": {"type": "learned"}, "blocks": [{**BLOCK, "repeat": 2}]},
        "data": {"type": "text", "files": ["text/a.txt"], "context": 16, "tokenizer": {"type": "characters"}},
        "task": {"type": "causal_lm", "sample_tokens": 4, "sample_prompt": "a"},
    },
    "cnn": {
        "model": {"type": "cnn", "layers": [{"type": "conv", "channels": 4, "norm": "batch"}, {"type": "adaptive_pool"},
                                            {"type": "flatten"}, {"type": "dense", "units": "classes"}]},
        "data": {"type": "image_folder", "root": "images", "size": 12},
        "task": {"type": "classification"},
    },
    "seq2seq": {
        "model": {"type": "seq2seq", "dim": 16, "encoder": [BLOCK], "decoder": [{**BLOCK, "cross": {"num_heads": 2}}]},
        "data": {"type": "pairs", "source": ["data/multi30k/train.en.gz"], "target": ["data/multi30k/train.de.gz"], "context": 24,
                 "val_source": ["data/multi30k/val.en.gz"], "val_target": ["data/multi30k/val.de.gz"],
                 "tokenizer": {"type": "bpe", "vocab_size": 300}},
        "task": {"type": "seq2seq", "beams": 2, "max_tokens": 4},
    },
}  # fmt: skip
INPUTS = {"decoder": ["all you", "--max-tokens", "3"], "cnn": ["images/a/0.png"], "seq2seq": ["a small model"]}
TENSORS = ("model.safetensors", "train_state.safetensors")
DTYPES = {"F32": "float32", "F64": "float64", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32", "I16": "int16",
          "I8": "int8", "U8": "uint8", "BOOL": "bool"}  # fmt: skip
RUN = Path("case/run")


def operations(family: str) -> dict[str, list[str]]:
    """The commands that read a checkpoint, by name."""
    on = ["--device", "cpu"]
    return {
        "eval": ["eval", str(RUN), *on],
        "predict": ["predict", str(RUN), *INPUTS[family], *on],
        "finetune": ["finetune", "--from", str(RUN), "--set", "train.steps=1", "--out", "case/tuned", *on],
        "resume": ["pretrain", f"{family}.yaml", "--resume", "--out", str(RUN), "--set", "train.steps=3", *on],
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
            (folder / f"{family}.yaml").write_text(yaml.safe_dump({**spec, "train": TRAIN}, sort_keys=False))
        self.trees: list[Any] = []

    def train(self) -> None:
        """Train a checkpoint of each family."""
        from bigmodel_cli.__main__ import run

        for family in FAMILIES:
            assert run(["pretrain", f"{family}.yaml", "--out", f"base/{family}", "--device", "cpu"]) == 0, family
        for path in sorted(self.folder.glob("base/*/checkpoints/step*/*.json")):
            self.trees.append(json.loads(path.read_bytes()))

    def clean(self) -> None:
        """Run what the cases run on checkpoints as they are: it must succeed, and what is opened then is known."""
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
            return f"{found[0]}{f' and {len(found) - 1} more' if len(found) > 1 else ''}" if found else ""

        return Trial(f"{family} {operation} {name.partition('.')[0]} {kind}" if DETAILED else f"{operation} {kind}", call, sorted(allowed), check)


DETAILED = "--seeds" in sys.argv


def sign(checkpoint: Path) -> None:
    """The manifest as the files are now: their sizes, hashes, and what the headers of tensors say."""
    if not os.path.isfile(checkpoint / "manifest.json"):  # the folder was replaced
        return
    manifest = json.loads((checkpoint / "manifest.json").read_bytes())
    for name in manifest["files"]:
        path = checkpoint / name
        if not os.path.isfile(path):
            continue
        content = path.read_bytes()
        manifest["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        if name in TENSORS:
            try:
                header, _ = split(content)
                described = {
                    n: {"shape": e["shape"], "dtype": DTYPES.get(e["dtype"], e["dtype"])} for n, e in header.items() if n != "__metadata__"
                }
                manifest["tensors"][name] = described
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                pass
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


def split(content: bytes) -> tuple[dict[str, Any], bytes]:
    """(header, bytes of the tensors) of a .safetensors file."""
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def as_bytes(rng: random.Random, path: Path, trees: list[Any]) -> None:
    """Change the bytes."""
    path.write_bytes(mutate_bytes(rng, path.read_bytes()))


def as_lines(rng: random.Random, path: Path, trees: list[Any]) -> None:
    """Change whole lines and words."""
    path.write_bytes(mutate_lines(rng, path.read_bytes().decode("latin-1")).encode("utf-8", "surrogatepass"))


def as_tree(rng: random.Random, path: Path, trees: list[Any]) -> None:
    """Change the values of JSON, YAML and headers; other files' bytes."""
    content = path.read_bytes()
    if path.suffix == ".json":
        path.write_text(_json(mutate_tree(rng, json.loads(content), trees, ["files", "format", "step", "vocab_size"])))
    elif path.suffix == ".yaml":
        path.write_bytes(_yaml(mutate_tree(rng, yaml.safe_load(content), trees, ["checkpoint", "max_len", "window", "workers"])))
    elif path.suffix == ".safetensors":
        header, data = split(content)
        text = _json(mutate_tree(rng, header, [header, {"a": {"dtype": "F64"}}, {"a": {"dtype": "BOOL", "shape": []}}], ["dtype"])).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    else:
        as_bytes(rng, path, trees)


def as_bomb(rng: random.Random, path: Path, trees: list[Any]) -> None:
    """Something small that becomes large, or is nested or long beyond measure."""
    depth = rng.choice([200, 5000, 100_000])
    digits = "9" * rng.choice([400, 5000])
    bombs = [
        "[" * depth,
        "[" * depth + "]" * depth,
        '{"a":' * depth + "1" + "}" * depth,
        "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(f"{k}: &{k} [*{j},*{j},*{j},*{j},*{j},*{j},*{j},*{j},*{j}]\n" for j, k in zip("abcdefghi", "bcdefghij", strict=True)),
        "&a [*a]",
        "a: &a {b: *a}",
        f'{{"a": {digits}}}',
        f"a: {digits}",
        "[" + "1," * 2_000_000 + "1]",
        "{" + ",".join(f'"k{n}": 0' for n in range(200_000)) + "}",
        "!!python/object/apply:os.system ['touch case/executed']",
        "",
        "\0" * 5000,
        " " * 3_000_000,
    ]  # fmt: skip
    text = rng.choice(bombs).encode()
    if path.suffix == ".safetensors":
        text = len(text).to_bytes(8, "little") + text
    path.write_bytes(text)


def in_its_place(rng: random.Random, path: Path, trees: list[Any]) -> None:
    """Something else where the file was: a folder, a pipe, a link, nothing; or where `last` or the checkpoint was."""
    other = rng.choice([path, path, path, path.parent.parent / "last", path.parent.parent / "best", path.parent])
    if other.is_symlink() or not other.is_dir():
        other.unlink(missing_ok=True)
    else:
        shutil.rmtree(other)
    kind = rng.randrange(7)
    if kind == 0:
        other.mkdir()
    elif kind == 1:
        os.mkfifo(other)
    elif kind == 2:
        other.symlink_to(Path("../../../../../outside/secret.json") if rng.random() < 0.5 else Path.cwd().parent / "outside")
    elif kind == 3:
        other.symlink_to(other.name)  # to itself
    elif kind == 4:
        other.symlink_to(rng.choice(["..", ".", "/", "no/such", "a" * 300]) if rng.random() < 0.7 else Path.cwd() / "base" / "cnn")
    elif kind == 5:
        other.write_bytes(rng.choice([b"", b"x" * 100]))


def _json(value: Any) -> str:
    return json.dumps(value, default=str)


def _yaml(value: Any) -> bytes:
    return yaml.dump(value, sort_keys=False).encode("utf-8", "surrogatepass")


Change = Callable[[random.Random, Path, list[Any]], None]
KINDS: list[tuple[str, Change]] = [
    ("bytes", as_bytes), ("bytes", as_bytes), ("lines", as_lines), ("tree", as_tree), ("tree", as_tree), ("tree", as_tree),
    ("tree", as_tree), ("bomb", as_bomb), ("place", in_its_place),
]  # fmt: skip


def campaign(folder: Path) -> Campaign:
    """Train the checkpoints, find out in a process of its own what clean runs open, and warm up."""
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    os.chdir(folder)
    for name in sorted(DECLARED):
        __import__(name)
    checkpoints = Checkpoints(folder)
    streams = sys.stdout, sys.stderr
    with open(folder / "start.log", "w") as log:
        sys.stdout = sys.stderr = log
        try:
            checkpoints.train()
        finally:
            sys.stdout, sys.stderr = streams
    pid = os.fork()
    if pid == 0:
        try:
            with open(folder / "clean.log", "w") as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
                sys.stdout = sys.stderr = log
                checkpoints.clean()
                (folder / "known.json").write_text(json.dumps(sorted(set(checkpoints.known))))
        except BaseException:
            import traceback

            (folder / "clean.log").write_text(traceback.format_exc())
            os.kill(os.getpid(), signal.SIGKILL)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert status == 0, (folder / "clean.log").read_text()
    checkpoints.known = json.loads((folder / "known.json").read_text())
    return Campaign(checkpoints.case, folder)


if __name__ == "__main__":
    main(str(__doc__), 5_000, campaign)
