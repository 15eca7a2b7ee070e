"""Opening a checkpoint wherever it comes from: our own format, or a folder of Hugging Face's.

A folder is read as a checkpoint of step 0: its config.json becomes the `model` section of a spec,
its weights are copied into the model by the family's rules when they are loaded.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bigmodel_cli import checkpoints
from bigmodel_cli.checkpoints import Checkpoint
from bigmodel_cli.checkpoints.contents import FACTS
from bigmodel_cli.checkpoints.files import clipped, read_file
from bigmodel_cli.checkpoints.stored import Tensors
from bigmodel_cli.checkpoints.weights import below
from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.convert import folder as folders
from bigmodel_cli.convert.families import BY_TYPE
from bigmodel_cli.convert.family import MASKED_LM, Family, written_out
from bigmodel_cli.convert.rules import Rule, check_complete, check_fit
from bigmodel_cli.data import TOKENIZER
from bigmodel_cli.errors import CheckpointError, did_you_mean
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.models import MODELS, build, within
from bigmodel_cli.models.base import AnyModelOptions

MOST_TOKENIZER = 100_000_000


def find(path: Path) -> Path:
    """The checkpoint that `path` names: see `checkpoints.find`. Raises `CheckpointError`."""
    return path if folders.is_folder(path) else checkpoints.find(path)


def read(path: Path) -> Checkpoint:
    """A checkpoint, without what only a resume needs. Raises `CheckpointError`."""
    if not folders.is_folder(path):
        return checkpoints.read(path, train_state=False)
    described = describe(path)
    return Checkpoint(
        step=0,
        model=ConvertedTensors(described, folders.open_tensors(path)),
        train=checkpoints.StoredTensors([], {}),
        state={},
        spec=described.spec(),
        info=described.info.to_json(),
        assets=_assets(path),
    )


def read_spec(path: Path) -> dict[str, Any]:
    """The resolved spec of a checkpoint. Raises `CheckpointError`."""
    if not folders.is_folder(path):
        return checkpoints.read_spec(path)
    return describe(path).spec()


def read_assets(path: Path) -> dict[str, bytes]:
    """The files of the data: facts.json, and assets such as tokenizer.json."""
    if not folders.is_folder(path):
        return checkpoints.read_assets(path)
    info = json.dumps(describe(path).info.to_json()).encode()
    return {**_assets(path), FACTS: info}


@dataclass(frozen=True)
class Described:
    """What a folder's config.json says, in our words."""

    folder: Path
    family: Family
    task: str  # what the head is for; BODY without one
    model: AnyModelOptions
    info: DatasetInfo

    def spec(self) -> dict[str, Any]:
        """A whole spec around the model, for the commands that need no more than it says."""
        return {
            "model": self.model.model_dump(mode="json"),
            "data": self.family.data(self.folder, self.info),
            "task": {"type": self.task or MASKED_LM},
            "train": {"steps": 1},
        }


def describe(folder: Path) -> Described:
    """The model in a folder. Raises `CheckpointError`."""
    config = folders.read_config(folder)
    kind = config.get("model_type", str)
    family = BY_TYPE.get(kind)
    if family is None:
        known = did_you_mean(kind, list(BY_TYPE)) or f"; known are {', '.join(sorted(BY_TYPE))}"
        raise CheckpointError(f"{config.file}: model_type: {clipped(kind)!r} is not read{known}")
    values, task = family.model(config), family.task_of(config)
    try:
        model = typed(values)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        where = ".".join(map(str, fault["loc"]))
        raise CheckpointError(f"{config.file}: model.{where}: {fault['msg']}") from None
    info = family.info(config, folder, written_out(model), task)
    config.finish(family.ignored)
    return Described(folder, family, task, model, info)


def typed(values: dict[str, Any]) -> AnyModelOptions:
    """The options of a `model` section. Raises `ValidationError`."""
    model: AnyModelOptions = MODELS[values["type"]].model_validate(values)
    return model


def _assets(path: Path) -> dict[str, bytes]:
    there = os.path.lexists(path / TOKENIZER)
    return {TOKENIZER: read_file(path / TOKENIZER, MOST_TOKENIZER)} if there else {}


class ConvertedTensors(Tensors):
    """The weights of a model of ours, by our names, in a folder of theirs.

    Buffers that no tensor of theirs gives keep the value that the network is built with. The head
    of a network that comes without one is left out.
    """

    def __init__(self, published: Described, theirs: folders.FolderTensors) -> None:
        with within(theirs, published.info.outputs), torch.device("meta"):
            built = build(published.model, published.info)
        absent = () if published.task else built.output_layers()
        self.described = {
            name: tensor for name, tensor in built.state_dict().items() if not below(name, absent)
        }
        self.theirs = theirs = theirs.renamed(published.family.renamed)
        self.rules: dict[str, list[Rule]] = {}
        model = written_out(published.model)
        rules = list(published.family.rules(model, published.info, published.task))
        learned = [name for name, _ in built.named_parameters() if name in self.described]
        check_complete(rules, self.described, learned)
        check_fit(rules, self.described, theirs)
        given = {rule.theirs for rule in rules}
        foreseen = published.family.leftovers_of(model)
        left = [
            name
            for name in theirs
            if name not in given and not any(re.fullmatch(p, name) for p in foreseen)
        ]
        if left:
            raise CheckpointError(
                f"{published.folder}: {len(left)} tensors that the model has no place for: "
                f"{', '.join(map(clipped, left[:5]))}"
            )
        for rule in rules:
            self.rules.setdefault(rule.ours, []).append(rule)

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self.described[name]
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.described)

    def __len__(self) -> int:
        return len(self.described)

    def copy_to(self, targets: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, target in targets.items():
                for rule in self.rules.get(name, ()):
                    rule.load(target, self.theirs.read(rule.theirs))

    def stream(self) -> Iterator[tuple[str, Tensor]]:
        for name in self.rules:
            yield name, self.glance(name)

    def glance(self, name: str) -> Tensor:
        tensor = torch.zeros_like(self.described[name], device="cpu")
        self.copy_to({name: tensor})
        return tensor
