"""The spec: one YAML file says everything about a run.

`load` reads a file, applies ``--set`` overrides by path, checks the whole tree, and reports every
fault in one go as ``file:line:column: path: what; did you mean ...``. The YAML path is the
attribute path is the error path.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pydantic
from pydantic import Field, PrivateAttr, model_validator

from bigmodel_cli.adapters import AdapterOptions
from bigmodel_cli.config import Options
from bigmodel_cli.console import visible
from bigmodel_cli.data import SOURCES, TOKENIZERS, DataOptions
from bigmodel_cli.errors import CheckpointError, OptionError, SpecError
from bigmodel_cli.explain import explain, placed
from bigmodel_cli.inherit import BASE, read_inheriting
from bigmodel_cli.models import ModelOptions, learners
from bigmodel_cli.old_names import with_present_names
from bigmodel_cli.overrides import Change, apply_overrides, key_of
from bigmodel_cli.plugins import PLUGINS, missing_plugins, needed_plugins, parts_from_files
from bigmodel_cli.recipe import TrainOptions
from bigmodel_cli.start_options import InitOptions
from bigmodel_cli.tables import TABLES
from bigmodel_cli.tasks import TaskOptions
from bigmodel_cli.teacher_options import DistillOptions
from bigmodel_cli.yaml_scalars import dump_yaml
from bigmodel_cli.yaml_source import (
    MAX_RESOLVED,
    MAX_RESOLVED_NODES,
    Node,
    read_yaml,
    tree_of,
)

NUMBER = re.compile("[0-9]{1,9}")
"""The number of an item in a path."""


@dataclass(frozen=True)
class Source:
    """The tree that a spec was read from; `recorded` are the places of what a checkpoint says.

    Specs are equal whatever they were read from.
    """

    root: Node | None = field(default=None, compare=False)
    recorded: frozenset[str] = field(default=frozenset(), compare=False)


class Spec(Options):
    """A whole run: the network, its data, what it learns, how it is trained and what it starts
    from.
    """

    model: ModelOptions = Field(description="the network")
    data: DataOptions = Field(description="where samples come from")
    task: TaskOptions = Field(description="what is learnt and how it is judged")
    train: TrainOptions = Field(description="how it is trained")
    init: InitOptions = Field(InitOptions(), description="what the weights start from")
    distill: DistillOptions | None = Field(None, description="a teacher to learn from")
    adapter: AdapterOptions | None = Field(
        None, description="train a few numbers beside the weights, which are frozen"
    )
    _source: Source = PrivateAttr(Source())

    @model_validator(mode="after")
    def _fitting(self) -> Spec:
        able = learners(self.task.output)
        self.model.check_output(self.task.output, self.task.type)
        if self.model.type not in able:
            raise ValueError(self.task.unlearnable(self.model.type, able))
        if self.data.isolates() and not self.task.isolates:
            raise ValueError(
                f"data.isolate is for task.type: causal_lm, and task.type is {self.task.type}"
            )
        if self.init.checkpoint is None and (self.init.layers or self.init.leave_out):
            name = "layers" if self.init.layers else "leave_out"
            raise ValueError(
                f"init.{name}: there is no checkpoint to take weights from; leave it out, or name"
                " one: bigmodel finetune --from CKPT SPEC"
            )
        if self.adapter is not None and (self.init.freeze or self.init.train != "all"):
            raise ValueError(
                "init.freeze and init.train have no effect with an adapter, which freezes all"
                " weights but adapter.modules_to_save; leave them out"
            )
        if self.adapter is not None and self.train.compile == "on" and self.adapter.drops():
            raise ValueError(
                "adapter.dropout: torch.compile sums each adapted weight, so that no input of its"
                " factors can be dropped; set it to 0, or train.compile: off"
            )
        if self.adapter is not None and self.adapter.base and self.train.compile == "on":
            raise ValueError(
                "adapter.base: torch.compile reads no weights of 4 bits; set train.compile: off"
            )
        return self

    @contextlib.contextmanager
    def placing(self) -> Iterator[None]:
        """Inside, something is built from the options: a fault is reported with its position, as
        those of typing are.
        """
        try:
            yield
        except OptionError as error:
            raise (
                error if self._source.root is None else SpecError(placed(self._source.root, error))
            ) from None

    def says_depth(self, stack: str) -> bool:
        """Whether the file or --set says how many blocks a stack of the model has, and not a
        checkpoint.
        """
        root = self._source.root
        model = root.value["model"].value if root is not None else {}
        blocks = model.get(stack) if isinstance(model, dict) else None
        if blocks is None or not isinstance(blocks.value, list):
            return False
        items = [node.value for node in blocks.value if isinstance(node.value, dict)]
        places = {blocks.where} | {item["repeat"].where for item in items if "repeat" in item}
        return not places <= self._source.recorded

    def to_dict(self) -> dict[str, Any]:
        """Every option with its value, as plain YAML types: the resolved spec that a checkpoint
        keeps.
        """
        return self.model_dump(mode="json")

    def recorded(self) -> dict[str, Any]:
        """The same with the plugin files that it needs: what a checkpoint and a run's directory
        keep.
        """
        files = sorted({visible(part.file.name) for part in parts_from_files(self)})
        return {**self.to_dict(), **({PLUGINS: files} if files else {})}

    def to_yaml(self) -> str:
        """The recorded spec as YAML text."""
        return dump_yaml(self.recorded())


def load(
    path: Path, overrides: Iterable[Change] = (), base: Mapping[str, Any] | None = None
) -> Spec:
    """The checked spec of a file.

    `overrides` are ``KEY=VALUE`` with a dotted path as key. `base` is a resolved spec whose
    top-level sections, and the data's tokenizers, are used where the file leaves them out, or a
    section that a spec must have is null (finetuning). Raises `SpecError` with one line
    for each fault.
    """
    root = read_inheriting(path, Spec)
    if root.value is None:
        raise SpecError(f"{path}: empty; `bigmodel init NAME` writes a sample spec")
    if isinstance(root.value, dict):
        recorded = with_present_names(base or {})
        places = {name: f"{name} of the checkpoint" for name in recorded}
        for name in recorded.keys() - root.value.keys():
            root.value[name] = tree_of(recorded[name], places[name])
        _carry_tokenizers(root.value.get("data"), recorded.get("data", {}))
        changes = list(overrides)
        if BASE in map(key_of, changes):
            raise SpecError(
                f"--set {BASE}: a spec names its base in its file; write {BASE}: other.yaml at"
                " its top"
            )
        apply_overrides(root, changes, Spec)
        for name in recorded:
            if root.value[name].value is None and Spec.model_fields[name].is_required():
                root.value[name] = tree_of(recorded[name], places[name])
        return check(root, places.values())
    return check(root)


def _carry_tokenizers(data: Node | None, recorded: Mapping[str, Any]) -> None:
    """The recorded tokenizers, in a file's data section of a type that has them.

    Where the recorded data is of that type too, all that it carries.
    """
    if data is None or not isinstance(data.value, dict) or "type" not in data.value:
        return
    options = SOURCES.get(data.value["type"].value)
    alike = options is not None and data.value["type"].value == recorded.get("type")
    for name in options.carried if options is not None and alike else TOKENIZERS:
        known = options is not None and name in options.model_fields
        if known and name not in data.value and recorded.get(name) is not None:
            data.value[name] = tree_of(recorded[name], f"data.{name} of the checkpoint")


def from_dict(
    values: Mapping[str, Any], overrides: Iterable[Change] = (), name: str = "spec.yaml"
) -> Spec:
    """The checked spec of plain values (a checkpoint's), with overrides applied.

    Raises `SpecError`.
    """
    root = tree_of(with_present_names(values), name)
    apply_overrides(root, overrides, Spec)
    return check(root, [name])


def load_recorded(path: Path) -> Spec:
    """The checked spec of the file that a run keeps of its own. Raises `SpecError`."""
    values = read_yaml(path, MAX_RESOLVED, MAX_RESOLVED_NODES).plain()
    return from_dict(values if isinstance(values, dict) else {}, name=str(path))


def of_checkpoint(values: Mapping[str, Any], path: Path, overrides: Iterable[Change] = ()) -> Spec:
    """The checked spec of the checkpoint at `path`, with overrides applied.

    Raises `CheckpointError` where this version cannot read it, and `SpecError` for a fault of the
    overrides.
    """
    name = str(path / "spec.yaml")
    try:
        spec = from_dict(values, name=name)
    except SpecError as error:
        # the command lacks --plugin: not a fault of the checkpoint
        if missing_plugins(values.get(PLUGINS)):
            raise
        faults = str(error).splitlines()
        more = f"\nand {len(faults) - 5} more" if len(faults) > 5 else ""
        raise CheckpointError(
            "\n".join(faults[:5]) + f"{more}\n(damaged, or of another version of bigmodel)"
        ) from None
    return from_dict(values, overrides, name) if overrides else spec


def check(root: Node, recorded: Iterable[str] = ()) -> Spec:
    """Type the tree; keys at its top that begin with x- are left out. `recorded` are the places of
    what a checkpoint says.

    Raises `SpecError` with one line per fault.
    """
    if not isinstance(root.value, dict):
        blank = isinstance(root.value, str) and ":" in root.value
        hint = "; write a blank after each colon" if blank else ""
        raise SpecError(
            f"{root.where}: a spec is a mapping with the keys model, data, task, train{hint}"
        )
    plain = root.plain()
    free = {name: value for name, value in plain.items() if name.startswith("x-")}
    try:
        spec = Spec.model_validate(
            {name: value for name, value in plain.items() if name not in free}
        )
    except pydantic.ValidationError as error:
        faults = error.errors(include_url=False)
        notes = dict.fromkeys(
            [*(table.kind for table in TABLES), "trackers"], needed_plugins(free.get(PLUGINS))
        )
        raise SpecError(explain(root, Spec, faults, notes)) from None
    if (
        count := _count(spec.to_dict())
    ) > MAX_RESOLVED_NODES:  # the checkpoint could not be read back
        raise SpecError(
            f"{root.where}: {count:,} values once resolved, and at most {MAX_RESOLVED_NODES:,} are"
            " read; use `repeat`"
        )
    spec._source = Source(root, frozenset(recorded))
    return spec


def _count(value: Any) -> int:
    """The number of YAML nodes in these plain values."""
    if isinstance(value, dict):
        return 1 + sum(1 + _count(inner) for inner in value.values())
    return 1 + sum(_count(inner) for inner in value) if isinstance(value, list) else 1
