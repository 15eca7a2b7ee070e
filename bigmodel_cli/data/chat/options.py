"""Conversations to finetune a decoder on: the loss counts the answers alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.data.base import Assets, Split
from bigmodel_cli.data.chat.messages import conversations, preferences
from bigmodel_cli.data.chat.source import ConversationsOptions, Item, Samples
from bigmodel_cli.data.chat.split import Chat, Preferences
from bigmodel_cli.data.chat.turns import Turns
from bigmodel_cli.data.expected import Expected
from bigmodel_cli.data.text.tokenizer_fit import expected_size


class ChatOptions(ConversationsOptions):
    """Conversations: .jsonl or .json with messages (role, content), ShareGPT's or Alpaca's keys, or
    prompt and completion; only the answers are learnt.
    """

    type: Literal["chat"] = "chat"
    unit: ClassVar[str] = "conversations"
    packing: bool = Field(
        False, description="training puts several conversations into a row, apart from one another"
    )

    def read(self, path: Path) -> Iterator[Item]:
        return ((conversation,) for conversation in conversations(path))

    def samples(self, turns: Turns, item: Item) -> list[Samples]:
        return [(sample,) for sample in turns(item[0])]

    def split(self, samples: Sequence[Samples], name: str) -> Split:
        alone = [sample for (sample,) in samples]
        return Chat(alone, self.context, packed=self.packing and name == "train")

    def isolates(self) -> bool:
        return self.packing

    def expected(self, assets: Assets | None) -> Expected:
        info = DatasetInfo(vocab_size=expected_size(self.tokenizer, assets), context=self.context)
        packed = {"segments"} if self.packing else set()
        return Expected(info, frozenset({"tokens", "loss_mask", *packed}))


class PreferencesOptions(ConversationsOptions):
    """Preferences: .jsonl or .json with a prompt (text or messages) and the chosen and the rejected
    answer, for task.type: dpo.
    """

    type: Literal["preferences"] = "preferences"
    unit: ClassVar[str] = "preferences"

    def read(self, path: Path) -> Iterator[Item]:
        return preferences(path)

    def samples(self, turns: Turns, item: Item) -> list[Samples]:
        return [tuple(turns.last_answer(conversation) for conversation in item)]

    def split(self, samples: Sequence[Samples], name: str) -> Split:
        return Preferences(samples)

    def expected(self, assets: Assets | None) -> Expected:
        info = DatasetInfo(vocab_size=expected_size(self.tokenizer, assets), context=self.context)
        return Expected(info, frozenset({"tokens", "loss_mask", "rejected", "rejected_mask"}))
