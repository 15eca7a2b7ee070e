"""Opening a checkpoint wherever it comes from: our own format, or a folder of Hugging Face's.

A folder is read as a checkpoint of step 0: its config.json becomes the `model` section of a spec,
its weights are copied into the model by the family's rules when they are loaded.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bigmodel_cli import checkpoints
from bigmodel_cli.checkpoints import Checkpoint
from bigmodel_cli.checkpoints.contents import FACTS
from bigmodel_cli.checkpoints.files import clipped
from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.console import quantity
from bigmodel_cli.convert import based, hub, torchvision
from bigmodel_cli.convert import folder as folders
from bigmodel_cli.convert.assets import read_assets as _assets
from bigmodel_cli.convert.assets import read_with_notes
from bigmodel_cli.convert.config import Config
from bigmodel_cli.convert.converted import ConvertedTensors
from bigmodel_cli.convert.families import BY_TYPE, FAMILIES, TIMM
from bigmodel_cli.convert.family import Family, written_out
from bigmodel_cli.convert.weights import FolderTensors, open_tensors
from bigmodel_cli.errors import CheckpointError, did_you_mean
from bigmodel_cli.models import MODELS
from bigmodel_cli.models.base import AnyModelOptions

PRECISIONS = {"bfloat16": "bf16", "float16": "fp16"}
"""The dtype that weights are stored in -> the precision that they are used in."""


def find(path: Path) -> Path:
    """The checkpoint that `path` names: see `checkpoints.find`; a model of the hub is fetched.

    Raises `CheckpointError`.
    """
    if hub.is_hub(path):
        return hub.named(path, hub.fetched(path))
    return path if is_published(path) else checkpoints.find(path)


def is_published(path: Path) -> bool:
    """Whether a checkpoint is in another layout than ours: it comes without data."""
    return folders.is_folder(path) or torchvision.is_weights_file(path)


def title(path: Path) -> str:
    """What a checkpoint is called: as its run, else its folder, in the hub's cache the model."""
    if path.parent.name == "snapshots":
        return path.parent.parent.name.removeprefix("models--")
    run = path.parent.parent if path.parent.name == "checkpoints" else path
    return run.absolute().name


def read(path: Path) -> Checkpoint:
    """A checkpoint, without what only a resume needs. Raises `CheckpointError`."""
    if torchvision.is_weights_file(path):
        return torchvision.describe(path).checkpoint()
    if not folders.is_folder(path):
        return whole(checkpoints.read(path, train_state=False), path)
    described, theirs = describe(path), open_tensors(path)
    model = ConvertedTensors(
        described.family, described.model, described.info, described.task, theirs, path
    )
    assets, said = read_with_notes(path)
    return Checkpoint(
        step=0,
        model=model,
        train=checkpoints.StoredTensors([], {}),
        state={},
        spec=described.spec(theirs),
        info=described.info.to_json(),
        assets=assets,
        headless=not described.task,
        notes=(described.title(theirs), *described.notes, *theirs.notes, *model.notes, *said),
    )


def whole(found: Checkpoint, path: Path) -> Checkpoint:
    """A checkpoint of ours with the weights that it leaves out, if any (see `based`)."""
    return based.whole(found, path, read)


def read_spec(path: Path) -> dict[str, Any]:
    """The resolved spec of a checkpoint. Raises `CheckpointError`."""
    if torchvision.is_weights_file(path):
        return torchvision.describe(path).spec()
    if not folders.is_folder(path):
        return checkpoints.read_spec(path)
    return describe(path).spec(open_tensors(path))


def read_assets(path: Path) -> dict[str, bytes]:
    """The files of the data: facts.json, and assets such as tokenizer.json."""
    if torchvision.is_weights_file(path):
        return {FACTS: json.dumps(torchvision.describe(path).info.to_json()).encode()}
    if not folders.is_folder(path):
        return checkpoints.read_assets(path)
    info = json.dumps(describe(path).info.to_json()).encode()
    return {**_assets(path), FACTS: info}


@dataclass(frozen=True)
class Described:
    """What a folder's config.json says, in our words; `notes` are what is to be said of it."""

    folder: Path
    family: Family
    task: str  # what the head is for; BODY without one
    model: AnyModelOptions
    info: DatasetInfo
    notes: tuple[str, ...]

    def title(self, theirs: FolderTensors) -> str:
        """What is in the folder, in a line."""
        head = self.family.class_of(self.task) or self.family.called()
        numbers = sum(tensor.numel() for tensor in theirs.values())
        said = "" if self.task else ", without a head: a task gives it a new one"
        return (
            f"{self.folder}: {head}, {quantity(numbers, '').rstrip()} numbers in {len(theirs):,}"
            f" tensors, most in {theirs.dtype()}{said}"
        )

    def spec(self, theirs: FolderTensors) -> dict[str, Any]:
        """A whole spec around the model, for the commands that need no more than it says.

        What is stored in bf16 or fp16 is used in that precision.
        """
        stored = PRECISIONS.get(theirs.dtype(), "auto")
        return {
            "model": self.model.model_dump(mode="json"),
            "data": self.family.data(self.folder, self.info),
            "task": {
                "type": self.task or self.family.without_head,
                **self.family.task_options(),
            },
            "train": {"steps": 1, "precision": stored},
        }


def describe(folder: Path) -> Described:
    """The model in a folder. Raises `CheckpointError`."""
    config = folders.read_config(folder)
    family = family_of(config)
    if family is None:
        raise CheckpointError(f"{config.file}: {_unread(config)}")
    try:
        model = typed({**family.model(config), **family.beside(folder)})
        task = family.task_of(config)
        info = family.info(config, folder, written_out(model), task)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        where = ".".join(map(str, fault["loc"]))
        raise CheckpointError(f"{config.file}: model.{where}: {fault['msg']}") from None
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        # what a value of the wrong kind deep within it comes to
        raise CheckpointError(
            f"{config.file}: not a config of this family ({type(error).__name__}:"
            f" {clipped(str(error), 100)}); {folders.ANOTHER}"
        ) from None
    config.finish(family.ignored)
    return Described(folder, family, task, model, info, tuple(config.notes))


def typed(values: dict[str, Any]) -> AnyModelOptions:
    """The options of a `model` section. Raises `ValidationError`."""
    model: AnyModelOptions = MODELS[values["type"]].model_validate(values)
    return model


def family_of(config: Config) -> Family | None:
    """The family that reads a config.json, if any."""
    return next((family for family in (*FAMILIES, *TIMM) if family.reads(config)), None)


def _unread(config: Config) -> str:
    """That no family reads this config.json, and which come near."""
    named = config.values.get("architecture")
    if "model_type" not in config.values and isinstance(named, str):
        return (
            f"architecture: {clipped(named)!r} of timm is not read; what is: plain vit_ and deit_"
            " networks with a class token, and the ResNets that torchvision has too"
        )
    kind = config.get("model_type", str)
    known = did_you_mean(kind, list(BY_TYPE)) or f"; known are {', '.join(sorted(BY_TYPE))}"
    return f"model_type: {clipped(kind)!r} is not read{known}"
