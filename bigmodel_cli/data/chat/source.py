"""Data of conversations: what the sources of answers and of preferences share."""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar, Literal, TypeAlias

from pydantic import Field

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.console import counted
from bigmodel_cli.data.base import Assets, DataSet, Say, Split
from bigmodel_cli.data.cache import key_of
from bigmodel_cli.data.chat.messages import KNOWN, Conversation
from bigmodel_cli.data.chat.template import ASSET as TEMPLATE
from bigmodel_cli.data.chat.template import DATE, Template, date_of, find_template, is_dated
from bigmodel_cli.data.chat.turns import Sample, Turns
from bigmodel_cli.data.files import expand
from bigmodel_cli.data.holdout import HELD_OUT, FilesOptions, ValFraction, parts_of
from bigmodel_cli.data.text.corpus import ENDS, Survey, Texts
from bigmodel_cli.data.text.tokenizer import Tokenizer
from bigmodel_cli.data.text.tokenizer_files import ASSET
from bigmodel_cli.data.text.tokenizer_fit import Corpora, TokenizerOptions, fit_tokenizer
from bigmodel_cli.data.trained_on import Hashes, as_hashes, hash_of
from bigmodel_cli.errors import DataError
from bigmodel_cli.progress import reading

FORMAT = 2
SHOWN = 8
"""Most names in a line."""
ENDINGS = (".jsonl", ".jsonl.gz", ".json", ".json.gz")
Files = list[str]
Item: TypeAlias = tuple[Conversation, ...]
"""What a row of a file is: one conversation, or several that are compared."""
Samples: TypeAlias = tuple[Sample, ...]


class ConversationsOptions(FilesOptions):
    """Options of data whose rows are conversations."""

    unit: ClassVar[str]
    train: Annotated[Files, Field(min_length=1)] = Field(
        description="files, globs or folders, read in this order"
    )
    val: Files = Field([], description="files for validation, instead of val_fraction")
    test: Files = Field([], description="files for the test split")
    val_fraction: ValFraction = Field(None, description=HELD_OUT.format("conversations"))
    template: str | None = Field(
        None,
        description=(
            "a file with a chat template (jinja); left out: the checkpoint's, else a plain one"
        ),
    )
    context: Annotated[int, Field(ge=8, le=10**9)] = Field(
        512, description="most tokens of a conversation (T)"
    )
    longer: Literal["refuse", "drop"] = Field(
        "refuse", description="what is done with conversations of more tokens: none is cut"
    )
    tokenizer: TokenizerOptions = Field(
        description="text to tokens, fitted on the training messages; a checkpoint brings its own"
    )

    @abstractmethod
    def read(self, path: Path) -> Iterator[Item]:
        """The rows of a file. Raises `DataError` naming one that is none."""

    @abstractmethod
    def samples(self, turns: Turns, item: Item) -> list[Samples]:
        """The samples of a row. Raises `DataError`."""

    @abstractmethod
    def split(self, samples: Sequence[Samples], name: str) -> Split:
        """The split of these samples."""

    def open(
        self, *, base: Path, say: Say, assets: Assets | None = None, only: str | None = None
    ) -> DataSet:
        files = self.files(base, only, say, ENDINGS)
        with reading("reading conversations", [p for paths in files.values() for p in paths]):
            found = {
                n: [item for p in paths for item in self.read(p)] for n, paths in files.items()
            }
        for name in [name for name, every in found.items() if not every]:
            raise DataError(f"data.{name}: no conversation in {files[name][0]}")
        _tell_left_out(found, say)
        content = [[n, c.messages, c.passed] for n, rows in found.items() for i in rows for c in i]
        fraction = self.fraction(base)
        if fraction and "train" in found:
            whole = found["train"]
            parts = parts_of(len(whole), fraction, self.unit, None if only else say)
            found |= {n: [whole[i] for i in chosen.tolist()] for n, chosen in parts.items()}
        tokenizer = self._tokenizer(found, say, assets)
        path = expand(self.template, base, "data.template") if self.template else None
        text, name = find_template(path, assets or {})
        date = date_of(assets or {}) if is_dated(text) else ""
        with Template(text, tokenizer, name, DataError, date) as template:
            turns = Turns(tokenizer, template)
            kept = {n: self._kept(turns, i, n, say) for n, i in found.items() if only in (None, n)}
        if "train" in kept:
            _tell(kept["train"], turns, say)
        own = {ASSET: tokenizer.to_json(), TEMPLATE: text.encode()}
        if date:
            own[DATE] = date.encode()
            say(f"the chat template writes the date: {date} in all of this data")
        digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
        given = self.model_dump(mode="json", include={"type", "context", "longer", "packing"})
        return DataSet(
            DatasetInfo(vocab_size=tokenizer.vocab_size, context=self.context),
            key_of([FORMAT, digest, own[ASSET].decode("utf-8"), text, date, fraction, given]),
            {n: self.split(own, n) for n, own in kept.items()},
            own,
            {n: partial(_hashes, own) for n, own in found.items()},
            self.unit,
            fraction > 0,
        )

    def longest(self) -> int:
        return self.context

    def _kept(self, turns: Turns, items: Iterable[Item], name: str, say: Say) -> list[Samples]:
        """The samples of a split that fit.

        Raises `DataError` for those that do not, unless they are to be dropped.
        """
        kept: list[Samples] = []
        long: list[tuple[int, str]] = []
        for item in items:
            for samples in self.samples(turns, item):
                most = max(len(sample.tokens) for sample in samples) - 1
                if most > self.context:
                    long.append((most, item[0].place))
                else:
                    kept.append(samples)
        if long:
            most, place = max(long)
            what = f"{len(long):,} of {len(long) + len(kept):,} {name} samples have more than"
            if self.longer == "refuse" or not kept:
                raise DataError(
                    f"{place}: {what} {self.context:,} tokens (this one {most:,}), so that their"
                    f" answers would be cut; set data.context: {most} for all, or data.longer: drop"
                )
            say(f"left out: {what} {self.context:,} tokens (data.context); the longest: {most:,}")
        return kept

    def _tokenizer(
        self, found: Mapping[str, list[Item]], say: Say, assets: Assets | None
    ) -> Tokenizer:
        """The checkpoint's, or one that is fitted on the training messages."""
        texts = {
            n: [message["content"] for item in own for c in item for message in c.messages]
            for n, own in found.items()
        }
        surveys = {
            n: Survey(key_of(own), sum(map(len, own)), ENDS, "".join(sorted({*"".join(own)})))
            for n, own in texts.items()
        }
        corpus = Texts(files=(), source=lambda: iter(texts.get("train", [])))
        return fit_tokenizer(
            self.tokenizer, Corpora(corpus, surveys), say, assets, ends="an answer"
        )


def _tell(kept: Sequence[Samples], turns: Turns, say: Say) -> None:
    """Report how much is learnt. Raises `DataError` where it is everything."""
    every = [sample for samples in kept for sample in samples]
    total, learnt = sum(len(s.tokens) for s in every), sum(sum(s.learnt) for s in every)
    if learnt == total:
        raise DataError(
            "data.train: every token is learnt, questions too; use another template (data.template)"
        )
    if turns.divided:
        say(
            f"{counted(turns.divided, 'conversation is', 'conversations are')} several samples,"
            " one for each answer: the template, or the tokenizer, writes earlier turns differently"
            " when more follow"
        )
    if lost := [role for role, written in turns.roles.items() if not written]:
        say(
            f"warning: the chat template leaves out messages of {', '.join(sorted(lost))}: answers"
            " are learnt without them; use another template (data.template), or take them out"
        )
    ends = " or ".join(sorted(turns.special[end] for end in turns.ends))
    say(
        f"conversations: {counted(len(kept), 'training sample')}; {learnt:,} of {total:,} tokens"
        f" are learnt ({100 * learnt / total:.1f} %), each answer with {ends} at its end"
    )


def _tell_left_out(found: Mapping[str, Sequence[Item]], say: Say) -> None:
    """Report what the rows have that is not read or not learnt."""
    for name, items in found.items():
        every = [c for item in items for c in item]
        roles = {m["role"] for c in every for m in c.messages} - {*KNOWN}
        cut, passed = sum(c.cut for c in every), sum(len(c.passed) for c in every)
        of_roles = f"read and not learnt: {', '.join(sorted(roles))}"
        for count, what, rest in (
            (cut, "message", "after the last answer left out"),
            (passed, "answer", "read and not learnt (weight 0)"),
            (len(roles), "role", of_roles),
        ):
            if count:
                say(f"data.{name}: {counted(count, what)} {rest}")
        if empty := [c.place for c in every if c.learns_nothing()]:
            say(
                f"warning: data.{name}: {counted(len(empty), 'answer is', 'answers are')} learnt"
                f" that say nothing, the first in {empty[0]}: give them the weight 0, or take them"
                " out"
            )
        if unread := sorted({key for c in every for key in c.unread}):
            more = f" and {len(unread) - SHOWN} more" if len(unread) > SHOWN else ""
            say(f"data.{name}: not read of the rows: {', '.join(unread[:SHOWN])}{more}")


def _hashes(items: Sequence[Item]) -> Hashes:
    """(N,) the hash of each row's messages."""
    return as_hashes(
        hash_of(*(m["content"].encode() for c in item for m in c.messages)) for item in items
    )
