"""`data.type: shards`: text or tokens for language models, read in place, whatever their size."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from bigmodel_cli.config import Count, DatasetInfo
from bigmodel_cli.console import counted, quantity
from bigmodel_cli.data.base import Assets, DataSet, Say, Split
from bigmodel_cli.data.expected import Expected
from bigmodel_cli.data.holdout import needed
from bigmodel_cli.data.shards.cache import ShardCache
from bigmodel_cli.data.shards.mixture import Mixture, Pattern
from bigmodel_cli.data.shards.near import allot
from bigmodel_cli.data.shards.packing import Job, Packable
from bigmodel_cli.data.shards.places import InShardsOptions
from bigmodel_cli.data.shards.shard import Shard
from bigmodel_cli.data.shards.sources import find_shards, tokenizer_of
from bigmodel_cli.data.shards.split import Form, TokenRows
from bigmodel_cli.data.shards.texts import Reading, Tokens, tokens_of
from bigmodel_cli.data.text.own_tokenizers import ByteTokenizer
from bigmodel_cli.data.text.tokenizer import Tokenizer
from bigmodel_cli.data.text.tokenizer_files import ASSET
from bigmodel_cli.data.text.tokenizer_fit import BytesOptions, Corpora, FileOptions, fit_tokenizer
from bigmodel_cli.data.trained_on import Hashes, as_hashes, hash_of
from bigmodel_cli.errors import DataError, SpecError


class ShardsOptions(InShardsOptions):
    """Shards of text or tokens, in folders or at URLs, read in place: MDS, litdata, WebDataset
    (.tar), Parquet, .jsonl (.gz, .zst), Megatron's .bin/.idx, and those of `bigmodel pack`.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"type": "shards", "train": ["packed/train"], "context": 256}]
        }
    )

    type: Literal["shards"] = "shards"
    field: str = Field("text", description="the field of the text, or of tokens; a.b for b in a")
    context: Count = Field(description="tokens that the model sees at once (T)")
    tokenizer: Annotated[BytesOptions | FileOptions, Field(discriminator="type")] | None = Field(
        None,
        description="text to tokens; left out: that of packed shards, none of tokens, else bytes",
    )
    vocab_size: Count | None = Field(
        None, description="how many tokens there are, where no tokenizer is known"
    )
    isolate: bool = Field(
        False, description="a token sees only its own document, where several stand in a row"
    )

    def longest(self) -> int:
        return self.context

    def isolates(self) -> bool:
        return self.isolate

    def open(
        self, *, base: Path, say: Say, assets: Assets | None = None, only: str | None = None
    ) -> DataSet:
        cache = ShardCache(self.cache_bytes)
        found = {
            name: [find_shards(names, base, option) for names, option in self.sources()[name]]
            for name in needed(self.splits(base), only)
        }
        everything = [shard for lists in found.values() for shards in lists for shard in shards]
        tokenizer = self._tokenizer(everything, say, assets)
        size = tokenizer.vocab_size if tokenizer is not None else self.vocab_size
        if size is None:
            raise SpecError(
                "data: these shards are tokens, and it is not known of which tokenizer; give"
                " data.tokenizer, or data.vocab_size"
            )
        end = tokenizer.end_of_text if tokenizer is not None and self.isolate else None
        if self.isolate and end is None:
            raise SpecError(
                "data.isolate: no token for the end of a document is known; give a"
                " data.tokenizer that has one"
            )
        content = b"" if tokenizer is None else tokenizer.to_json()
        own = hashlib.sha256(json.dumps([self.field, size]).encode() + content).hexdigest()
        reading, form = (
            Reading(self.field, tokenizer, own),
            Form(self.context, size, end, self.mixed_shards),
        )
        splits: dict[str, Split] = {
            name: self._split(
                name, [tokens_of(s, reading, cache, size) for s in lists], form, cache, say
            )
            for name, lists in found.items()
        }
        identity = [own, self.context, self.weights(), self.mixed_shards]
        identity += [
            [n, [[s.identity for s in own] for own in lists]] for n, lists in found.items()
        ]
        return DataSet(
            DatasetInfo(vocab_size=size, context=self.context),
            hashlib.sha256(json.dumps(identity).encode()).hexdigest(),
            splits,
            {} if tokenizer is None else {ASSET: content},
            {name: partial(shard_items, lists) for name, lists in found.items()},
            "shards",
            False,
        )

    def packable(self, *, base: Path, say: Say) -> Packable:
        """A job for each shard. A mixture is refused: its weights are for training."""
        if self.mix:
            raise SpecError("data.mix: pack each source alone, and mix the packed ones")
        found = {
            name: find_shards(names, base, option)
            for name, sources in self.sources().items()
            for names, option in sources
        }
        everything = [shard for shards in found.values() for shard in shards]
        tokenizer = self._tokenizer(everything, say, None)
        content = b"" if tokenizer is None else tokenizer.to_json()
        size = self.vocab_size if tokenizer is None else tokenizer.vocab_size
        reading = Reading(self.field, tokenizer, hashlib.sha256(content).hexdigest())
        cache = ShardCache(self.cache_bytes)
        splits = {
            name: [
                Job(
                    f"{shard.identity} {self.field}",
                    shard.size,
                    partial(reading.all_tokens, shard, cache),
                )
                for shard in shards
            ]
            for name, shards in found.items()
        }
        return Packable(splits, content, size or 0)

    def _tokenizer(
        self, shards: Sequence[Shard], say: Say, assets: Assets | None
    ) -> Tokenizer | None:
        """The one given, the checkpoint's, that of packed shards, or bytes for texts.

        Raises `DataError` where shards were packed with others.
        """
        packed = tokenizer_of(shards)
        flat = [shard for shard in shards if shard.form.flat() is not None]
        wanted = self.tokenizer
        found: Tokenizer | None = None
        if wanted is not None or (assets is not None and ASSET in assets):
            found = fit_tokenizer(wanted or BytesOptions(), Corpora(None, {}), say, assets)
        elif packed is None and not flat and self.vocab_size is None:
            found = ByteTokenizer()
        if packed is not None and found is not None and found.to_json() != packed.to_json():
            raise DataError(
                "data: the shards were packed with another tokenizer than that of data.tokenizer,"
                " or of the checkpoint; pack the texts anew with it"
            )
        return found or packed

    def _split(
        self,
        name: str,
        sources: Sequence[Sequence[Tokens]],
        form: Form,
        cache: ShardCache,
        say: Say,
    ) -> Split:
        """The split; what it holds and leaves out is said."""
        rows = [TokenRows(tokens, form, cache, name) for tokens in sources]
        allot(rows, cache)
        pattern = Pattern(self.weights()) if len(rows) > 1 else None
        for index, (own, tokens) in enumerate(zip(rows, sources, strict=True)):
            total = sum(t.flat.count for t in tokens)
            left = f"; {own.left_out:,} tokens at the ends of shards are left out"
            share = "" if pattern is None else f", {pattern.fractions()[index]:.2%} of all rows"
            say(
                f"{self.called(name, index, len(rows))}: {counted(len(tokens), 'shard')},"
                f" {total:,} tokens, {len(own):,} rows"
                f"{share}{left if own.left_out and name == 'train' else ''}"
            )
        if name == "train" and any(own.needed for own in rows):
            say(f"shards are kept in {cache.folder}, at most {quantity(cache.limit, 'B')}")
        return rows[0] if pattern is None else Mixture(rows, pattern)

    def expected(self, assets: Assets | None) -> Expected:
        size = self.vocab_size
        if assets is not None and ASSET in assets:
            size = fit_tokenizer(BytesOptions(), Corpora(None, {}), print, assets).vocab_size
        elif self.tokenizer is not None:
            size = self.tokenizer.expected_size()
        if size is None:
            raise DataError("its vocabulary size is not known: give data.tokenizer or vocab_size")
        names = {"tokens", *(["segments"] if self.isolate else [])}
        return Expected(DatasetInfo(vocab_size=size, context=self.context), frozenset(names))


def shard_items(sources: Sequence[Sequence[Shard]]) -> Hashes:
    """The hash of each shard's identity."""
    return as_hashes(hash_of(shard.identity.encode()) for own in sources for shard in own)


def of_files(names: list[str], tokenizer: str | None, field: str | None) -> ShardsOptions:
    """The options that files on a command line stand for."""
    values: dict[str, object] = {"type": "shards", "train": names, "context": 1}
    if tokenizer is not None:
        values["tokenizer"] = {"type": "file", "path": tokenizer}
    if field is not None:
        values["field"] = field
    return ShardsOptions.model_validate(values)
