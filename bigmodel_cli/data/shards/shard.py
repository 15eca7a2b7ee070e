"""A shard: where it is, what an index says of it, and how it becomes a file that can be read."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bigmodel_cli.data.shards.cache import ShardCache, write
from bigmodel_cli.data.shards.checking import check
from bigmodel_cli.data.shards.fetching import fetch, is_url
from bigmodel_cli.data.shards.records import Form, opened, read_piece
from bigmodel_cli.data.shards.remote import Remote
from bigmodel_cli.errors import DataError, MissingData


@dataclass(frozen=True)
class Shard:
    """A file of samples: a path or URL, its bytes there, and what an index says of it.

    `packed_by` is the compression of the whole file, whose `unpacked` bytes are then read.
    """

    place: str
    size: int
    form: Form
    identity: str
    """What it holds, as a hash or, where no index gives one, as its size and version."""
    count: int | None = None
    hashes: tuple[tuple[str, str], ...] = ()
    packed_by: str = ""
    unpacked: int = 0
    exact: bool = True
    """Whether it has just as many bytes unpacked; else that many at most."""
    made_by: str = ""
    """The SHA-256 of the tokenizer beside packed shards."""
    version: str | None = None
    """What its server said of its content; a fetched file must be of the same."""

    @property
    def is_remote(self) -> bool:
        """Whether it must be fetched."""
        return is_url(self.place)

    @property
    def needs_cache(self) -> bool:
        """Whether it must be fetched or unpacked before it can be read."""
        return bool(self.packed_by) or self.is_remote

    @property
    def kept(self) -> int:
        """The bytes of the cache that it takes."""
        return self.unpacked if self.packed_by else self.size if self.is_remote else 0

    @property
    def beside(self) -> int:
        """The bytes that it takes besides, while it is unpacked."""
        return self.size if self.packed_by and self.is_remote else 0

    @property
    def key(self) -> str:
        """Its name in the cache."""
        packed = " unpacked" if self.packed_by else ""
        return f"{self.place} {self.identity} {self.version}{packed}"

    @contextlib.contextmanager
    def held(self, cache: ShardCache) -> Iterator[Path]:
        """Where it can be read, meanwhile: in place, or in the cache, to which it is fetched first.

        Raises `DataError`, of a file in place also where its hash is not that of its index.
        """
        if self.needs_cache:
            with cache.held(self.key, self.kept + self.beside, partial(self.make, cache)) as path:
                yield path
            return
        check(self.place, self.hashes)
        try:
            yield Path(self.place)
        except FileNotFoundError:
            raise self.removed() from None

    def prepare(self, cache: ShardCache) -> None:
        """Have it in the cache, where it needs that."""
        if self.needs_cache:
            cache.prepare(self.key, self.kept + self.beside, partial(self.make, cache))

    @contextlib.contextmanager
    def beside_another(self, cache: ShardCache) -> Iterator[Path]:
        """The same while another file is made of it, within what is reserved for that one: `kept`
        and `beside` bytes more.
        """
        if not self.needs_cache:
            with self.held(cache) as path:
                yield path
            return
        with cache.spare() as file:
            self.make(cache, file)
            yield Path(str(file.name))

    def make(self, cache: ShardCache, file: io.FileIO) -> None:
        """Fill an empty file with what can be read of it."""
        remote = Remote(self.place, self.size, self.version, self.hashes)
        if not self.packed_by:
            fetch(remote, file)
        elif self.is_remote:
            with cache.spare() as packed:
                fetch(remote, packed)
                self._unpack(Path(str(packed.name)), file)
        else:
            check(self.place, self.hashes)
            try:
                self._unpack(Path(self.place), file)
            except FileNotFoundError:
                raise self.removed() from None

    def _unpack(self, source: Path, file: io.FileIO) -> None:
        size = 0
        with opened(source, self.packed_by, self.place, self.unpacked) as unpacked:
            while size <= self.unpacked and (piece := read_piece(unpacked, self.place)):
                size += len(piece)
                write(file, piece[: max(0, self.unpacked - size + len(piece))])
        if size > self.unpacked or (self.exact and size < self.unpacked):
            raise DataError(
                f"{self.place}: unpacked it has not the {self.unpacked:,} bytes that its index"
                " says; write the shards anew"
            )

    def removed(self) -> DataError:
        """The error for a file that is there no more."""
        return DataError(f"{self.place}: it was removed; put it back")


def size_of(path: str) -> int:
    """The bytes of a file that an index names. Raises `MissingData`."""
    try:
        return os.stat(path).st_size
    except OSError as error:
        raise MissingData(f"{path}: {error.strerror}; its index names it") from None
