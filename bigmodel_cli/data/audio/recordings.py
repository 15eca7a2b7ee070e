"""Recordings in files, folders and archives: decoded once, and cached as one memory map of
samples.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from bigmodel_cli.console import counted
from bigmodel_cli.data.audio.sound import ENDINGS, Samples, decode, notes_said
from bigmodel_cli.data.base import Say
from bigmodel_cli.data.cache import cached_folder, key_of
from bigmodel_cli.data.files import Found, find_named, read_file
from bigmodel_cli.data.folders import passed_over
from bigmodel_cli.data.hashes import content_hashes
from bigmodel_cli.data.order import Ints
from bigmodel_cli.data.trained_on import Hashes, as_hashes, hash_of
from bigmodel_cli.errors import DataError
from bigmodel_cli.progress import advance, reading

FORMAT = 3  # of the cached samples
TEXTS = (".txt", ".tsv")
"""Endings of transcripts, which usually lie beside the recordings (`data.transcripts`)."""
ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
MOST_BYTES = 1 << 30
"""Limit for a member of an archive: a larger one is refused before it is unpacked."""
Wanted = tuple[Callable[[dict[str, str]], bool], Any]


@dataclass(frozen=True)
class Recordings:
    """All samples (N,) int16, one recording after the other; the start, length and name of each.

    A recording's samples are its integers times its own of the `scales` (recordings,).
    """

    samples: Any
    scales: Samples
    starts: Ints
    lengths: Ints
    names: tuple[str, ...]
    groups: tuple[dict[str, str], ...]
    items: Hashes  # (N,) of each one's encoded content
    digest: str


def open_recordings(
    files: list[str],
    pattern: str,
    rate: int,
    skip_bad: bool,
    base: Path,
    say: Say,
    wanted: Wanted | None = None,
) -> Recordings:
    """The recordings whose names match the pattern, decoded to `rate`.

    Raises `DataError` naming what cannot be read.

    `wanted` says from the pattern's groups whether a recording is needed, and how that is decided,
    as plain values.
    """
    found = find_sound(files, base)

    def takes(name: str) -> bool:
        match = re.search(pattern, name)
        return wanted is None or match is None or wanted[0](_groups(match))

    found = [(p, name) for p, name in found if p.name.lower().endswith(ARCHIVES) or takes(name)]
    if not found:
        raise DataError(f"data.files: no recording is in the split ({wanted[1] if wanted else ''})")
    digest = content_digest(found)
    description = [FORMAT, digest, pattern, rate, skip_bad, wanted[1] if wanted else None]
    key = key_of(description)

    def build(draft: Path) -> None:
        with reading("decoding recordings", [path for path, _ in found]):
            _write(draft, found, pattern, rate, skip_bad, takes)
        if content_digest(found) != digest:
            raise DataError(
                "data.files: recordings changed while they were read; start again when nothing"
                " writes to them"
            )

    folder = cached_folder("audio", key, f"decoding recordings to {rate:,} Hz", say, build)
    index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    for sentence in _reports(index):
        say(sentence)
    lengths = np.asarray(index["lengths"], np.int64)
    matches = [re.search(pattern, name) for name in index["names"]]
    return Recordings(
        # mode c: torch wants memory that it may write to
        samples=np.memmap(folder / "samples.bin", dtype=np.int16, mode="c"),
        scales=np.asarray(index["scales"], np.float32),
        starts=np.cumsum(lengths) - lengths,
        lengths=lengths,
        names=tuple(index["names"]),
        groups=tuple(_groups(m) for m in matches if m is not None),
        items=np.load(folder / "items.npy"),
        digest=key,
    )


def _reports(index: dict[str, Any]) -> list[str]:
    """What is worth saying about the recordings in the cache."""
    reports = notes_said(index["notes"])
    if index["others"]:
        reports.insert(
            0,
            f"{counted(index['others'], 'recording is', 'recordings are')} left out: data.pattern"
            " is not found in the name",
        )
    if index["bad"]:
        reports.insert(
            0,
            f"warning: skipped {counted(len(index['bad']), 'recording')} that cannot be decoded,"
            " the first:"
            f" {index['bad'][0]}",
        )
    return reports


def _groups(match: re.Match[str]) -> dict[str, str]:
    return {k: v or "" for k, v in match.groupdict().items()}


def find_sound(names: list[str], base: Path) -> list[Found]:
    """The recordings and archives that paths, globs and folders name, each with its name.

    Raises `DataError` for a name that finds nothing, and for what is neither.
    """
    matches = find_named(names, base, "data.files", ENDINGS + ARCHIVES, TEXTS)
    for path, _ in matches:
        if not path.name.lower().endswith(ENDINGS + ARCHIVES):
            raise DataError(
                f"{path}: not a recording or an archive; they end in"
                f" {', '.join(ENDINGS + ARCHIVES)}"
            )
    return matches


def content_digest(found: list[Found]) -> str:
    """SHA-256 of names and contents, in order."""
    hashes = content_hashes([path for path, _ in found])
    named = [[name, sha] for (_, name), sha in zip(found, hashes, strict=True)]
    return hashlib.sha256(json.dumps(named).encode()).hexdigest()


def contents(found: list[Found]) -> Iterator[tuple[str, str, bytes]]:
    """(name, where it is, encoded content) of each recording, in order; archives are read in place,
    as a stream.
    """
    for path, name in found:
        if path.name.lower().endswith(ARCHIVES):
            for member, content in _members(path):
                yield member, f"{path}: {member}", content
        else:
            content = read_file(path)
            yield name, str(path), content
            advance(len(content))


def _members(path: Path) -> Iterator[tuple[str, bytes]]:
    """The recordings in an archive.

    Links, devices, names that leave the archive (/ or ..) and hidden files are ignored.
    """
    try:
        with open(path, "rb") as opened, tarfile.open(fileobj=opened, mode="r|*") as archive:
            place = 0
            for member in archive:
                before, place = place, opened.tell()
                advance(place - before)
                name = PurePosixPath(member.name)
                inside = not name.is_absolute() and ".." not in name.parts
                sound = member.isreg() and inside and name.name.lower().endswith(ENDINGS)
                if not sound or any(passed_over(part) for part in name.parts):
                    continue
                if member.size > MOST_BYTES:
                    raise DataError(
                        f"{path}: {name}: {member.size:,} bytes, more than {MOST_BYTES:,}; cut it"
                        " into pieces"
                    )
                file = archive.extractfile(member)
                assert file is not None
                yield str(name), file.read()
    except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"{path}: cannot be read as an archive: {error}; fetch it again") from None


def _write(
    draft: Path,
    found: list[Found],
    pattern: str,
    rate: int,
    skip_bad: bool,
    takes: Callable[[str], bool],
) -> None:
    """Write samples.bin, items.npy and index.json (names, lengths, scales, notes, what was skipped
    or does not match).
    """
    listed = ("names", "lengths", "scales", "notes", "bad")
    index: dict[str, list[Any]] = {name: [] for name in listed}
    others: list[str] = []
    items: list[int] = []
    with open(draft / "samples.bin", "wb") as file:
        for name, place, content in contents(found):
            if re.search(pattern, name) is None:
                others.append(name)
                continue
            if not takes(name):
                continue
            try:
                wave = decode(content, place, rate)
            except DataError as error:
                if not skip_bad:
                    raise
                index["bad"].append(str(error))
                continue
            file.write(wave.values.tobytes())
            items.append(hash_of(content))
            for column, value in zip(listed, (name, len(wave.values), wave.scale), strict=False):
                index[column].append(value)
            index["notes"] += [(note, place) for note in wave.notes]
    if not items:
        raise DataError(_nothing(found, pattern, index["bad"], others))
    np.save(draft / "items.npy", as_hashes(items))
    (draft / "index.json").write_text(
        json.dumps({**index, "others": len(others)}), encoding="utf-8"
    )


def _nothing(found: list[Found], pattern: str, bad: list[str], others: list[str]) -> str:
    if bad:
        return f"none of {len(bad)} recordings can be decoded, the first: {bad[0]}"
    if others:
        return (
            f"data.pattern: {pattern!r} is found in none of {len(others):,} names; the first is"
            f" {others[0]}"
        )
    return f"{found[0][0]}: no recordings in it; they end in {', '.join(ENDINGS)}"
