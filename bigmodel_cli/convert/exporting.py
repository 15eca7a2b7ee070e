"""Writing a checkpoint as a folder that Hugging Face's `from_pretrained` opens."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from bigmodel_cli.checkpoints import safe
from bigmodel_cli.checkpoints.files import CHUNK
from bigmodel_cli.checkpoints.manifest import shard_names
from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.convert.config import IRRELEVANT, Config
from bigmodel_cli.convert.families import FAMILIES
from bigmodel_cli.convert.family import Family, written_out
from bigmodel_cli.convert.folder import CONFIG
from bigmodel_cli.convert.opening import typed
from bigmodel_cli.convert.rules import Rule, exported
from bigmodel_cli.convert.weights import INDEX, WEIGHTS
from bigmodel_cli.differences import differing, leaves
from bigmodel_cli.errors import CheckpointError, SpecError
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.models.base import AnyModelOptions

SHARD_SIZE = 5_000_000_000
"""Most bytes of tensors in a file."""
FORMAT = {"format": "pt"}
"""What transformers reads from a header: whose tensors they are."""
OWN_KEYS = {"architectures", "model_type", "dtype", "torch_dtype", "id2label", "label2id"}
TRAINING_ONLY = (
    *("dropout", "head_dropout", "drop_path"),
    *("init_std", "mask_token", "balance_weight"),
)
"""Options that change nothing once a model is trained: a class that lacks them will do."""


@dataclass(frozen=True)
class Expressed:
    """A model as a family has it: its config.json, and what of training that does not say."""

    family: Family
    config: dict[str, Any]
    left_out: list[str]


def express(
    model: AnyModelOptions,
    info: DatasetInfo,
    task: str,
    origin: Family | None = None,
    families: Sequence[Family] = FAMILIES,
) -> Expressed:
    """The family that has exactly this model, with a head for this task; `origin` before others.

    Raises `SpecError` naming the options that the nearest family lacks. That a family has a model
    is not judged by its code: the config.json that it writes is read again, and must give the same
    model.
    """
    wanted = written_out(model, info)
    # some families have no longest sequence to write, and others need one
    ways = (written_out(model, replace(info, context=None)), wanted)
    refused: list[tuple[float, str, list[str]]] = []  # the fewer differences the nearer
    for family in sorted(families, key=lambda family: family is not origin):
        head = family.class_of(task)
        for way in ways if head is not None else ():
            try:
                config = family.config(_Section.of(way), info)
                back = written_out(typed(family.model(Config(config, CONFIG))))
            except _Absent as error:  # a part of another type than the family's
                refused.append((1e6 - len(error.path), family.called(), [error.path]))
                continue
            except (LookupError, TypeError, ValueError, CheckpointError):
                continue  # not of this family's shape at all
            differences = differing([dict(leaves(way)), dict(leaves(back))])
            lacks = [path for path in differences if not _idle(path, family.unused(task))]
            if not lacks:
                return Expressed(family, {**config, "architectures": [head]}, differences)
            refused.append((len(lacks), family.called(), lacks))
    raise SpecError(_refusal(wanted, task, *min(refused, default=(0.0, "", [""]))[1:]))


def _idle(path: str, unused: tuple[str, ...]) -> bool:
    """Whether an option changes nothing once the model is trained."""
    return path.rsplit(".", 1)[-1] in TRAINING_ONLY or path.split(".")[0] in unused


def _refusal(wanted: dict[str, Any], task: str, nearest: str, lacks: list[str]) -> str:
    if not lacks[0]:
        return (
            f"model.type: no published family has a model like this {wanted['type']} for"
            f" {task or 'its hidden states alone'}"
        )
    said = dict(leaves(wanted))
    shown = [f"model.{p}: {said.get(p, said.get(f'{p}.type'))}" for p in lacks[:5]]
    return (
        f"no published family has this model; the nearest is {nearest}, which lacks"
        f" {', '.join(shown)}"
    )


class _Absent(KeyError):
    """A section of the model without an option that a family asks for."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path


class _Section(dict[str, Any]):
    """A section of the model, which knows its path."""

    path: str

    @classmethod
    def of(cls, value: Any, path: str = "") -> Any:
        """The value with all sections in it so."""
        if isinstance(value, dict):
            inner = {k: cls.of(v, f"{path}.{k}" if path else k) for k, v in value.items()}
            section = cls(inner)
            section.path = path
            return section
        if isinstance(value, list):
            return [cls.of(item, f"{path}.{i}") for i, item in enumerate(value)]
        return value

    def __missing__(self, key: str) -> Any:
        raise _Absent(self.path)


def folder_files(
    found: Expressed,
    model: AnyModelOptions,
    info: DatasetInfo,
    task: str,
    weights: Mapping[str, Tensor],
    kept: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
) -> Iterator[tuple[str, Iterable[bytes | memoryview]]]:
    """The folder's files of config and weights, by name, each in pieces.

    Of `kept`, the config.json that the model came with, what the family does not say is kept.
    Weights in fp32 are written in `dtype`; no tensor of theirs is made before its turn.
    """
    rules = list(found.family.rules(written_out(model, info), info, task))
    theirs = Theirs(rules, weights, dtype)
    groups = theirs.groups()
    names = shard_names(WEIGHTS, len(groups))
    for name, group in zip(names, groups, strict=True):
        yield name, theirs.file(group)
    if len(groups) > 1:
        yield INDEX, [_index(dict(zip(names, groups, strict=True)), theirs.described)]
    foreign = IRRELEVANT | set(found.family.ignored)
    left = {k: v for k, v in (kept or {}).items() if k in foreign and k not in OWN_KEYS}
    tokens = {k: v for k, v in left.items() if k.endswith("_token_id")}
    values = {**left, **found.config, **tokens, "dtype": theirs.dtype()}
    text = json.dumps(values, indent=2, ensure_ascii=False, sort_keys=True)
    yield CONFIG, [text.encode() + b"\n"]


class Theirs:
    """The tensors of theirs, made one by one of ours."""

    def __init__(
        self, rules: list[Rule], weights: Mapping[str, Tensor], dtype: torch.dtype | None
    ) -> None:
        self.weights = weights
        self.wanted = dtype
        self.rules = {n: list(g) for n, g in groupby(rules, lambda rule: rule.theirs)}
        self.described = {
            name: torch.empty(
                some[-1].shape(weights[some[-1].ours].detach()),
                dtype=self._dtype(weights[some[-1].ours]),
                device="meta",
            )
            for name, some in self.rules.items()
        }

    def dtype(self) -> str:
        """The dtype of most numbers."""
        sizes: dict[str, int] = {}
        for tensor in self.described.values():
            name = safe.dtype_name(tensor)
            sizes[name] = sizes.get(name, 0) + tensor.numel()
        return max(sizes, key=lambda name: sizes[name])

    def groups(self) -> list[list[str]]:
        """The names in each file."""
        groups: list[list[str]] = [[]]
        room = SHARD_SIZE
        for name in safe.file_order(self.described):
            size = self.described[name].nbytes
            if size > room and groups[-1]:
                groups.append([])
                room = SHARD_SIZE
            groups[-1].append(name)
            room -= size
        return groups

    def file(self, names: list[str]) -> Iterator[bytes | memoryview]:
        """A file's content in pieces."""
        yield safe.header({name: self.described[name] for name in names}, FORMAT)
        for name in names:
            ((_, tensor),) = exported(self.rules[name], self.weights)
            content = safe.tensor_bytes(tensor.to(self.described[name].dtype).cpu().contiguous())
            yield from (content[first : first + CHUNK] for first in range(0, len(content), CHUNK))

    def _dtype(self, ours: Tensor) -> torch.dtype:
        narrow = self.wanted is not None and ours.dtype == torch.float32
        return self.wanted if narrow and self.wanted is not None else ours.dtype


def _index(files: Mapping[str, list[str]], described: Mapping[str, Tensor]) -> bytes:
    total = sum(tensor.nbytes for tensor in described.values())
    named = {name: file for file, names in files.items() for name in names}
    return json.dumps({"metadata": {"total_size": total}, "weight_map": named}, indent=2).encode()
