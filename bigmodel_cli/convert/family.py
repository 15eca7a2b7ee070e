"""What a family of published models answers: its options and its weights, in both directions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from bigmodel_cli.config import DatasetInfo, Options
from bigmodel_cli.convert.config import Config
from bigmodel_cli.convert.label_heads import (
    MULTILABEL,
    REGRESSION,
    facts_of_labels,
    label_columns,
    labelled,
)
from bigmodel_cli.convert.rules import Rule
from bigmodel_cli.data import TOKENIZER
from bigmodel_cli.errors import CheckpointError
from bigmodel_cli.models.base import AnyModelOptions

BODY, CAUSAL_LM, MASKED_LM = "", "causal_lm", "masked_lm"
CLASSIFICATION, TAGGING, SEQ2SEQ = "classification", "tagging", "seq2seq"
"""The `task.type`s that heads of published models are for; BODY is a network without a head."""
NO_DATA = "no data comes with a published model; name yours"
"""Stands in a spec where paths of data are due, so that none is taken by mistake."""
STACKS = {"blocks", "encoder", "decoder"}
"""Options of models that are lists of blocks."""
LONGEST_WINDOW = 1024
"""Most tokens of a training window that a folder's spec asks for; the model may take more."""

Model = Mapping[str, Any]
"""The `model` section of a spec, every option with its value, blocks one by one."""


class Family(ABC):
    """A family: models whose config.json and names of weights follow one pattern.

    The two directions of the options are checked against each other: a model is exported where
    `model(config(model)) == model`, and what differs names the option that the family lacks.
    The methods' defaults are those of a family that reads tokens.
    """

    model_types: ClassVar[tuple[str, ...]]
    """The `model_type`s in config.json that are read."""
    heads: ClassVar[Mapping[str, str]]
    """The classes of transformers -> the `task.type` that their head is for; BODY for none.

    CLASSIFICATION stands for the tasks of `label_heads` too.

    Where config.json names no class, it is the first.
    """
    spare: ClassVar[tuple[str, ...]] = ()
    """Prefixes of ours that only a model for labels has and that bodies bring too, as a pooler."""
    leftovers: ClassVar[tuple[str, ...]] = ()
    """Regular expressions of tensors in published files that the network does not need."""
    prefix: ClassVar[str] = ""
    """What names of the network below a head begin with in files that have a head ("bert.").

    Files without a head may lack it, and some with one do (GPT-2's): both are read.
    """
    copies: ClassVar[Mapping[str, str]] = {}
    """Tensors that some files hold a second time -> the one that they must be equal to."""
    renamed: ClassVar[Mapping[str, str]] = {}
    """Regular expressions within names in older files -> what stands there today."""
    pipelines: ClassVar[Mapping[str, str]] = {}
    """Tasks that a model card calls otherwise than export/card.py does."""
    without_head: ClassVar[str] = MASKED_LM
    """The `task.type` of a spec around a network without a head."""
    whole_texts: ClassVar[bool] = False
    """Whether a text is read as one, between the tokenizer's special tokens, by a model without
    labels too (`attend`, a card's script); running text is not.
    """
    padding: ClassVar[int | None] = None
    """The token that their code leaves out when it counts positions, whatever it stands for."""
    ignored: ClassVar[tuple[str, ...]] = ()
    """Keys of config.json that do not change what the network computes."""

    def called(self) -> str:
        """The name of the family, for messages."""
        return self.model_types[0]

    def reads(self, config: Config) -> bool:
        """Whether a config.json is of this family."""
        return config.maybe("model_type", str) in self.model_types

    @abstractmethod
    def model(self, config: Config) -> dict[str, Any]:
        """The spec's `model` section. Raises `CheckpointError` for an option that is not built."""

    def beside(self, folder: Path) -> dict[str, Any]:
        """Options of the model that other files of its folder say. Raises `CheckpointError`."""
        return {}

    def unused(self, task: str, model: Model) -> tuple[str, ...]:
        """Options of the model that it does not use with this task's head."""
        return ()

    @abstractmethod
    def config(self, model: Model, info: DatasetInfo) -> dict[str, Any]:
        """The config.json of a model, if this family has it at all, but for its class."""

    def unfit(self, model: Model, info: DatasetInfo) -> Iterator[tuple[str, str]]:
        """(option, why) where the published class refuses a model that its config.json can say."""
        yield from ()

    @abstractmethod
    def rules(self, model: Model, info: DatasetInfo, task: str) -> Iterator[Rule]:
        """Where each tensor of theirs lies in ours, with the head for this task."""

    def info(self, config: Config, folder: Path, model: Model, task: str) -> DatasetInfo:
        """What data for the model is like. Raises `CheckpointError`."""
        named = head_of(task) in (CLASSIFICATION, TAGGING)
        return DatasetInfo(
            vocab_size=model["vocab_size"],
            context=min(model["max_len"], LONGEST_WINDOW),
            tagged=task == TAGGING,
            **(facts_of_labels(config, task) if named else {}),
        )

    def data(self, folder: Path, info: DatasetInfo) -> dict[str, Any]:
        """The spec's `data` section, for the commands that need no more than its sizes: places of
        data are `NO_DATA`.
        """
        shared = {
            "context": info.context,
            "tokenizer": {"type": "file", "path": str(folder / TOKENIZER)},
        }
        if info.tagged:
            return {"type": "conll", "train": [NO_DATA], **shared}
        if info.outputs:
            columns = label_columns(folder, info)
            return {"type": "table", "train": [NO_DATA], **columns, **shared}
        if self.whole_texts:
            return {"type": "table", "train": [NO_DATA], "text": [0], **shared}
        return {"type": "text", "files": [NO_DATA], **shared}

    def task_options(self) -> dict[str, Any]:
        """Options of the task that its spec has beside the type."""
        return {}

    def leftovers_of(self, model: Model) -> tuple[str, ...]:
        """Regular expressions of tensors in published files that this model does not need."""
        return self.leftovers

    def more_files(self, model: Model, info: DatasetInfo) -> dict[str, dict[str, Any]]:
        """Further JSON files of the folder that is written, by name."""
        return {}

    def task_of(self, config: Config) -> str:
        """The task that the head of the class in config.json is for; BODY for none.

        One class has heads for a class, for sets of labels and for numbers. Raises
        `CheckpointError`.
        """
        named = config.maybe("architectures", list) or list(self.heads)
        known = [name for name in named if name in self.heads]
        if not known:
            raise CheckpointError(
                f"{config.file}: architectures: {', '.join(map(str, named))[:80]} is not built;"
                f" what is: {', '.join(self.heads)}"
            )
        found = self.heads[known[0]]
        return (labelled(config) or found) if found == CLASSIFICATION else found

    def class_of(self, task: str) -> str | None:
        """The class of transformers with a head for this task."""
        return next((name for name, of in self.heads.items() if of == head_of(task)), None)


def head_of(task: str) -> str:
    """The task whose head has the same weights: that of numbers and of sets is a class's."""
    return CLASSIFICATION if task in (REGRESSION, MULTILABEL) else task


def grouped(blocks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Blocks as a person writes them: equal neighbours once, with `repeat`."""
    found: list[dict[str, Any]] = []
    for block in blocks:
        if found and {**found[-1], "repeat": 1} == {"repeat": 1, **block}:
            found[-1]["repeat"] += 1
        else:
            found.append({"repeat": 1, **block})
    return [
        {name: value for name, value in block.items() if (name, value) != ("repeat", 1)}
        for block in found
    ]


def written_out(options: AnyModelOptions, info: DatasetInfo | None = None) -> dict[str, Any]:
    """Every option with its value, blocks one by one.

    What is left out is what it comes to: sizes by the model's width, and by the data's `info`.
    """
    values: dict[str, Any] = _settled(options, options.width() or 1)
    if info is not None:
        longest = info.text_context or info.context
        sizes = (
            ("vocab_size", info.vocab_size),
            ("max_len", longest),
            ("source_len", info.context),
        )
        for name, known in sizes if info.text_context else sizes[:2]:
            if name in values and values[name] is None:
                values[name] = known
    for stack in STACKS & values.keys():
        values[stack] = [
            {name: value for name, value in block.items() if name != "repeat"}
            for block in values[stack]
            for _ in range(block["repeat"])
        ]
    return values


def _settled(value: Any, dim: int) -> Any:
    if isinstance(value, Options):
        plain = {name: _settled(inner, dim) for name, inner in dict(value).items()}
        return {**plain, **value.settled(dim)}
    return [_settled(inner, dim) for inner in value] if isinstance(value, list | tuple) else value
