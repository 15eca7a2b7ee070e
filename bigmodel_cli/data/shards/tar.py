"""WebDataset: tar files in which the files of one sample stand together, under one name with
different endings (`0001.jpg`, `0001.cls`).

Only the headers of plain tar files are read to find the samples. Nothing is unpacked to the disk,
so that names such as `../x` are names alone.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bigmodel_cli.data.shards.records import Form, Records, Value, read_range, text_of
from bigmodel_cli.errors import DataError

TEXTS = {"txt", "text", "transcript"}
NUMBERS = {"cls", "cls2", "class", "count", "index", "inx", "id"}
OBJECTS = {"json", "jsn"}
PICKLED = {"pyd", "pickle", "pkl", "pth", "ten", "tb", "mp", "msg", "npy", "npz"}
"""Endings whose files may run code when they are read, or are of no kind that is used here."""
BLOCK = 512
KIND = slice(156, 157)
NAMES = {tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE}
"""Kinds of headers that give the next file's name."""
MOST_NAME = 1 << 20
"""Most bytes of a long name or of extended headers."""


@dataclass(frozen=True)
class Tar(Form):
    """The fields are the files' endings."""

    def open(self, path: Path, name: str) -> Records:
        return _Samples(path, name)


class _Samples(Records):
    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name
        self.found = _members(path, name)

    def __len__(self) -> int:
        return len(self.found)

    def sample(self, number: int) -> Mapping[str, Value]:
        key, files = self.found[number]
        where = f"{self.name}: {key}"
        return {
            ending: _decoded(read_range(self.path, self.name, start, end), ending, where)
            for ending, (start, end) in files.items()
            if ending.rpartition(".")[2] not in PICKLED
        }


def _decoded(data: bytes, ending: str, where: str) -> Value:
    """What a file holds by its last ending; bytes where that says nothing."""
    kind = ending.rpartition(".")[2]
    try:
        if kind in TEXTS:
            return text_of(data, where)
        if kind in NUMBERS:
            return int(text_of(data[:400], where))
        if kind in OBJECTS:
            return json.loads(text_of(data, where))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}.{ending}: cannot be read: {error}") from None
    return data


def _members(path: Path, name: str) -> list[tuple[str, dict[str, tuple[int, int]]]]:
    """(name, the bytes of each file by its ending) of each sample.

    Raises `DataError` for what is not a tar file, or is cut.
    """
    samples: list[tuple[str, dict[str, tuple[int, int]]]] = []
    size, place = path.stat().st_size, 0
    long_name: str | None = None
    with open(path, "rb") as file:
        while place + BLOCK <= size:
            file.seek(place)
            head = file.read(BLOCK)
            if not head.strip(b"\0"):
                break
            try:
                info = tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
            except tarfile.HeaderError as error:
                raise DataError(
                    f"{name}: not a plain tar file, or damaged, at byte {place:,} ({error});"
                    " unpack a .tar.gz to .tar, or write it again"
                ) from None
            start = place + BLOCK
            if info.size < 0 or start + info.size > size:
                raise DataError(
                    f"{name}: {info.name}: it ends before this file does; fetch it again"
                )
            place = start + -(-info.size // BLOCK) * BLOCK
            if head[KIND] in NAMES:
                if info.size > MOST_NAME:
                    raise DataError(f"{name}: a name of {info.size:,} bytes; write it anew")
                long_name = _long_name(file.read(info.size), head[KIND]) or long_name
                continue
            if info.isreg():
                _add(samples, long_name or info.name, (start, start + info.size), name)
            long_name = None
    if not samples:
        raise DataError(f"{name}: no sample in it; its files are named SAMPLE.ENDING")
    return samples


def _long_name(data: bytes, kind: bytes) -> str | None:
    """A name that a header has no room for: GNU's, or "path" of extended headers."""
    if kind == tarfile.GNUTYPE_LONGNAME:
        return data.rstrip(b"\0").decode("utf-8", "surrogateescape")
    for line in data.split(b"\n"):
        key, _, value = line.partition(b" ")[2].partition(b"=")
        if key == b"path":
            return value.decode("utf-8", "surrogateescape")
    return None


def _add(
    samples: list[tuple[str, dict[str, tuple[int, int]]]],
    member: str,
    place: tuple[int, int],
    name: str,
) -> None:
    """Add a file to its sample; hidden ones, and those without an ending, are passed over."""
    folder, slash, file = member.rpartition("/")
    stem, dot, ending = file.partition(".")
    if not dot or not stem or stem.startswith("__"):
        return
    key = f"{folder}{slash}{stem}"
    if not samples or samples[-1][0] != key:
        samples.append((key, {}))
    ending = ending.lower()
    if ending in samples[-1][1]:
        raise DataError(f"{name}: {key}.{ending} stands twice in one sample; write it anew")
    samples[-1][1][ending] = place
