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
from typing import IO

from bigmodel_cli.data.shards.records import (
    Form,
    Records,
    Value,
    is_among,
    read_ranges,
    text_of,
)
from bigmodel_cli.errors import DataError

TEXTS = {"txt", "text", "transcript"}
NUMBERS = {"cls", "cls2", "class", "count", "index", "inx", "id"}
OBJECTS = {"json", "jsn"}
PICKLED = {"pyd", "pickle", "pkl", "pth", "ten", "tb", "mp", "msg", "npy", "npz"}
"""Endings whose files may run code when they are read, or are of no kind that is used here."""
BLOCK = 512
KIND = slice(156, 157)
NAMES = {tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE}
"""Kinds of headers that say something of the next file that is used here."""
ABOUT = NAMES | {tarfile.GNUTYPE_LONGLINK, tarfile.XGLTYPE}
"""Kinds of headers that are not files."""
WITHOUT = {
    *(tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE),
    *(tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE),
}
"""Kinds behind whose headers nothing follows, whatever size they say."""
MOST_NAME = 1 << 20
"""Most bytes of a long name or of extended headers."""


@dataclass(frozen=True)
class Tar(Form):
    """The fields are the files' endings; `wanted` are those that are used, () for all."""

    wanted: tuple[str, ...] = ()

    def of_fields(self, names: tuple[str, ...]) -> Tar:
        return Tar(names)

    def open(self, path: Path, name: str) -> Records:
        return _Samples(self.wanted, path, name)


class _Samples(Records):
    def __init__(self, wanted: tuple[str, ...], path: Path, name: str) -> None:
        self.wanted, self.path, self.name = wanted, path, name
        self.found = _members(path, name)

    def __len__(self) -> int:
        return len(self.found)

    def sample(self, number: int) -> Mapping[str, Value]:
        key, files = self.found[number]
        where = f"{self.name}: {key}"
        known = {e: place for e, place in files.items() if e.rpartition(".")[2] not in PICKLED}
        wanted = [ending for ending in known if is_among(ending, self.wanted)]
        found = read_ranges(self.path, self.name, [known[ending] for ending in wanted])
        row: dict[str, Value] = dict.fromkeys(known)
        for ending, data in zip(wanted, found, strict=True):
            row[ending] = _decoded(data, ending, where)
        return row


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

    Raises `DataError` for what is not a tar file, is cut, or has files with holes left out.
    """
    samples: list[tuple[str, dict[str, tuple[int, int]]]] = []
    size, place = path.stat().st_size, 0
    said: dict[str, str] = {}  # of the next file, by the headers before it
    with open(path, "rb") as file:
        while place < size:
            file.seek(place)
            head = file.read(BLOCK)
            if not head.strip(b"\0"):
                break
            info = _header(head, name, place)
            own = said if head[KIND] not in ABOUT else {}
            length = _length(own, info, name)
            start = place + BLOCK
            if start + length > size:
                raise DataError(
                    f"{name}: {own.get('path', info.name)}: it ends before this file does; fetch it"
                    " again"
                )
            place = start + -(-length // BLOCK) * BLOCK
            if head[KIND] in ABOUT:
                if head[KIND] in NAMES:
                    said |= _said(file, length, head[KIND], name)
                continue
            if head[KIND] == tarfile.GNUTYPE_SPARSE or any(
                k.startswith("GNU.sparse") for k in said
            ):
                raise DataError(
                    f"{name}: {own.get('path', info.name)}: a sparse file, whose holes are left"
                    " out; write it without --sparse"
                )
            if info.isreg():
                _add(samples, own.get("path", info.name), (start, start + length), name)
            said = {}
    if not samples:
        raise DataError(f"{name}: no sample in it; its files are named SAMPLE.ENDING")
    return samples


def _header(head: bytes, name: str, place: int) -> tarfile.TarInfo:
    try:
        return tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise DataError(
            f"{name}: not a plain tar file, or damaged, at byte {place:,} ({error});"
            " unpack a .tar.gz to .tar, or write it again"
        ) from None


def _length(said: Mapping[str, str], info: tarfile.TarInfo, name: str) -> int:
    """The bytes of a file, which extended headers may say instead of its own."""
    if info.type in WITHOUT:
        return 0
    text = said.get("size", "")
    length = int(text) if text.isascii() and text.isdigit() else info.size
    if (text and not text.isdigit()) or length < 0:
        raise DataError(f"{name}: {info.name}: its size is {text or length}; write it again")
    return length


def _said(file: IO[bytes], size: int, kind: bytes, name: str) -> dict[str, str]:
    """What a header says of the next file: GNU's long name, or the records of an extended one,
    each its length in bytes, a key and a value.
    """
    if size > MOST_NAME:
        raise DataError(f"{name}: a name of {size:,} bytes; write it anew")
    data = file.read(size)
    if kind == tarfile.GNUTYPE_LONGNAME:
        return {"path": data.rstrip(b"\0").decode("utf-8", "surrogateescape")}
    found = {}
    while data.strip(b"\0"):
        digits, _, _ = data.partition(b" ")
        length = int(digits) if digits.isdigit() and len(digits) < 10 else 0
        record, data = data[len(digits) + 1 : length], data[length:]
        key, equals, value = record.partition(b"=")
        if not equals or not value.endswith(b"\n"):
            raise DataError(f"{name}: an extended header that is damaged; write it anew")
        found[key.decode("utf-8", "replace")] = value[:-1].decode("utf-8", "surrogateescape")
    return found


def _add(
    samples: list[tuple[str, dict[str, tuple[int, int]]]],
    member: str,
    place: tuple[int, int],
    name: str,
) -> None:
    """Add a file to its sample; those without an ending, or a name before it, are passed over."""
    folder, slash, file = member.rpartition("/")
    stem, dot, ending = file.partition(".")
    if not dot or not stem:
        return
    key = f"{folder}{slash}{stem}"
    if not samples or samples[-1][0] != key:
        samples.append((key, {}))
    ending = ending.lower()
    if ending in samples[-1][1]:
        raise DataError(f"{name}: {key}.{ending} stands twice in one sample; write it anew")
    samples[-1][1][ending] = place
