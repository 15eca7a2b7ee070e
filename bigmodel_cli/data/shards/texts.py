"""The tokens of shards: of files that are tokens as they stand, and of texts, tokenized once each
and kept in the cache of shards.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bigmodel_cli.data.cache import cached_json
from bigmodel_cli.data.reading import checked_text, dotted, lookup
from bigmodel_cli.data.shards.cache import ShardCache
from bigmodel_cli.data.shards.records import Shard
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
            yield from self.documents(shard, shard.path(cache))
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
        while True:
            try:
                return self.flat.take(self.path(cache), self.shard.place, ranges)
            except FileNotFoundError:  # removed from the cache meanwhile
                if not self.shard.needs_cache and self.reading is None:
                    raise DataError(f"{self.shard.place}: it was removed; put it back") from None

    @property
    def size(self) -> int:
        """The bytes that it takes in the cache, without what it is made from."""
        cached = self.reading is not None or self.shard.needs_cache
        return self.flat.count * np.dtype(self.flat.dtype).itemsize if cached else 0

    def path(self, cache: ShardCache) -> Path:
        """Where they are, made or fetched first."""
        if self.reading is None:
            return self.shard.path(cache)
        key = _key(self.shard, self.reading)
        while True:
            found = cache.found(key)
            if found is not None:
                return found
            source = self.shard.path(cache)
            try:
                return cache.get_content(key, lambda path=source: self._content(path))  # type: ignore[misc]
            except FileNotFoundError:
                if not self.shard.needs_cache:
                    raise DataError(f"{self.shard.place}: it was removed; put it back") from None

    def _content(self, path: Path) -> bytes:
        """The tokens of its texts. Raises `DataError` where they are not those of before."""
        assert self.reading is not None
        data = tokenized(self.shard, self.reading, path, self.flat.dtype)[0]
        if len(data) != self.flat.count * np.dtype(self.flat.dtype).itemsize:
            raise DataError(f"{self.shard.place}: it was changed; start again")
        return data


def tokenized(shard: Shard, reading: Reading, path: Path, dtype: str) -> tuple[bytes, int]:
    """(the tokens, how many documents) of a shard of texts."""
    most, pieces, count = np.iinfo(dtype).max, [], 0
    for tokens in reading.documents(shard, path):
        if len(tokens) and not 0 <= int(tokens.min()) <= int(tokens.max()) <= most:
            raise DataError(f"{shard.place}: sample {count}: tokens below 0 or above {most:,}")
        pieces.append(tokens.astype(dtype))
        count += 1
    return b"".join(piece.tobytes() for piece in pieces), count


def tokens_of(
    shards: Sequence[Shard], reading: Reading, cache: ShardCache, vocab_size: int
) -> list[Tokens]:
    """The tokens of shards; those of texts are made once to be counted, which is remembered."""
    dtype = "<u2" if vocab_size <= 1 << 16 else "<u4"
    if reading.tokenizer is not None:
        dtype = np.dtype(token_dtype(reading.tokenizer)).newbyteorder("<").str
    size = sum(shard.size for shard in shards if shard.form.flat() is None)
    found = []
    with progress("tokenizing shards", size, "B") as shown:
        for shard in shards:
            flat = shard.form.flat()
            if flat is not None:
                found.append(Tokens(shard, flat))
                continue
            found.append(_counted(shard, reading, cache, dtype))
            shown.add(shard.size)
    return found


def _counted(shard: Shard, reading: Reading, cache: ShardCache, dtype: str) -> Tokens:
    def count() -> list[int]:
        while True:
            try:
                data, documents = tokenized(shard, reading, shard.path(cache), dtype)
                break
            except FileNotFoundError:
                if not shard.needs_cache:
                    raise DataError(f"{shard.place}: it was removed; put it back") from None
        cache.get_content(_key(shard, reading), lambda: data)
        return [len(data) // np.dtype(dtype).itemsize, documents]

    tokens, documents = cached_json("shard-texts", [_key(shard, reading), dtype], count)
    return Tokens(shard, replace(Flat(dtype, 0, 0), count=tokens), reading, documents)


def _key(shard: Shard, reading: Reading) -> str:
    return f"tokens {FORMAT} {shard.identity} {reading.key}"
