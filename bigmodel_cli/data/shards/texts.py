"""The tokens of shards: of files that are tokens as they stand, and of texts, tokenized once each
and kept in the cache of shards.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bigmodel_cli.data.cache import cached_json
from bigmodel_cli.data.reading import checked_text, dotted, lookup
from bigmodel_cli.data.shards.cache import ShardCache, write
from bigmodel_cli.data.shards.near import in_order
from bigmodel_cli.data.shards.shard import Shard
from bigmodel_cli.data.shards.tokens import Flat
from bigmodel_cli.data.text.parts import token_dtype
from bigmodel_cli.data.text.tokenizer import Tokenizer
from bigmodel_cli.errors import DataError, did_you_mean
from bigmodel_cli.progress import progress

PIECE = 1 << 20  # tokens
FORMAT = 1  # of the tokens of texts, and of what is remembered of them


@dataclass(frozen=True)
class Reading:
    """How samples become tokens: the field, the tokenizer, and a name of both for the cache."""

    field: str
    tokenizer: Tokenizer | None
    key: str

    def documents(self, shard: Shard, path: Path) -> Iterator[Any]:
        """The tokens of each sample of a shard; a text ends with the end-of-text token.

        Raises `DataError` where the field is missing, or neither a text nor tokens.
        """
        form = shard.form.of_fields((self.field,))
        for number, row in enumerate(form.open(path, shard.place)):
            where = f"{shard.place}: sample {number}"
            try:
                value = lookup(row, self.field)
            except KeyError:
                raise DataError(
                    f"{where}: no field {self.field!r}; name it with data.field"
                    f"{did_you_mean(self.field, dotted(row))}"
                ) from None
            yield self.tokens(value, where)

    def all_tokens(self, shard: Shard, cache: ShardCache) -> Iterator[Any]:
        """The tokens of a shard, in pieces, whatever its form."""
        flat = shard.form.flat()
        if flat is None:
            with shard.held(cache) as path:
                yield from self.documents(shard, path)
            return
        tokens = Tokens(shard, flat)
        for first in range(0, flat.count, PIECE):
            (piece,) = tokens.take(cache, [(first, min(flat.count, first + PIECE))])
            yield piece.astype(np.int64)

    def tokens(self, value: Any, where: str) -> Any:
        """The tokens of a field's value."""
        if isinstance(value, str):
            if self.tokenizer is None:
                raise DataError(f"{where}: a text, and no data.tokenizer is given")
            end = self.tokenizer.end_of_text
            text = checked_text(value, where)
            found: Any = self.tokenizer.encode_array(text) if text else []
            return np.append(np.asarray(found, np.int64), [] if end is None else [end]).astype(
                np.int64
            )
        array = np.asarray(value) if isinstance(value, list | np.ndarray) else np.zeros((), "f4")
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise DataError(
                f"{where}: the field {self.field!r} is neither a text nor a row of tokens; name"
                " another with data.field"
            )
        return array.astype(np.int64)


@dataclass(frozen=True)
class Tokens:
    """The tokens of a shard: where they are, their type, and how many."""

    shard: Shard
    flat: Flat
    reading: Reading | None = None
    """How they are made of texts; None where the file itself is tokens."""
    documents: int = 0

    def take(self, cache: ShardCache, ranges: Sequence[tuple[int, int]]) -> list[Any]:
        """(last - first,) the tokens `first` to `last` of each range."""
        with self.held(cache) as path:
            return self.flat.take(path, self.shard.place, ranges)

    @property
    def kept(self) -> int:
        """The bytes that it takes in the cache."""
        if self.reading is None:
            return self.shard.kept
        return self.flat.count * np.dtype(self.flat.dtype).itemsize

    @property
    def beside(self) -> int:
        """The bytes that it takes besides, while it is made."""
        return self.shard.beside + (0 if self.reading is None else self.shard.kept)

    @property
    def key(self) -> str:
        """Its name in the cache."""
        return self.shard.key if self.reading is None else key_of(self.shard, self.reading)

    @contextlib.contextmanager
    def held(self, cache: ShardCache) -> Iterator[Path]:
        """Where they are, meanwhile, made or fetched first."""
        if self.reading is None:
            with self.shard.held(cache) as path:
                yield path
            return
        make = partial(self._make, cache)
        with cache.held(self.key, self.kept + self.beside, make) as path:
            yield path

    def prepare(self, cache: ShardCache) -> None:
        """Have them in the cache, where they need that."""
        if self.reading is None:
            self.shard.prepare(cache)
        else:
            cache.prepare(self.key, self.kept + self.beside, partial(self._make, cache))

    def _make(self, cache: ShardCache, file: io.FileIO) -> None:
        """Write the tokens of its texts. Raises `DataError` where they are not those of before."""
        assert self.reading is not None
        count = 0
        with self.shard.beside_another(cache) as path:
            for tokens in tokenized(self.shard, self.reading, path, self.flat.dtype):
                count += len(tokens)
                if count <= self.flat.count:
                    write(file, tokens.tobytes())
        if count != self.flat.count:
            raise DataError(f"{self.shard.place}: it was changed; start again")


def tokenized(shard: Shard, reading: Reading, path: Path, dtype: str) -> Iterator[Any]:
    """The tokens of each document of a shard of texts."""
    most = np.iinfo(dtype).max
    for number, tokens in enumerate(reading.documents(shard, path)):
        if len(tokens) and not 0 <= int(tokens.min()) <= int(tokens.max()) <= most:
            raise DataError(f"{shard.place}: sample {number}: tokens below 0 or above {most:,}")
        yield tokens.astype(dtype)


def tokens_of(
    shards: Sequence[Shard], reading: Reading, cache: ShardCache, vocab_size: int
) -> list[Tokens]:
    """The tokens of shards; those of texts are made once to be counted, which is remembered."""
    dtype = "<u2" if vocab_size <= 1 << 16 else "<u4"
    if reading.tokenizer is not None:
        dtype = np.dtype(token_dtype(reading.tokenizer)).newbyteorder("<").str
    size = sum(shard.size for shard in shards if shard.form.flat() is None)
    found = []
    coming = in_order(shards, cache)
    with progress("tokenizing shards", size, "B") as shown:
        for number, shard in enumerate(shards):
            flat = shard.form.flat()
            if flat is not None:
                found.append(Tokens(shard, flat))
                continue
            found.append(_counted(shard, reading, cache, dtype, partial(coming, number)))
            shown.add(shard.size)
    return found


def _counted(
    shard: Shard, reading: Reading, cache: ShardCache, dtype: str, coming: Callable[[], None]
) -> Tokens:
    def count() -> list[int]:
        coming()
        with shard.held(cache) as path:
            pieces = list(tokenized(shard, reading, path, dtype))
        cache.put(key_of(shard, reading), b"".join(piece.tobytes() for piece in pieces))
        return [sum(map(len, pieces)), len(pieces)]

    tokens, documents = cached_json("shard-texts", [key_of(shard, reading), dtype], count)
    return Tokens(shard, replace(Flat(dtype, 0, 0), count=tokens), reading, documents)


def key_of(shard: Shard, reading: Reading) -> str:
    """The name of a shard's tokens in the cache."""
    return f"tokens {FORMAT} {shard.identity} {reading.key}"
