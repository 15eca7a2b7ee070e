"""Prepared data is verified when it is opened: damaged folders are noticed and built anew, for
every kind of data.
"""

from __future__ import annotations

import errno
import gzip
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tones import recording

from bigmodel_cli.data import SOURCES, hashes, open_data
from bigmodel_cli.data import cache as cache_room
from bigmodel_cli.data.base import DataSet
from bigmodel_cli.data.cache import build_once, cached_json
from bigmodel_cli.errors import DataError, ResourceError

KINDS = ("text", "bpe", "table", "pairs", "image_folder", "audio")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
    return tmp_path / "own" / "bigmodel"


def write_sources(turn: int = 0) -> None:
    """A small source of every kind; `turn` gives others of the same names and sizes."""
    words = ["abc ", "bca ", "cab "]
    Path("t.txt").write_text("".join(words[(i + turn) % 3] for i in range(300)))
    Path("t.tsv").write_text(
        "".join(f"{words[(i + turn) % 3]}\t{'xy'[i % 2]}\n" for i in range(40))
    )
    Path("s.en").write_text("".join(f"{words[(i + turn) % 3]}\n" for i in range(40)))
    Path("s.de").write_text("".join(f"{words[(i + 1) % 3]}\n" for i in range(40)))
    for label in range(2):
        Path(f"pictures/{label}").mkdir(parents=True, exist_ok=True)
        Path(f"sounds/{label}").mkdir(parents=True, exist_ok=True)
        for index in range(3):
            value = 40 * index + 100 * (label ^ turn)
            Image.fromarray(np.full((5, 7, 3), value, np.uint8)).save(
                f"pictures/{label}/{index}.bmp"
            )
            Path(f"sounds/{label}/{index}.wav").write_bytes(
                recording(300 + 100 * index + 500 * (label ^ turn))
            )


OPTIONS: dict[str, dict[str, Any]] = {
    "text": {"type": "text", "files": ["t.txt"], "context": 8, "tokenizer": {"type": "characters"}},
    "bpe": {
        "type": "text",
        "files": ["t.txt"],
        "context": 8,
        "tokenizer": {"type": "bpe", "vocab_size": 260},
    },
    "table": {
        "type": "table",
        "train": ["t.tsv"],
        "text": [0],
        "label": 1,
        "tokenizer": {"type": "bytes"},
    },
    "pairs": {
        "type": "pairs",
        "source": ["s.en"],
        "target": ["s.de"],
        "tokenizer": {"type": "bytes"},
    },
    "image_folder": {"type": "image_folder", "root": "pictures"},
    "audio": {"type": "audio", "files": ["sounds"], "rate": 8000, "mels": 8, "seconds": 0.1},
}


def opened(kind: str) -> DataSet:
    options = OPTIONS[kind]
    return open_data(
        SOURCES[options["type"]].model_validate(options), base=Path(), say=lambda text: None
    )


def content(data: DataSet) -> dict[str, torch.Tensor]:
    split = data.split("train")
    return split.batch(np.arange(len(split)), 0, 0, False)


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


def change_second_bytes(path: Path) -> None:
    values = bytearray(path.read_bytes())
    values[::2] = bytes(b ^ 1 for b in values[::2])
    path.write_bytes(values)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "second bytes": change_second_bytes,
    "one bit": lambda path: path.write_bytes(
        path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 4])
    ),
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: os.truncate(path, 0),
    "gone": lambda path: path.unlink(),
    "folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_is_noticed_and_built_anew(
    kind: str, damage: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_sources()
    first = opened(kind)
    wanted = content(first)
    folders = [f for f in home.glob("*/*") if f.is_dir()]
    assert len(folders) >= 1 + (kind in ("text", "table", "pairs")) + (kind == "bpe") * 2
    for number, folder in enumerate(folders):
        for file in sorted(folder.iterdir()):
            DAMAGES[damage](file)
            capsys.readouterr()
            again = opened(kind)
            said = capsys.readouterr().err
            assert said.startswith(f"warning: {folder}: damaged ("), (number, file, said)
            assert said.endswith("building it again\n")
            assert said.count("\n") == 1
            assert again.fingerprint == first.fingerprint
            assert same(content(again), wanted)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("put_back", [False, True])
def test_replaced_data_is_other_data(kind: str, put_back: bool, home: Path, tmp_path: Path) -> None:
    write_sources()
    first = opened(kind)
    times = {p: p.stat() for p in tmp_path.rglob("*") if p.is_file() and home not in p.parents}
    write_sources(turn=1)
    assert {p: p.stat().st_size for p in times} == {p: s.st_size for p, s in times.items()}
    for path, stat in times.items():
        if put_back:
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    second = opened(kind)
    assert second.fingerprint != first.fingerprint
    assert not same(content(second), content(first))
    shutil.rmtree(home)
    assert same(content(opened(kind)), content(second))
    write_sources()
    assert opened(kind).fingerprint == first.fingerprint
    assert same(content(opened(kind)), content(first))


def test_a_large_folder_is_read_once_and_again_after_a_change(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cache_room, "SMALL", 100)
    read: list[str] = []
    honest = hashes._read
    monkeypatch.setattr(
        hashes, "_read", lambda path, shown: (read.append(path.name), honest(path, shown))[1]
    )
    place = home / "kind" / "key"
    place.parent.mkdir(parents=True)

    def build(draft: Path) -> None:
        (draft / "a.bin").write_bytes(bytes(range(250)))

    build_once(place, build)
    import time

    time.sleep(0.1)
    build_once(place, build)  # what was written a moment ago may have to be read once more
    read.clear()
    build_once(place, build)
    assert read == []
    before = (place / "a.bin").stat()
    change_second_bytes(place / "a.bin")
    os.utime(place / "a.bin", ns=(before.st_atime_ns, before.st_mtime_ns))
    build_once(place, build)
    assert "a.bin was changed" in capsys.readouterr().err
    assert (place / "a.bin").read_bytes() == bytes(range(250))
    (place / "b.bin").write_bytes(b"something else")
    build_once(place, build)
    assert "does not hold the files that it should" in capsys.readouterr().err
    assert not (place / "b.bin").exists()


def test_everything_is_on_the_disk_before_it_has_its_name(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = home / "kind" / "key"
    place.parent.mkdir(parents=True)
    synced: list[str] = []
    sync, rename = os.fsync, os.rename

    def record(descriptor: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    monkeypatch.setattr(os, "rename", lambda a, b: (synced.append("renamed"), rename(a, b)))
    build_once(place, lambda draft: [(draft / n).write_text(n) for n in ("x", "y")] and None)
    assert synced == ["x", "y", "manifest.json", ".key.draft", "renamed", "kind"]

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        ResourceError, match="the cache cannot be written: No space left on device; make room there"
    ):
        build_once(home / "kind" / "other", lambda draft: (draft / "x").write_text("x") and None)
    assert sorted(p.name for p in (home / "kind").iterdir() if not p.name.endswith(".lock")) == [
        "key"
    ]


def test_values_are_kept_by_their_description(home: Path) -> None:
    made: list[int] = []

    def make(value: int) -> Any:
        return cached_json(
            "kind", {"of": value}, lambda: made.append(value) or {"twice": [2 * value, "é\ud800"]}
        )

    assert [make(1), make(2), make(1)] == [
        {"twice": [2, "é\ud800"]},
        {"twice": [4, "é\ud800"]},
        {"twice": [2, "é\ud800"]},
    ]
    assert made == [1, 2]
    manifest = next((home / "kind").glob("*/manifest.json"))
    values = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({name: [size, "0" * 64] for name, (size, _) in values.items()}))
    make(1), make(2)
    assert len(made) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_data_that_changes_while_it_is_prepared_is_refused(
    kind: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_sources()
    changed: list[bool] = []
    make = Path.mkdir

    def meddle(self: Path, *arguments: Any, **options: Any) -> None:
        make(self, *arguments, **options)
        if self.name.endswith(".draft") and not changed:
            changed.append(True)
            write_sources(turn=1)

    monkeypatch.setattr(Path, "mkdir", meddle)
    with pytest.raises(DataError, match="changed while"):
        opened(kind)
    monkeypatch.setattr(Path, "mkdir", make)
    second = content(opened(kind))
    shutil.rmtree(home)
    assert same(content(opened(kind)), second)


def leave_copies() -> None:
    """Copies of every file and class in hidden folders, and `._name` beside each file."""
    for root in map(Path, ("all", "table", "pairs", "pictures", "sounds")):
        for path in list(root.rglob("*")):
            if path.is_file():
                shutil.copyfile(path, path.with_name("._" + path.name))
        whole = list(root.iterdir())
        for hidden in (".ipynb_checkpoints", "__MACOSX"):
            for path in whole:
                (root / hidden).mkdir(exist_ok=True)
                (shutil.copytree if path.is_dir() else shutil.copyfile)(
                    path, root / hidden / path.name
                )


def test_endings_in_any_case_and_editors_backup_files_are_treated_alike_by_every_data_source(
    home: Path,
) -> None:
    """Endings in any case are read as what they are; copies that editors and systems leave behind
    change nothing.
    """
    write_sources()
    names = {
        "text": "T.JSONL.GZ",
        "table": "B.TSV",
        "pairs": "B.TXT",
        "audio": "0.WAV",
        "image_folder": "0.BMP",
    }
    Path("all").mkdir()
    with gzip.open(Path("all") / names["text"], "wt") as file:
        file.writelines(
            json.dumps({"text": row}) + "\n" for row in Path("t.txt").read_text().split()
        )
    for kind, place in (("table", "t.tsv"), ("pairs", "s.en")):
        Path(kind).mkdir()
        Path(place).rename(Path(kind) / names[kind])
    for root in ("pictures", "sounds"):
        for path in list(Path(root).rglob("0.*")):
            path.rename(path.with_suffix(path.suffix.upper()))
    changed: dict[str, dict[str, Any]] = {
        "text": {"files": ["all"]},
        "table": {"train": ["table"]},
        "pairs": {"source": ["pairs"]},
        "audio": {},
        "image_folder": {},
    }
    counts = {}
    for turn in range(2):
        for kind, change in changed.items():
            options = {**OPTIONS[kind], "val_fraction": 0, **change}
            data = open_data(
                SOURCES[options["type"]].model_validate(options), base=Path(), say=print
            )
            counts[kind, turn] = (len(data.split("train")), data.fingerprint)
        if turn == 0:
            leave_copies()
    assert all(counts[kind, 0] == counts[kind, 1] for kind in changed), counts
    assert [counts[kind, 0][0] for kind in ("table", "pairs", "audio", "image_folder")] == [
        40,
        40,
        6,
        6,
    ]
