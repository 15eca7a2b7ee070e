"""Index files: the shards of MDS, litdata and `bigmodel pack` that an index.json lists."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from bigmodel_cli.data.shards.fetching import is_url, joined, look
from bigmodel_cli.data.shards.litdata import LitData, names_of
from bigmodel_cli.data.shards.mds import MDS
from bigmodel_cli.data.shards.shard import Shard, size_of
from bigmodel_cli.data.shards.tokens import packed
from bigmodel_cli.errors import DataError

INDEX = "index.json"
PACKED = "bigmodel-shards"


def indexed(folder: str, content: bytes) -> list[Shard]:
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
    return Shard(
        *(place, size, form, known, _whole(entry["samples"]), hashes),
        packed_by=str(packing or "").split(":")[0],
        unpacked=_whole(raw["bytes"]) if packing else 0,
    )


def _of_litdata(folder: str, index: dict[str, Any], sha: str, name: str) -> list[Shard]:
    config = index["config"]
    packing = str(config.get("compression") or "").split(":")[0]
    inside = packing and config.get("compression_level") in ("batch", "sample")
    for option, is_given in (
        ("encryption", config.get("encryption")),
        ("compression inside of the chunks", inside or config.get("ipc_compression")),
    ):
        if is_given:
            raise DataError(
                f"{name}: {option} of litdata is not read; write them without it"
                " (compression_level='chunk' is read)"
            )
    kinds = tuple(map(str, config["data_format"]))
    loader = config.get("item_loader")  # older releases do not name it
    bare = len(kinds) == 1 and kinds[0].startswith("no_header")
    bare &= loader == "TokensLoader" if loader else _list(index, "chunks")[0].get("dim") is not None
    form = LitData(names_of(config["data_spec"], len(kinds), name), kinds, bare)
    shards = []
    for number, entry in enumerate(_list(index, "chunks")):
        place, size = _beside(folder, str(entry["filename"]), None)
        count = _whole(entry["chunk_size"])
        # older releases count the samples alone, and not the head before them
        most = _whole(entry["chunk_bytes"]) + 4 * (count + 2) if packing else 0
        known = f"{sha} {number} {size}"
        shards.append(
            Shard(place, size, form, known, count, packed_by=packing, unpacked=most, exact=False)
        )
    return shards


def _whole(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise ValueError(f"{value!r} is not a size")
    return value


def _beside(folder: str, file: str, size: int | None) -> tuple[str, int]:
    """(place, size) of a file that an index names; never outside the index's folder."""
    parts = PurePosixPath(file).parts
    if not parts or ".." in parts or parts[0] == "/" or re.search(r"[\\\0?#]", file):
        raise ValueError(f"the file {file!r} is not one beside it")
    if is_url(folder):
        place = joined(folder, file)
        found = size if size is not None else look(place).size
        if found is None:
            raise DataError(f"{place}: its server does not say its size; name another place")
        return place, found
    place = str(Path(folder, *parts))
    there = size_of(place)
    if size is not None and there != size:
        raise DataError(
            f"{place}: {there:,} bytes, and its index says {size:,}; fetch or write it again"
        )
    return place, there
