"""The spec: one YAML file says everything about a run.

`load` reads a file, applies ``--set`` overrides by path, checks the whole tree, and reports every fault in one go as
``file:line:column: path: what; did you mean ...``. The YAML path is the attribute path is the error path.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pydantic
import yaml
from pydantic import Field, model_validator

from bigmodel_cli.config import Options
from bigmodel_cli.data import DataOptions
from bigmodel_cli.errors import SpecError, did_you_mean
from bigmodel_cli.models import ModelOptions, ViTOptions
from bigmodel_cli.recipe import InitOptions, TrainOptions
from bigmodel_cli.tasks import MaskedImageOptions, TaskOptions
from bigmodel_cli.yaml_source import Node, parse_value, read_yaml

NUMBER = re.compile("[0-9]{1,9}")
"""The place of an item in a list."""
LEARNERS = {
    "causal_lm": ("decoder",),
    "masked_lm": ("encoder",),
    "seq2seq": ("seq2seq",),
    "classification": ("encoder", "vit", "cnn", "torchvision"),
    "masked_image": ("vit",),
    "ctc": ("encoder",),
}
"""What each task is learnt by: another model cannot compute it, or sees what it is to foretell."""


class Spec(Options):
    """A whole run: the network, its data, what it learns, how it is trained and what it starts from."""

    model: ModelOptions = Field(description="the network")
    data: DataOptions = Field(description="where samples come from")
    task: TaskOptions = Field(description="what is learnt and how it is judged")
    train: TrainOptions = Field(description="how it is trained")
    init: InitOptions = Field(InitOptions(), description="what the weights start from")

    @model_validator(mode="after")
    def _rebuilding(self) -> Spec:
        rebuilds = isinstance(self.model, ViTOptions) and self.model.reconstruct is not None
        if isinstance(self.task, MaskedImageOptions) and not rebuilds:
            raise ValueError(
                f"task.type: masked_image rebuilds hidden patches, and model.type: {self.model.type} "
                f"{'has no decoder; give model.reconstruct' if self.model.type == 'vit' else 'cannot; use vit with reconstruct'}"
            )
        if rebuilds and not isinstance(self.task, MaskedImageOptions):
            raise ValueError(
                f"model.reconstruct is for task.type: masked_image; set it to null for task.type: {self.task.type}"
            )
        return self

    @model_validator(mode="after")
    def _learnable(self) -> Spec:
        if self.model.type not in LEARNERS[self.task.type]:
            raise ValueError(
                f"task.type: {self.task.type} is learnt by model.type: {' or '.join(LEARNERS[self.task.type])}, and "
                f"model.type is {self.model.type}"
            )
        return self

    @model_validator(mode="after")
    def _isolated(self) -> Spec:
        if getattr(self.data, "isolate", False) and self.task.type != "causal_lm":
            raise ValueError(f"data.isolate is for task.type: causal_lm, and task.type is {self.task.type}")
        return self

    def to_dict(self) -> dict[str, Any]:
        """Every option with its value, as plain YAML types: the resolved spec that a checkpoint keeps."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """The resolved spec as YAML text."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, width=110)


@dataclass(frozen=True)
class Override:
    """A value for the option with this dotted key, taken as it is; `place` stands for it in messages."""

    key: str
    value: Any
    place: str


def load(path: Path, overrides: Iterable[str | Override] = (), base: Mapping[str, Any] | None = None) -> Spec:
    """The checked spec of a file.

    `overrides` are ``KEY=VALUE`` with a dotted path as key. `base` is a resolved spec whose top-level sections stand in for
    those that the file leaves out (finetuning). Raises `SpecError` with one line for each fault.
    """
    root = read_yaml(path)
    if root.value is None:
        raise SpecError(f"{path}: empty; `bigmodel init NAME` writes a sample spec")
    if not isinstance(root.value, dict):
        raise SpecError(f"{root.where}: a spec is a mapping with the keys model, data, task, train")
    for name in [name for name in root.value if name.startswith("x-")]:
        del root.value[name]
    for name in (base or {}).keys() - root.value.keys():
        root.value[name] = _wrap((base or {})[name], f"{name} of the checkpoint")
    for override in overrides:
        apply_override(root, override)
    return check(root)


def from_dict(values: Mapping[str, Any], overrides: Iterable[str | Override] = (), name: str = "spec.yaml") -> Spec:
    """The checked spec of plain values (a checkpoint's), with overrides applied. Raises `SpecError`."""
    root = _wrap(dict(values), name)
    for override in overrides:
        apply_override(root, override)
    return check(root)


def check(root: Node) -> Spec:
    """Type the tree. Raises `SpecError` with one line per fault, in the order of the file."""
    try:
        return Spec.model_validate(root.plain())
    except pydantic.ValidationError as error:
        faults = [describe(root, fault) for fault in error.errors(include_url=False)]
    unique = list(dict.fromkeys(sorted(faults)))
    raise SpecError("\n".join(text for _, text in unique))


def apply_override(root: Node, override: str | Override) -> None:
    """Put the value of ``a.b.0.c=VALUE`` into the tree, making the mappings on its way. Raises `SpecError`."""
    if isinstance(override, Override):
        _put(root, override.key.split("."), _wrap(override.value, override.place), override.place)
        return
    key, equals, text = override.partition("=")
    path = key.split(".")
    place = f"--set {override}"
    if not equals or not all(path):
        raise SpecError(f"{place}: write --set KEY=VALUE with a dotted key, for instance --set train.steps=100")
    _put(root, path, parse_value(text, place), place)


def _put(root: Node, path: list[str], value: Node, place: str) -> None:
    node = root
    for index, part in enumerate(path):
        last = index == len(path) - 1
        if isinstance(node.value, list):
            if not NUMBER.fullmatch(part) or int(part) >= len(node.value):
                raise SpecError(
                    f"{place}: {'.'.join(path[:index])} has the items 0 to {len(node.value) - 1}, not {part!r}"
                )
            if last:
                node.value[int(part)] = value
            else:
                copied = _copy(node.value[int(part)])
                node.value[int(part)] = copied
                node = copied
            continue
        if not isinstance(node.value, dict):
            if node.value is not None:
                raise SpecError(f"{place}: {'.'.join(path[:index])} is a value, and has no {part!r} inside")
            node.value = {}
        if last:
            node.value[part] = value
        else:
            node.value[part] = _copy(node.value[part]) if part in node.value else Node({}, place)
        node.keys[part] = place
        node = node.value[part]


def describe(root: Node, fault: Any) -> tuple[tuple[int, int, int], str]:
    """One of pydantic's faults as (position to sort by, 'file:line:column: path: what; did you mean ...')."""
    node, path, where = root, [], root.where
    location = list(fault["loc"])
    for index, part in enumerate(location):
        if isinstance(node.value, dict) and part in node.value:
            where = (
                node.keys.get(str(part), node.where) if fault["type"] == "extra_forbidden" else node.value[part].where
            )
            node = node.value[part]
            path.append(str(part))
        elif isinstance(node.value, list) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            where = node.where
            path.append(str(part))
        elif index == len(location) - 1 and fault["type"] == "missing":
            path.append(str(part))
        # else: the tag of a union, which is no place in the file
    return _position(where), f"{where}: {'.'.join(path) or 'spec'}: {_what(fault, path)}"


def _what(fault: Any, path: list[str]) -> str:
    kind, context = fault["type"], fault.get("ctx", {})
    if kind == "extra_forbidden":
        return "unknown option" + did_you_mean(path[-1], _siblings(fault["loc"]))
    if kind == "missing":
        return "missing; this option has no default"
    if kind == "union_tag_not_found":
        return f"missing `type`; one of {_names(_tags(fault['loc']))}"
    if kind == "union_tag_invalid":
        tags = _tags(fault["loc"])
        return f"unknown type {context['tag']!r}; one of {_names(tags)}{did_you_mean(str(context['tag']), tags)}"
    if kind == "literal_error":
        choices = [c.strip("' ") for c in context["expected"].replace(" or ", ", ").split(", ")]
        return f"{_shown(fault['input'])} is not one of {_names(choices)}{did_you_mean(str(fault['input']), choices)}"
    if kind == "value_error":
        return str(context["error"])
    if kind == "finite_number":
        return f"{_shown(fault['input'])} is not a finite number"
    message = fault["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    return f"{_shown(fault['input'])} is not {message}" if message != fault["msg"] else message


def _classes_at(location: Iterable[Any]) -> list[type[Options]]:
    """The classes of options that may stand at one of pydantic's error locations."""
    classes: list[type[Options]] = [Spec]
    for part in location:
        tagged = [c for c in classes if _tag(c) == part] if len(classes) > 1 else []
        if tagged:  # a union's place is followed by the type that was chosen, which may be called as some field is
            classes = tagged
            continue
        holders = [c for c in classes if part in c.model_fields]
        if holders:
            classes = [inner for c in holders for inner in _classes_in(c.model_fields[part].annotation)]
    return classes


def _classes_in(annotation: Any) -> list[type[Options]]:
    """The classes of options that an annotation such as ``list[Annotated[A | B, ...]] | None`` is made of."""
    if isinstance(annotation, type) and issubclass(annotation, Options):
        return [annotation]
    return [inner for argument in get_args(annotation) for inner in _classes_in(argument)]


def _tag(options: type[Options]) -> str | None:
    field = options.model_fields.get("type")
    return str(field.default) if field is not None else None


def _siblings(location: tuple[Any, ...]) -> list[str]:
    return [name for options in _classes_at(location[:-1]) for name in options.model_fields]


def _tags(location: tuple[Any, ...]) -> list[str]:
    return [tag for options in _classes_at(location) if (tag := _tag(options))]


def _names(names: Iterable[str]) -> str:
    return ", ".join(names)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _position(where: str) -> tuple[int, int, int]:
    """Faults of options given on the command line come first, then those of the file by line and column."""
    pieces = where.rsplit(":", 2)
    if where.startswith("--set") or len(pieces) < 3 or not (pieces[1].isdigit() and pieces[2].isdigit()):
        return 0, 0, 0
    return 1, int(pieces[1]), int(pieces[2])


def _wrap(value: Any, place: str) -> Node:
    """Plain values as a tree whose every node has the same place."""
    if isinstance(value, Mapping):
        return Node({str(k): _wrap(v, place) for k, v in value.items()}, place, {str(k): place for k in value})
    if isinstance(value, list):
        return Node([_wrap(v, place) for v in value], place)
    return Node(value, place)


def _copy(node: Node) -> Node:
    """A copy one level deep: an override below an alias must not change the anchor's other uses."""
    value = (
        dict(node.value)
        if isinstance(node.value, dict)
        else list(node.value)
        if isinstance(node.value, list)
        else node.value
    )
    return Node(value, node.where, dict(node.keys), node.size)
