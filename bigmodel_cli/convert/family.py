"""What a family of published models answers: its options and its weights, in both directions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from bigmodel_cli.convert.config import Config
from bigmodel_cli.convert.rules import Rule
from bigmodel_cli.models.base import AnyModelOptions

Model = Mapping[str, Any]
"""The `model` section of a spec, every option with its value, blocks one by one."""


class Family(ABC):
    """A family: models whose config.json and names of weights follow one pattern.

    The two directions of the options are checked against each other: a model is exported where
    `model(config(model)) == model`, and what differs names the option that the family lacks.
    """

    model_types: ClassVar[tuple[str, ...]]
    """The `model_type`s in config.json that are read."""
    architectures: ClassVar[Mapping[str, str]]
    """The classes of transformers, by the task that the head is for: `causal_lm`, ..."""
    leftovers: ClassVar[tuple[str, ...]] = ()
    """Regular expressions of tensors in published files that the network does not need."""

    ignored: ClassVar[tuple[str, ...]] = ()
    """Keys of config.json that do not change what the network computes."""

    @abstractmethod
    def model(self, config: Config) -> dict[str, Any]:
        """The spec's `model` section. Raises `CheckpointError` for an option that is not built."""

    @abstractmethod
    def config(self, model: Model) -> dict[str, Any]:
        """The config.json of a model, if this family has it at all."""

    @abstractmethod
    def rules(self, model: Model) -> Iterator[Rule]:
        """Where each tensor of theirs lies in ours."""


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


def written_out(options: AnyModelOptions) -> dict[str, Any]:
    """Every option with its value, blocks one by one."""
    values = options.model_dump(mode="json")
    if "blocks" in values:
        values["blocks"] = [
            {name: value for name, value in block.items() if name != "repeat"}
            for block in values["blocks"]
            for _ in range(block["repeat"])
        ]
    return values
