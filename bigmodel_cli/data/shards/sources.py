"""What a source names: the shards of a folder, of files, or at URLs."""

from __future__ import annotations

import functools
import hashlib
import os
import re
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from bigmodel_cli.console import say
from bigmodel_cli.data.cache import cached_json
from bigmodel_cli.data.files import expand, find_files, read_file
from bigmodel_cli.data.hashes import content_hashes
from bigmodel_cli.data.shards.elsewhere import listed
from bigmodel_cli.data.shards.fetching import is_url, joined, look, measured, read
from bigmodel_cli.data.shards.indexes import INDEX, indexed
from bigmodel_cli.data.shards.records import Form, read_range
from bigmodel_cli.data.shards.remote import Remote
from bigmodel_cli.data.shards.rows import JSONLines, Parquet, PlainText
from bigmodel_cli.data.shards.shard import Shard, size_of
from bigmodel_cli.data.shards.tar import Tar
from bigmodel_cli.data.shards.tokens import megatron
from bigmodel_cli.data.shards.web import is_exact
from bigmodel_cli.data.text.tokenizer import Tokenizer
from bigmodel_cli.data.text.tokenizer_files import ASSET, read_tokenizer
from bigmodel_cli.errors import DataError, MissingData

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
        return indexed(str(path), read_file(path / INDEX))
    if path.name.endswith(".bin"):
        name = name.removesuffix(".bin") + ".idx"
    files = find_files([name], base, option, ENDINGS)
    own = [str(file) for file in files if not file.name.endswith(".idx")]
    hashes = content_hashes([Path(file) for file in own])
    shards = {
        file: _plain(Remote(file, os.path.getsize(file)), sha)
        for file, sha in zip(own, hashes, strict=True)
    }
    return [shards[str(file)] if str(file) in shards else _megatron_file(file) for file in files]


def _of_url(name: str, option: str) -> list[Shard]:
    if name.startswith("file://"):
        return _of_path(name, Path(), option)
    shards: list[Shard] = []
    for url in _expanded(name, option):
        if url.endswith((".idx", ".bin")):
            shards.append(_megatron_url(url.removesuffix(".bin").removesuffix(".idx")))
        elif _form(url) is not None:
            shards.append(_remote(url))
        else:
            shards += _of_folder(url.removesuffix(INDEX).rstrip("/"), option)
    return shards


def _of_folder(url: str, option: str) -> list[Shard]:
    try:
        return indexed(url, read(joined(url, INDEX)))
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


def _plain(seen: Remote, identity: str) -> Shard:
    form = _form(seen.url)
    if form is None:
        raise DataError(f"{seen.url}: its name does not end in one of {', '.join(ENDINGS)}")
    size = seen.size or 0
    return Shard(seen.url, size, form, identity, hashes=seen.hashes, version=seen.version)


def _remote(url: str) -> Shard:
    seen = _looked(url)
    known = seen.hashes[0][1] if seen.hashes else f"{url} {seen.size} {seen.version}"
    return _plain(seen, known)


def _looked(url: str) -> Remote:
    """A file with its size, and what tells its content: its version, or where its server does not
    say both of them, its hash, for which it is read through.
    """
    seen = look(url)
    if seen.size is not None and is_exact(seen.version):
        return seen
    _tell_reading(url[: url.index("/", url.index("://") + 3)])
    if is_exact(seen.version):
        size, sha = cached_json("shard-sizes", [url, seen.version], lambda: measured(url))
    else:
        size, sha = measured(url)
    return Remote(url, size, seen.version, (("sha256", sha),))


@functools.cache
def _tell_reading(host: str) -> None:
    say(
        f"{host} does not say how large its files are, or what changes with them: each is read"
        " once, to know that"
    )


def _megatron_file(index: Path) -> Shard:
    place = str(index).removesuffix(".idx") + ".bin"
    size, (sha,) = size_of(place), content_hashes([index])
    read_part = partial(read_range, index, str(index))
    form = megatron(read_part, index.stat().st_size, size, str(index))
    return Shard(place, size, form, f"{sha} {size}")


def _megatron_url(stem: str) -> Shard:
    place, index = f"{stem}.bin", f"{stem}.idx"
    content, seen = read(index), _looked(place)
    size, sha = seen.size or 0, hashlib.sha256(content).hexdigest()
    form = megatron(lambda first, end: content[first:end], len(content), size, index)
    return Shard(place, size, form, f"{sha} {size}", hashes=seen.hashes, version=seen.version)


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
