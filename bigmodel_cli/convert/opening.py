"""Opening a checkpoint wherever it comes from: our own format, or a folder of Hugging Face's.

A folder is read as a checkpoint of step 0: its config.json becomes the `model` section of a spec,
its weights are copied into the model by the family's rules when they are loaded.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bigmodel_cli import checkpoints
from bigmodel_cli.checkpoints import Checkpoint
from bigmodel_cli.checkpoints.contents import FACTS
from bigmodel_cli.checkpoints.files import clipped, read_file
from bigmodel_cli.checkpoints.stored import Tensors
from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.convert import folder as folders
from bigmodel_cli.convert.families import BY_TYPE
from bigmodel_cli.convert.family import Family, written_out
from bigmodel_cli.convert.rules import Rule, check_complete, check_fit
from bigmodel_cli.data import TOKENIZER
from bigmodel_cli.errors import CheckpointError, did_you_mean
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.models import MODELS, build, within
from bigmodel_cli.models.base import AnyModelOptions

LONGEST_WINDOW = 1024
"""Most tokens of a training window that a folder's spec asks for; the model may take more."""
MOST_TOKENIZER = 100_000_000


def find(path: Path) -> Path:
    """The checkpoint that `path` names: see `checkpoints.find`. Raises `CheckpointError`."""
    return path if folders.is_folder(path) else checkpoints.find(path)


def read(path: Path) -> Checkpoint:
    """A checkpoint, without what only a resume needs. Raises `CheckpointError`."""
    if not folders.is_folder(path):
        return checkpoints.read(path, train_state=False)
    family, model = _described(path)
    info = _info(model)
    theirs = folders.open_tensors(path)
    return Checkpoint(
        step=0,
        model=ConvertedTensors(family, model, info, theirs),
        train=checkpoints.StoredTensors([], {}),
        state={},
        spec=_spec(path, model),
        info=info.to_json(),
        assets=_assets(path),
    )


def read_spec(path: Path) -> dict[str, Any]:
    """The resolved spec of a checkpoint. Raises `CheckpointError`."""
    if not folders.is_folder(path):
        return checkpoints.read_spec(path)
    return _spec(path, _described(path)[1])


def read_assets(path: Path) -> dict[str, bytes]:
    """The files of the data: facts.json, and assets such as tokenizer.json."""
    if not folders.is_folder(path):
        return checkpoints.read_assets(path)
    info = json.dumps(_info(_described(path)[1]).to_json()).encode()
    return {**_assets(path), FACTS: info}


def _described(path: Path) -> tuple[Family, AnyModelOptions]:
    """The family of a folder, and the model of its config.json. Raises `CheckpointError`."""
    config = folders.read_config(path)
    kind = config.get("model_type", str)
    family = BY_TYPE.get(kind)
    if family is None:
        known = did_you_mean(kind, list(BY_TYPE)) or f"; known are {', '.join(sorted(BY_TYPE))}"
        raise CheckpointError(f"{config.file}: model_type: {clipped(kind)!r} is not read{known}")
    values = family.model(config)
    config.finish(family.ignored)
    try:
        return family, typed(values)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        where = ".".join(map(str, fault["loc"]))
        raise CheckpointError(f"{config.file}: model.{where}: {fault['msg']}") from None


def typed(values: dict[str, Any]) -> AnyModelOptions:
    """The options of a `model` section. Raises `ValidationError`."""
    model: AnyModelOptions = MODELS[values["type"]].model_validate(values)
    return model


def _info(model: AnyModelOptions) -> DatasetInfo:
    longest = model.longest()
    assert longest is not None, "every family gives max_len"
    vocab = dict(model)["vocab_size"]
    return DatasetInfo(vocab_size=vocab, context=min(longest, LONGEST_WINDOW))


def _spec(path: Path, model: AnyModelOptions) -> dict[str, Any]:
    """A whole spec around the model, for the commands that need no more than it says."""
    tokenizer = {"type": "file", "path": str(path / TOKENIZER)}
    return {
        "model": model.model_dump(mode="json"),
        "data": {
            "type": "text",
            "files": [str(path)],
            "context": _info(model).context,
            "tokenizer": tokenizer,
        },
        "task": {"type": "causal_lm"},
        "train": {"steps": 1},
    }


def _assets(path: Path) -> dict[str, bytes]:
    there = os.path.lexists(path / TOKENIZER)
    return {TOKENIZER: read_file(path / TOKENIZER, MOST_TOKENIZER)} if there else {}


class ConvertedTensors(Tensors):
    """The weights of a model of ours, by our names, in a folder of theirs.

    Buffers that no tensor of theirs gives keep the value that the network is built with.
    """

    def __init__(
        self,
        family: Family,
        model: AnyModelOptions,
        info: DatasetInfo,
        theirs: folders.FolderTensors,
    ) -> None:
        with within(theirs), torch.device("meta"):
            built = build(model, info)
        self.described = built.state_dict()
        self.theirs = theirs
        self.rules: dict[str, list[Rule]] = {}
        rules = list(family.rules(written_out(model)))
        check_complete(rules, dict(built.named_parameters()))
        check_fit(rules, self.described, theirs)
        given = {rule.theirs for rule in rules}
        left = [
            name
            for name in theirs
            if name not in given and not any(re.fullmatch(p, name) for p in family.leftovers)
        ]
        if left:
            raise CheckpointError(
                f"{len(left)} tensors that the model has no place for: "
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
