"""`bigmodel import`: the spec of a published model, as a person would write it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bigmodel_cli.config import Options
from bigmodel_cli.console import say_once
from bigmodel_cli.convert import hub, opening, torchvision
from bigmodel_cli.convert.family import NO_DATA
from bigmodel_cli.convert.folder import is_folder
from bigmodel_cli.errors import SpecError
from bigmodel_cli.lazy import load_torch
from bigmodel_cli.yaml_scalars import dump_yaml


def imported_spec(given: Path) -> str:
    """The spec of the model in a folder, on the hub or in a file of torchvision's, as YAML.

    What the files hold is said. It has the model, the tokenizer and the task, for data of one's
    own. Raises `CheckpointError`.
    """
    load_torch()
    path = opening.find(given)
    weights = torchvision.is_weights_file(path)
    if not weights and not is_folder(path):
        raise SpecError(
            f"{path}: a checkpoint of bigmodel, whose spec is in {path / 'spec.yaml'}; import is"
            " for models published elsewhere"
        )
    contents = opening.read(path)
    for note in contents.notes:
        say_once(note)
    name = hub.recorded(given, path)
    head = f"torchvision's {torchvision.describe(path).name}" if weights else _class_of(path)
    model = opening.typed(contents.spec["model"])
    data = {n: v for n, v in contents.spec["data"].items() if NO_DATA not in (v, *_items(v))}
    spec = {"model": brief(model), "data": data, "task": contents.spec["task"]}
    return (
        f"# {name}: {head}\n"
        "# Name data and train.steps: with --set, or here. With the weights: bigmodel finetune"
        f" --from {name} THIS_FILE\n{dump_yaml(spec, flow=None)}"
    )


def _class_of(folder: Path) -> str:
    """The class of transformers, or the family where it is another library's."""
    described = opening.describe(folder)
    return described.family.class_of(described.task) or described.family.called()


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def brief(options: Options) -> dict[str, Any]:
    """The options without those that have their default."""
    fields, values = type(options).model_fields, dict(options)
    named = {"type": values["type"]} if "type" in values else {}
    return named | {
        name: _brief(value)
        for name, value in values.items()
        if value != fields[name].get_default(call_default_factory=True)
    }


def _brief(value: Any) -> Any:
    """A word for options that have nothing but a type."""
    if isinstance(value, Options):
        found = brief(value)
        return found["type"] if found.keys() == {"type"} else found
    return [_brief(item) for item in value] if isinstance(value, list | tuple) else value
