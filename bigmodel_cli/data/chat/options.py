"""Conversations to finetune a decoder on: the loss counts the answers alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.data.base import Assets, DataSet, Say, Split
from bigmodel_cli.data.cache import key_of
from bigmodel_cli.data.chat.messages import Conversation, conversations
from bigmodel_cli.data.chat.split import Chat, shown
from bigmodel_cli.data.chat.template import ASSET as TEMPLATE
from bigmodel_cli.data.chat.template import Template, find_template
from bigmodel_cli.data.chat.turns import Sample, Turns
from bigmodel_cli.data.expected import Expected
from bigmodel_cli.data.files import expand
from bigmodel_cli.data.holdout import HELD_OUT, FilesOptions, ValFraction, parts_of
from bigmodel_cli.data.text.corpus import ENDS, Survey, Texts
from bigmodel_cli.data.text.tokenizer import ASSET, Tokenizer
from bigmodel_cli.data.text.tokenizer_fit import (
    Corpora,
    TokenizerOptions,
    expected_size,
    fit_tokenizer,
)
from bigmodel_cli.data.trained_on import Hashes, as_hashes, hash_of
from bigmodel_cli.errors import DataError
from bigmodel_cli.progress import reading

FORMAT = 1
ENDINGS = (".jsonl", ".jsonl.gz", ".json", ".json.gz")
Files = list[str]


class ChatOptions(FilesOptions):
    """Conversations: .jsonl or .json with messages (role, content), ShareGPT's or Alpaca's keys, or
    prompt and completion; only the answers are learnt.
    """

    type: Literal["chat"] = "chat"
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
    packing: bool = Field(
        False, description="training puts several conversations into a row, apart from one another"
    )
    tokenizer: TokenizerOptions = Field(
        description="text to tokens, fitted on the training messages; a checkpoint brings its own"
    )

    def open(
        self, *, base: Path, say: Say, assets: Assets | None = None, only: str | None = None
    ) -> DataSet:
        files = self.files(base, only, say, ENDINGS)
        with reading("reading conversations", [p for paths in files.values() for p in paths]):
            found = {n: [c for p in paths for c in conversations(p)] for n, paths in files.items()}
        for name in [name for name, every in found.items() if not every]:
            raise DataError(f"data.{name}: no conversation in {files[name][0]}")
        content = json.dumps([[n, c.messages] for n, own in found.items() for c in own])
        fraction = self.fraction(base)
        if fraction and "train" in found:
            whole = found["train"]
            parts = parts_of(len(whole), fraction, "conversations", None if only else say)
            found |= {n: [whole[i] for i in chosen.tolist()] for n, chosen in parts.items()}
        tokenizer = self._tokenizer(found, say, assets)
        path = expand(self.template, base, "data.template") if self.template else None
        text, name = find_template(path, assets or {})
        with Template(text, tokenizer, name, DataError) as template:
            turns = Turns(tokenizer, template)
            kept = {
                n: self._samples(turns, own, n, say)
                for n, own in found.items()
                if only in (None, n)
            }
        if turns.divided:
            say(
                f"{turns.divided:,} conversations are several samples, one for each answer: the"
                " template renders earlier turns differently when more follow"
            )
        self._tell(kept, turns, say)
        splits: dict[str, Split] = {
            n: Chat(own, self.context, packed=self.packing and n == "train")
            for n, own in kept.items()
        }
        digest = hashlib.sha256(content.encode()).hexdigest()
        about = [digest, tokenizer.to_json().decode("utf-8"), text, fraction]
        return DataSet(
            DatasetInfo(vocab_size=tokenizer.vocab_size, context=self.context),
            key_of([FORMAT, *about, self.context, self.longer, self.packing]),
            splits,
            {ASSET: tokenizer.to_json(), TEMPLATE: text.encode()},
            {n: partial(_items, own) for n, own in found.items()},
            "conversations",
            fraction > 0,
        )

    def longest(self) -> int:
        return self.context

    def isolates(self) -> bool:
        return self.packing

    def expected(self, assets: Assets | None) -> Expected:
        info = DatasetInfo(vocab_size=expected_size(self.tokenizer, assets), context=self.context)
        packed = {"segments"} if self.packing else set()
        return Expected(info, frozenset({"tokens", "loss_mask", *packed}))

    def _samples(
        self, turns: Turns, every: Iterable[Conversation], name: str, say: Say
    ) -> list[Sample]:
        """The samples of a split that fit.

        Raises `DataError` for those that do not, unless they are to be dropped.
        """
        kept: list[Sample] = []
        long: list[tuple[int, str]] = []
        for conversation in every:
            for sample in turns(conversation):
                if len(sample.tokens) > self.context + 1:
                    long.append((len(sample.tokens) - 1, conversation.place))
                else:
                    kept.append(sample)
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

    def _tell(self, kept: Mapping[str, list[Sample]], turns: Turns, say: Say) -> None:
        """Report what is learnt, with an example. Raises `DataError` where it is all or nothing."""
        if "train" not in kept:
            return
        total = sum(len(sample.tokens) for sample in kept["train"])
        learnt = sum(map(sum, (sample.learnt for sample in kept["train"])))
        if learnt == total:
            raise DataError(
                "data.train: every token is learnt, questions too; use another template"
                " (data.template)"
            )
        special = turns.special
        ends = " or ".join(sorted(special[end] for end in turns.ends))
        say(
            f"chat: {len(kept['train']):,} training samples; {learnt:,} of {total:,} tokens are"
            f" learnt ({learnt / total:.1%}), each answer with {ends} at its end"
        )
        first = kept["train"][0]
        text = shown(first.tokens, first.learnt, turns.tokenizer.decode_marked)
        say(f"the first sample, with what is learnt between » and «:\n{text}")

    def _tokenizer(
        self, found: Mapping[str, list[Conversation]], say: Say, assets: Assets | None
    ) -> Tokenizer:
        """The checkpoint's, or one that is fitted on the training messages."""
        texts = {
            n: [message["content"] for conversation in own for message in conversation.messages]
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


def _items(every: list[Conversation]) -> Hashes:
    """(N,) the hash of each conversation's messages."""
    return as_hashes(
        hash_of(*(m["content"].encode() for m in conversation.messages)) for conversation in every
    )
