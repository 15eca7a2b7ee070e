"""`bigmodel import`: the spec of a published model, as a person would write it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bigmodel_cli.config import Options
from bigmodel_cli.console import quantity, say
from bigmodel_cli.convert import hub, opening
from bigmodel_cli.convert.folder import is_folder
from bigmodel_cli.errors import SpecError
from bigmodel_cli.lazy import load_torch
from bigmodel_cli.yaml_scalars import dump_yaml


def imported_spec(given: Path) -> str:
    """The spec of the model in a folder or on the hub, as YAML; what the files hold is said.

    It has the model, the tokenizer and the task, for data of one's own. Raises `CheckpointError`.
    """
    load_torch()
    path = opening.find(given)
    if not is_folder(path):
        raise SpecError(
            f"{path}: a checkpoint of bigmodel, whose spec is in {path / 'spec.yaml'}; import is"
            " for models published elsewhere"
        )
    contents, described = opening.read(path), opening.describe(path)
    for note in contents.notes:
        say(note)
    numbers = sum(tensor.numel() for tensor in contents.model.values())
    name = hub.recorded(given, path)
    head = described.family.class_of(described.task) or described.family.model_types[0]
    say(
        f"{path}: {head}, {quantity(numbers, '')} numbers in {len(contents.model):,} tensors"
        f"{'' if described.task else ', without a head: a task gives it a new one'}"
    )
    data = {n: v for n, v in contents.spec["data"].items() if v not in (str(path), [str(path)])}
    spec = {"model": brief(described.model), "data": data, "task": contents.spec["task"]}
    return (
        f"# {name}: {head}\n"
        "# Name data and train.steps: with --set, or here. With the weights: bigmodel finetune"
        f" --from {name} THIS_FILE\n{dump_yaml(spec, flow=None)}"
    )


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
