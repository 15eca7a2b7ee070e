"""What a source names: the shards of a folder, of files, or at URLs."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from bigmodel_cli.data.files import expand, find_files, read_file
from bigmodel_cli.data.hashes import content_hashes
from bigmodel_cli.data.shards.elsewhere import listed
from bigmodel_cli.data.shards.fetching import is_url, joined, look, read
from bigmodel_cli.data.shards.litdata import LitData, names_of
from bigmodel_cli.data.shards.mds import MDS
from bigmodel_cli.data.shards.records import Form, Shard
from bigmodel_cli.data.shards.rows import JSONLines, Parquet, PlainText
from bigmodel_cli.data.shards.tar import Tar
from bigmodel_cli.data.shards.tokens import megatron, packed
from bigmodel_cli.data.text.tokenizer import Tokenizer
from bigmodel_cli.data.text.tokenizer_files import ASSET, read_tokenizer
from bigmodel_cli.errors import DataError, MissingData

INDEX = "index.json"
PACKED = "bigmodel-shards"
FORMS: dict[str, Form] = {
    ".jsonl": JSONLines(),
    ".jsonl.gz": JSONLines("gz"),
    ".jsonl.zst": JSONLines("zstd"),
    ".parquet": Parquet(),
    ".tar": Tar(),
    ".txt": PlainText(),
}
"""The forms of files without an index, by their endings."""
ENDINGS = (*FORMS, ".idx")
MOST_NAMES = 1_000_000


def find_shards(names: Iterable[str], base: Path, option: str) -> list[Shard]:
    """The shards of paths, globs, folders and URLs, in order.

    Raises `DataError` where nothing is found, or an index is damaged.
    """
    found: list[Shard] = []
    for name in names:
        found += _of_url(name, option) if is_url(name) else _of_path(name, base, option)
    return found


def _of_path(name: str, base: Path, option: str) -> list[Shard]:
    if name.startswith("file://"):
        name = name.removeprefix("file://")
    path = expand(name, base, option)
    if path.name == INDEX:
        path = path.parent
    if (path / INDEX).is_file():
        return _indexed(str(path), read_file(path / INDEX))
    if path.name.endswith(".bin"):
        name = name.removesuffix(".bin") + ".idx"
    files = find_files([name], base, option, ENDINGS)
    own = [str(file) for file in files if not file.name.endswith(".idx")]
    hashes = content_hashes([Path(file) for file in own])
    shards = {
        file: _plain(file, os.path.getsize(file), sha)
        for file, sha in zip(own, hashes, strict=True)
    }
    return [
        shards[str(file)] if str(file) in shards else _megatron(str(file), read_file(file))
        for file in files
    ]


def _of_url(name: str, option: str) -> list[Shard]:
    if name.startswith("file://"):
        return _of_path(name, Path(), option)
    shards: list[Shard] = []
    for url in _expanded(name, option):
        if url.endswith((".idx", ".bin")):
            index = url.removesuffix(".bin").removesuffix(".idx") + ".idx"
            shards.append(_megatron(index, read(index)))
        elif _form(url) is not None:
            shards.append(_remote(url))
        else:
            shards += _of_folder(url.removesuffix(INDEX).rstrip("/"), option)
    return shards


def _of_folder(url: str, option: str) -> list[Shard]:
    try:
        return _indexed(url, read(joined(url, INDEX)))
    except MissingData:
        if url.startswith(("http:", "https:")):
            raise MissingData(
                f"{option}: {url}: there is no {INDEX} in it, and files cannot be listed over http;"
                " name them: .../part-{000..123}.jsonl.gz"
            ) from None
    names = [own for own in listed(url) if _form(own) is not None]
    if not names:
        raise MissingData(f"{option}: {url}: it holds no {INDEX}, and no {', '.join(FORMS)}")
    return [_remote(own) for own in names]


def _expanded(url: str, option: str) -> list[str]:
    """The URLs that {000..123} in one stands for."""
    match = re.search(r"\{(\d+)\.\.(\d+)\}", url)
    if match is None:
        return [url]
    first, last, width = int(match[1]), int(match[2]), len(match[1])
    if not 0 <= last - first < MOST_NAMES:
        raise DataError(f"{option}: {url}: {match[0]} does not count up, or too far")
    return [
        inner
        for number in range(first, last + 1)
        for inner in _expanded(
            f"{url[: match.start()]}{number:0{width}d}{url[match.end() :]}", option
        )
    ]


def _form(name: str) -> Form | None:
    """How a file without an index is read, by its ending; the longest one counts."""
    plain = name.lower().partition("?")[0]
    fitting = [ending for ending in FORMS if plain.endswith(ending)]
    return FORMS[max(fitting, key=len)] if fitting else None


def _plain(place: str, size: int, identity: str) -> Shard:
    form = _form(place)
    if form is None:
        raise DataError(f"{place}: its name does not end in one of {', '.join(ENDINGS)}")
    return Shard(place, size, form, identity)


def _remote(url: str) -> Shard:
    seen = look(url)
    if seen.size is None:
        raise DataError(f"{url}: its server does not say its size; name another place")
    return _plain(url, seen.size, f"{seen.size} {seen.version}")


def _megatron(index: str, content: bytes) -> Shard:
    place = index.removesuffix(".idx") + ".bin"
    size = look(place).size if is_url(place) else _size(place)
    if size is None:
        raise DataError(f"{place}: its server does not say its size; name another place")
    sha = hashlib.sha256(content).hexdigest()
    return Shard(place, size, megatron(content, size, index), f"{sha} {size}")


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError as error:
        raise MissingData(f"{path}: {error.strerror}; its index names it") from None


def _indexed(folder: str, content: bytes) -> list[Shard]:
    """The shards that an index.json lists."""
    name = joined(folder, INDEX) if is_url(folder) else str(Path(folder) / INDEX)
    try:
        index = json.loads(content)
        if not isinstance(index, dict):
            raise ValueError("not an object")
        sha = hashlib.sha256(content).hexdigest()
        if index.get("format") == PACKED:
            made_by = str(index["tokenizer"])
            return [_of_packed(folder, e, made_by, name) for e in _list(index, "shards")]
        if "shards" in index:
            return [_of_mds(folder, e, f"{sha} {i}") for i, e in enumerate(_list(index, "shards"))]
        if "chunks" in index:
            return _of_litdata(folder, index, sha, name)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{name}: not an index of MDS, litdata or packed shards, or damaged ({error})"
        ) from None
    raise DataError(f"{name}: not an index of MDS, litdata or packed shards")


def _list(index: dict[str, Any], key: str) -> Sequence[Any]:
    found = index[key]
    if not isinstance(found, list) or not found:
        raise ValueError(f"{key} is not a list of some")
    return found


def _of_packed(folder: str, entry: Any, made_by: str, name: str) -> Shard:
    form = packed(entry, name)
    sha = str(entry["sha256"])
    place, size = _beside(folder, str(entry["file"]), int(entry["bytes"]))
    identity, hashes = f"sha256 {sha}", (("sha256", sha),)
    return Shard(place, size, form, identity, hashes=hashes, made_by=made_by)


def _of_mds(folder: str, entry: Any, identity: str) -> Shard:
    if entry["format"] != "mds" or entry["version"] != 2:
        raise ValueError(f"a shard of format {entry['format']!r}, version {entry['version']!r}")
    columns = [tuple(entry[f"column_{part}"]) for part in ("names", "encodings", "sizes")]
    if len({len(column) for column in columns}) != 1 or not columns[0]:
        raise ValueError("columns that do not fit one another")
    if any(s is not None and (type(s) is not int or s < 0) for s in columns[2]):
        raise ValueError("sizes that are not numbers")
    form = MDS(tuple(map(str, columns[0])), tuple(map(str, columns[1])), columns[2])
    raw, packing = entry["raw_data"], entry.get("compression")
    stored = entry["zip_data"] if packing else raw
    place, size = _beside(folder, str(stored["basename"]), _whole(stored["bytes"]))
    hashes = tuple((str(k), str(v)) for k, v in (stored.get("hashes") or {}).items())
    known = next((f"{k} {v}" for k, v in hashes), f"{identity} {size}")
    by = {"zstd": "zstd", "gz": "gz", "bz2": "bz2"}.get(str(packing or "").split(":")[0])
    return Shard(
        *(place, size, form, known, _whole(entry["samples"]), hashes),
        packed_by=by if by is not None else str(packing or ""),
        unpacked=_whole(raw["bytes"]) if packing else 0,
    )


def _of_litdata(folder: str, index: dict[str, Any], sha: str, name: str) -> list[Shard]:
    config = index["config"]
    for option in ("compression", "encryption"):
        if config.get(option):
            raise DataError(f"{name}: {option} of litdata is not read; write the chunks without it")
    kinds = tuple(map(str, config["data_format"]))
    form = LitData(names_of(config["data_spec"], len(kinds), name), kinds)
    shards = []
    for number, entry in enumerate(_list(index, "chunks")):
        place, size = _beside(folder, str(entry["filename"]), None)
        shards.append(
            Shard(place, size, form, f"{sha} {number} {size}", _whole(entry["chunk_size"]))
        )
    return shards


def tokenizer_of(shards: Iterable[Shard]) -> Tokenizer | None:
    """The tokenizer that stands beside packed shards; None where none of them is packed.

    Raises `DataError` where they were packed with several.
    """
    folders = {os.path.dirname(s.place): s for s in shards if s.made_by}
    found = {}
    for folder, shard in folders.items():
        name = joined(folder, ASSET) if is_url(folder) else str(Path(folder) / ASSET)
        content = read(name) if is_url(folder) else read_file(Path(name))
        if hashlib.sha256(content).hexdigest() != shard.made_by:
            raise DataError(f"{name}: not the tokenizer that the shards were packed with")
        found[content] = name
    if len(found) > 1:
        first, other = list(found.values())[:2]
        raise DataError(f"{other}: not the tokenizer of {first}; pack both with one")
    return next((read_tokenizer(content, name) for content, name in found.items()), None)


def _whole(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise ValueError(f"{value!r} is not a size")
    return value


def _beside(folder: str, file: str, size: int | None) -> tuple[str, int]:
    """(place, size) of a file that an index names; never outside the index's folder."""
    parts = PurePosixPath(file).parts
    if not parts or ".." in parts or parts[0] == "/" or re.search(r"[\\\0:?#]", file):
        raise ValueError(f"the file {file!r} is not one beside it")
    if is_url(folder):
        place = joined(folder, file)
        found = size if size is not None else look(place).size
        if found is None:
            raise DataError(f"{place}: its server does not say its size; name another place")
        return place, found
    place = str(Path(folder, *parts))
    there = _size(place)
    if size is not None and there != size:
        raise DataError(
            f"{place}: {there:,} bytes, and its index says {size:,}; fetch or write it again"
        )
    return place, there
