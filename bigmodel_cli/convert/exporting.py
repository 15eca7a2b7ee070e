"""Writing a checkpoint as a folder that Hugging Face's `from_pretrained` opens."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bigmodel_cli.checkpoints.shards import Shard, shards
from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.convert.config import Config
from bigmodel_cli.convert.families import FAMILIES
from bigmodel_cli.convert.family import Family, written_out
from bigmodel_cli.convert.folder import CONFIG, INDEX, WEIGHTS
from bigmodel_cli.convert.opening import typed
from bigmodel_cli.convert.rules import exported
from bigmodel_cli.differences import differing, leaves
from bigmodel_cli.errors import CheckpointError, SpecError
from bigmodel_cli.lazy import Tensor
from bigmodel_cli.models.base import AnyModelOptions

TRAINING_ONLY = ("dropout", "drop_path", "init_std", "balance_weight")
"""Options that change nothing once a model is trained: a class that lacks them will do."""


@dataclass(frozen=True)
class Expressed:
    """A model as a family has it: its config.json, and what of training that does not say."""

    family: Family
    config: dict[str, Any]
    left_out: list[str]


def express(model: AnyModelOptions, info: DatasetInfo, task: str) -> Expressed:
    """The family that has exactly this model, with a head for this task.

    Raises `SpecError` naming the options that the nearest family lacks. That a family has a model
    is not judged by its code: the config.json that it writes is read again, and must give the same
    model.
    """
    wanted = written_out(model)
    nearest: tuple[str, list[str]] | None = None
    for family in FAMILIES:
        head = family.class_of(task)
        if head is None:
            continue
        try:
            config = family.config(wanted, info)
            back = written_out(typed(family.model(Config(config, CONFIG))))
        except (LookupError, TypeError, ValueError, CheckpointError):
            continue  # not of this family's shape at all
        differences = differing([dict(leaves(wanted)), dict(leaves(back))])
        lacks = [path for path in differences if path.rsplit(".", 1)[-1] not in TRAINING_ONLY]
        if not lacks:
            return Expressed(family, {**config, "architectures": [head]}, differences)
        if nearest is None or len(lacks) < len(nearest[1]):
            nearest = (family.model_types[0], lacks)
    if nearest is None:
        raise SpecError(
            f"model.type: no published family has a model like this {wanted['type']} for {task}"
        )
    raise SpecError(
        f"no published family has this model; the nearest is {nearest[0]}, which lacks"
        f" {', '.join('model.' + path for path in nearest[1][:5])}"
    )


def folder_files(
    found: Expressed,
    model: AnyModelOptions,
    info: DatasetInfo,
    task: str,
    weights: Mapping[str, Tensor],
) -> Iterator[tuple[str, Iterable[bytes | memoryview]]]:
    """The folder's files of config and weights, by name, each in pieces."""
    rules = found.family.rules(written_out(model), info, task)
    theirs = dict(exported(rules, weights))
    files = shards(WEIGHTS, theirs)
    yield from ((shard.name, shard) for shard in files)
    if len(files) > 1:
        yield INDEX, [_index(files)]
    yield CONFIG, [json.dumps(found.config, indent=2).encode() + b"\n"]


def _index(files: list[Shard]) -> bytes:
    total = sum(t.nbytes for shard in files for t in shard.tensors.values())
    named = {name: shard.name for shard in files for name in (*shard.tensors, *shard.tied)}
    return json.dumps({"metadata": {"total_size": total}, "weight_map": named}, indent=2).encode()
