"""Mutated data in every form that is read: opening, survey, first batches; and mutated inputs of
predict.

    python tests/measure/fuzz_data.py [--count 10000] [--first SEED] [--seeds SEED ...]

A small sample of a form of data is written, one of its files is changed (bytes, lines, what is
inside of a packed or checked container, its name, what stands in its place), and the data is opened
and the first batch of each split is made. What must show: only statuses 0, 2 and 3, no traceback,
at most 5 s and 500 MiB.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import shutil
import struct
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from fuzz_checkpoints import BLOCK, TRAIN, Checkpoints
from fuzzing import Campaign, Trial, main, quiet
from mutators import WORDS, mutate_bytes, mutate_lines, mutate_tree
from samples_of_data import archive, pictures, sounds, texts, wav

BYTES, CHARACTERS, BPE = (
    {"type": "bytes"},
    {"type": "characters"},
    {"type": "bpe", "vocab_size": 300},
)
BROUGHT = {"type": "file", "path": "case/tokenizer.json"}
LABELLED: dict[str, Any] = {
    "type": "table",
    "text": ["text"],
    "label": "label",
    "context": 16,
    "tokenizer": BYTES,
}
PAIRED: dict[str, Any] = {
    "type": "pair_table",
    "source": "en",
    "target": "de",
    "context": 64,
    "tokenizer": BYTES,
}
LETTERS: dict[str, Any] = {"type": "audio", "rate": 8000, "mels": 16, "units": "characters"}
PATTERN = r"(?P<label>\d)_(?P<speaker>\w+)_(?P<index>\d+)\.wav$"
FORMS: dict[str, dict[str, Any]] = {
    "text": {"type": "text", "files": ["text/a.txt"], "context": 16, "tokenizer": CHARACTERS},
    "text.gz": {"type": "text", "files": ["text/b.txt.gz"], "context": 16, "tokenizer": BYTES},
    "text.jsonl": {"type": "text", "files": ["text/c.jsonl"], "context": 16, "tokenizer": BPE},
    "tokenizer.json": {"type": "text", "files": ["text/a.txt"], "context": 16,
     "tokenizer": BROUGHT},
    "table.csv": {**LABELLED, "train": ["table.csv"]},
    "table.tsv": {**LABELLED, "train": ["table.tsv"]},
    "table.tsv.gz": {**LABELLED, "train": ["table.tsv.gz"]},
    "table.jsonl": {**LABELLED, "train": ["table.jsonl"]},
    "table.parquet": {**LABELLED, "train": ["table.parquet"]},
    "table without header": {**LABELLED, "text": [0], "label": 1, "train": ["data/sst2/train.tsv"],
     "val": ["data/sst2/dev.tsv"]},
    "pairs": {"type": "pairs", "source": ["data/multi30k/train.en.gz"],
     "target": ["data/multi30k/train.de.gz"],
              "context": 64, "tokenizer": BYTES},
    "pair table.csv": {**PAIRED, "train": ["pairs.csv"]},
    "pair table.jsonl": {**PAIRED, "train": ["table.jsonl"]},
    "pair table.parquet": {**PAIRED, "train": ["table.parquet"]},
    "images": {"type": "image_folder", "root": "images"},
    "images of one size": {"type": "image_folder", "root": "images", "size": 16, "on_bad": "skip"},
    "images.parquet": {"type": "parquet_images", "train": ["images.parquet"]},
    "idx": {"type": "mnist", "root": "data"},
    "recordings": {"type": "audio", "files": ["sounds"], "rate": 8000, "mels": 16, "seconds": 0.1},
    "recordings.tar": {"type": "audio", "files": ["sounds.tar"], "pattern": PATTERN, "rate": 8000,
     "mels": 16, "seconds": 0.1},
    "recordings.tar.gz": {"type": "audio", "files": ["data/fsdd/recordings.tar.gz"],
     "pattern": PATTERN, "rate": 8000,
                          "mels": 16, "on_bad": "skip"},
    "transcripts": {**LETTERS, "files": ["sounds"], "pattern": "wav$",
     "transcripts": ["transcripts.tsv"]},
}  # fmt: skip
MODELS: dict[str, Any] = {
    "labeller": {"model": {"type": "encoder", "dim": 16, "blocks": [BLOCK],
     "position": {"type": "learned"}, "pool": "mean"},
                 "data": FORMS["table.csv"], "task": {"type": "classification"}},
    "listener": {"model": {"type": "cnn", "layers": [{"type": "adaptive_pool"}, {"type": "flatten"},
                                                     {"type": "dense", "units": "classes"}]},
                 "data": FORMS["recordings.tar"], "task": {"type": "classification"}},
}  # fmt: skip
READERS = {
    "decoder": "text/a.txt",
    "seq2seq": "text/a.txt",
    "labeller": "text/a.txt",
    "cnn": "images/",
    "listener": "sounds/",
}


class Data:
    """Cases of mutated data."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = {**texts(), **pictures(), **sounds()}
        self.models = Checkpoints(folder)  # which writes the samples, for the models that predict

    def train(self) -> None:
        """Train the models that predict."""
        from bigmodel_cli.__main__ import run

        self.models.train()
        for name, spec in MODELS.items():
            Path(f"{name}.yaml").write_text(yaml.safe_dump({**spec, "train": TRAIN}))
            assert (
                run(["pretrain", f"{name}.yaml", "--out", f"base/{name}", "--device", "cpu"]) == 0
            ), name
        self.files["tokenizer.json"] = next(
            Path("base/seq2seq").glob("checkpoints/step*/tokenizer.json")
        ).read_bytes()

    def case(self, seed: int) -> Trial:
        """The case of a seed."""
        rng = random.Random(seed)
        shutil.rmtree("case", ignore_errors=True)
        Path("case").mkdir()
        return self.prediction(rng) if rng.random() < 0.2 else self.opening(rng)

    def written(self, names: Sequence[str], changed: str, rng: random.Random) -> None:
        """Write the files of a form into the case's folder, one of them changed."""
        for name in names:
            path = Path("case") / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(
                self.files[name] if name != changed else mutate_file(rng, name, self.files[name])
            )
        if rng.random() < 0.08:
            replace(rng, Path("case") / changed)

    def opening(self, rng: random.Random) -> Trial:
        """Open a form of data."""
        form = rng.choice(list(FORMS))
        values = FORMS[form]
        needed = [text for text in _strings(values) if not text.startswith("case/")]
        names = [
            n
            for n in self.files
            if any(
                n == text or n.startswith((f"{text}/images/", f"{text}/MNIST/", f"{text}/"))
                for text in needed
            )
        ]
        if form == "idx":
            names = [n for n in names if "MNIST" in n]
        if form == "tokenizer.json":
            names = ["text/a.txt", "tokenizer.json"]
        self.written(
            names, "tokenizer.json" if form == "tokenizer.json" else rng.choice(names), rng
        )
        return Trial(form, lambda: opened(values), (0, 2, 3))

    def prediction(self, rng: random.Random) -> Trial:
        """Predict from changed files, arguments or lines."""
        model = rng.choice(list(READERS))
        source = READERS[model]
        command = [
            "predict",
            f"base/{model}",
            "--device",
            "cpu",
            *(["--max-tokens", "3"] if model in ("decoder", "seq2seq") else []),
        ]
        given, lines = [], b""
        if source.endswith("/"):
            names = [rng.choice([n for n in self.files if n.startswith(source)]) for _ in range(2)]
            self.written(names, names[0], rng)
            given = [f"case/{n}" for n in names] + (
                [rng.choice(WORDS)] if rng.random() < 0.3 else []
            )
        elif rng.random() < 0.5:
            given = [mutate_lines(rng, "a small model learns"), rng.choice(WORDS)]
        else:
            lines = mutate_bytes(rng, self.files[source][:300])
        given = [g.replace("\0", "") for g in given]  # no argument holds it
        given = [g for g in given if not g.startswith("-")]

        def call() -> int:
            from bigmodel_cli.__main__ import run

            sys.stdin = io.TextIOWrapper(io.BytesIO(lines))
            return run([*command, *given])

        return Trial(f"predict {model}", call, (0, 2, 3))


def opened(values: dict[str, Any]) -> int:
    """Open the data of the case's folder, make the first batches; the exit status."""
    import numpy as np

    from bigmodel_cli.console import say
    from bigmodel_cli.data import SOURCES, open_data, record
    from bigmodel_cli.errors import BigmodelError

    try:
        options = SOURCES[values["type"]].model_validate(values)
        data = open_data(options, base=Path("case"), say=say)
        for name in data.splits:
            split = data.split(name)
            split.batch(np.arange(min(3, len(split))), 0, 0, name == "train")
            split.batch(np.array([len(split) - 1]), 1, 1, False)
        record(data, "causal_lm", {})
        data.info.to_json()
    except BigmodelError as error:
        say(f"bigmodel: {error}")
        return error.status
    return 0


def mutate_file(rng: random.Random, name: str, content: bytes) -> bytes:
    """A changed file: its bytes, its lines, or what is inside of its container."""
    packed = name.endswith(".gz") and not name.endswith(".tar.gz")
    kind = rng.randrange(4)
    if packed and kind:
        return gzip.compress(
            mutate_file(rng, name.removesuffix(".gz"), gzip.decompress(content)), mtime=0
        )
    if name.endswith((".tar", ".tar.gz")) and kind == 1:
        return _hostile_archive(rng)
    if name.endswith(".tar.gz") and kind == 2:
        return gzip.compress(mutate_bytes(rng, gzip.decompress(content)), mtime=0)
    if name.endswith(".png") and kind:
        return _mutated_png(rng, content)
    if name == "tokenizer.json" and kind:
        return json.dumps(
            mutate_tree(
                rng, json.loads(content), [json.loads(content)], ["type", "model", "vocab"]
            ),
            default=str,
        ).encode()
    if name.endswith(".jsonl") and kind >= 2:
        return _mutated_rows(rng, content)
    if name.endswith((".txt", ".csv", ".tsv", ".jsonl")) and kind:
        text = mutate_lines(rng, content.decode())
        return text.encode(rng.choice(["utf-8"] * 6 + ["utf-16", "utf-8-sig"]), "surrogatepass")
    return mutate_bytes(rng, content)


def _mutated_rows(rng: random.Random, content: bytes) -> bytes:
    """Rows of JSON, one of them with other values."""
    rows = content.decode().splitlines()
    at = rng.randrange(len(rows))
    tree = json.loads(rows[at])
    rows[at] = json.dumps(
        mutate_tree(rng, tree, [tree, {"text": {"text": 1}}], ["text", "label", "en"]),
        default=str,
        ensure_ascii=rng.random() < 0.5,
    )
    return ("\n".join(rows) + "\n").encode("utf-8", "surrogatepass")


def _mutated_png(rng: random.Random, content: bytes) -> bytes:
    """A PNG of which a chunk is changed, with a right checksum."""
    chunks, at = [], 8
    while at < len(content):
        (length,) = struct.unpack(">I", content[at : at + 4])
        chunks.append([content[at + 4 : at + 8], content[at + 8 : at + 8 + length]])
        at += 12 + length
    chunk = rng.choice(chunks)
    if chunk[0] == b"IDAT" and rng.random() < 0.5:
        chunk[1] = zlib.compress(mutate_bytes(rng, zlib.decompress(chunk[1])))
    else:
        chunk[1] = mutate_bytes(rng, chunk[1])
    if rng.random() < 0.2:
        chunks.insert(
            1,
            [
                rng.choice([b"tEXt", b"zTXt", b"iCCP", b"eXIf", b"acTL", b"tRNS", b"PLTE"]),
                rng.randbytes(rng.choice([0, 4, 100])),
            ],
        )
    packed = [
        struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks
    ]
    return content[:8] + b"".join(packed)


def _hostile_archive(rng: random.Random) -> bytes:
    """An archive with odd names and odd recordings."""
    names = [
        "../0_theo_1.wav",
        "/0_theo_2.wav",
        "0_theo_3.wav",
        "a/0_nic_4.wav",
        "1_nic_5.wav",
        f"{rng.choice(WORDS)}_theo_6.wav"[:90],
    ]
    members = {
        n.replace("\0", "").encode("utf-8", "replace").decode(): (
            mutate_bytes(rng, wav(440)) if rng.random() < 0.4 else wav(440)
        )
        for n in names
    }
    return archive(members, rng.choice(["w", "w:gz", "w:bz2", "w:xz"]))


def replace(rng: random.Random, path: Path) -> None:
    """Something else in a file's place."""
    kind = rng.randrange(6)
    content = path.read_bytes()
    path.unlink()
    if kind == 0:
        path.mkdir()
    elif kind == 1:
        os.mkfifo(path)
    elif kind == 2:
        path.symlink_to(path.name)
    elif kind == 3:
        path.symlink_to(rng.choice(["no/such", ".", "a" * 250]))
    elif kind == 4:
        name = rng.choice(
            [
                w
                for w in WORDS
                if 0 < len(w) < 60 and "/" not in w and "\0" not in w and w not in (".", "..")
            ]
        )
        path.with_name(
            os.fsdecode(name.encode("utf-8", "surrogatepass")) + path.suffix
        ).write_bytes(content)


def _strings(value: Any) -> list[str]:
    """The texts in plain values."""
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for one in inner for text in _strings(one)]


def prepared(folder: Path) -> Data:
    """The data and the models, each form opened once."""
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    os.chdir(folder)
    data = Data(folder)
    with quiet(folder / "start.log"):
        data.train()
        for form, values in FORMS.items():
            shutil.rmtree("case", ignore_errors=True)
            for name, content in data.files.items():
                path = Path("case") / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            assert opened(values) == 0, f"{form}: {(folder / 'start.log').read_text()[-500:]}"
    return data


def campaign(folder: Path) -> Campaign:
    """The cases of mutated data."""
    return Campaign(prepared(folder).case, folder)


if __name__ == "__main__":
    main(str(__doc__), 10_000, campaign)
