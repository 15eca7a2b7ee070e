"""Writing a checkpoint as a folder that Hugging Face's `from_pretrained` opens."""

from __future__ import annotations

import json
import re
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
from bigmodel_cli.convert.family import STACKS, Family, head_of, written_out
from bigmodel_cli.convert.folder import CONFIG
from bigmodel_cli.convert.label_heads import ACTIVATION, SENTENCES
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
HEADS = {"problem_type", ACTIVATION, SENTENCES}
"""Keys of config.json that say what becomes of the outputs."""
OWN_KEYS = {
    *("architectures", "model_type", "dtype", "torch_dtype", "id2label", "label2id", "num_labels"),
    *HEADS,
}
TRAINING_ONLY = (
    *("dropout", "head_dropout", "drop_path"),
    *("init", "init_std", "mask_token", "balance", "balance_weight"),
)
"""Options that change nothing once a model is trained: a class that lacks them will do.

What balances experts may leave a bias, which `_check_nothing_is_lost` looks for.
"""
SLOTS = ("norm", "mixer", "ffn", "cross")
"""Parts of a model that may be empty."""
ROUNDING_ONLY = ("chunk",)
"""Options that say in which steps the same is computed."""


@dataclass(frozen=True)
class Expressed:
    """A model as a family has it: its config.json, and what of training that does not say."""

    family: Family
    config: dict[str, Any]
    left_out: list[str]


@dataclass(frozen=True, order=True)
class _Refused:
    """Why a family does not have a model; the smaller `rank`, the nearer it is."""

    rank: float
    family: str
    faults: list[str]


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
    # some families have no longest sequence to write, and others need one
    ways = (_plain(model, replace(info, context=None)), _plain(model, info))
    refused: list[_Refused] = []
    for family in sorted(families, key=lambda family: family is not origin):
        for way in ways if family.class_of(task) is not None else ():
            found, why = _tried(family, way, model, info, task)
            if found is not None:
                return found
            refused += why
    raise SpecError(_refusal(model.type, task, min(refused, default=None)))


def _tried(
    family: Family, way: dict[str, Any], model: AnyModelOptions, info: DatasetInfo, task: str
) -> tuple[Expressed | None, list[_Refused]]:
    """The model as this family has it, or why it has not; nothing where that says nothing."""
    absent: list[str] = []
    try:
        try:
            config = family.config(_Section.of(way, absent), info)
        except TypeError:  # a slot that it needs is empty
            config = family.config(_Section.of(way, absent, filled=True), info)
        back = _plain(typed(family.model(Config(config, CONFIG))))
    except (
        *(LookupError, TypeError, AttributeError, ArithmeticError, ValueError, AssertionError),
        CheckpointError,
    ) as error:
        said = str(error).partition("\n")[0]
        if any(absent):  # a part of another type than the family's
            return None, [_Refused(1e6 - len(absent[0]), family.called(), _shown(way, absent[:1]))]
        if isinstance(error, ValueError) and re.match(r"\w+: ", said):  # an option of a part
            return None, [_Refused(5e5, family.called(), [f"model.blocks: {said}"])]
        return None, []  # not of this family's shape at all
    if back["type"] != way["type"]:
        return None, []
    differences = differing([dict(leaves(way)), dict(leaves(back))])
    unused = family.unused(head_of(task), way)
    lacks = [path for path in differences if not _idle(path, unused)]
    faults = _shown(way, lacks or absent[:1]) or [
        f"{path}: {why}" for path, why in family.unfit(way, info)
    ]
    if faults:
        return None, [_Refused(len(faults), family.called(), faults)]
    left_out = [path for path in differences if path.rsplit(".", 1)[-1] not in ROUNDING_ONLY]
    head = family.class_of(task)
    return Expressed(family, {**config, "architectures": [head]}, left_out), []


def _plain(model: AnyModelOptions, info: DatasetInfo | None = None) -> dict[str, Any]:
    """Every option with its value; what is said although it is so anyway is left out."""
    found = written_out(model, info)
    for stack in STACKS & found.keys():
        below = f"model.{stack}".startswith(model.two_sided or "none")
        for block in found[stack]:
            mixer = block.get("mixer")
            if mixer is not None and mixer.get("causal") is (not below):
                mixer["causal"] = None
    return found


def _idle(path: str, unused: tuple[str, ...]) -> bool:
    """Whether an option changes nothing once the model is trained."""
    idle = (*TRAINING_ONLY, *ROUNDING_ONLY)
    return path.rsplit(".", 1)[-1] in idle or path.split(".")[0] in unused


def _shown(wanted: dict[str, Any], lacks: list[str]) -> list[str]:
    """Options that a family lacks, with their values."""
    said = dict(leaves(wanted))
    lacks = [p if p in said else p.removesuffix(".type") for p in lacks]
    return [f"model.{p}: {said.get(p, said.get(f'{p}.type'))}" for p in lacks]


def _refusal(kind: str, task: str, nearest: _Refused | None) -> str:
    if nearest is None:
        return (
            f"model.type: no published family has a model like this {kind} for"
            f" {task or 'its hidden states alone'}"
        )
    return (
        f"no published family has this model; the nearest is {nearest.family}, which lacks"
        f" {', '.join(nearest.faults[:5])}"
    )


class _Section(dict[str, Any]):
    """A section of the model, which knows its path; an option that it lacks is noted."""

    path: str
    absent: list[str]

    @classmethod
    def of(cls, value: Any, absent: list[str], path: str = "", filled: bool = False) -> Any:
        """The value with all sections in it so; `filled`: empty slots are sections too."""
        if filled and value is None and path.rpartition(".")[2] in SLOTS:
            value = {}
        if isinstance(value, dict):
            inner = {
                k: cls.of(v, absent, f"{path}.{k}" if path else k, filled) for k, v in value.items()
            }
            section = cls(inner)
            section.path, section.absent = path, absent
            return section
        if isinstance(value, list):
            return [cls.of(item, absent, f"{path}.{i}", filled) for i, item in enumerate(value)]
        return value

    def __missing__(self, key: str) -> None:
        self.absent.append(self.path)


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
    rules = list(found.family.rules(written_out(model, info), info, head_of(task)))
    _check_nothing_is_lost(rules, weights)
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


def _check_nothing_is_lost(rules: list[Rule], weights: Mapping[str, Tensor]) -> None:
    """Raise `SpecError` for experts chosen by a bias that was learnt and has no place in theirs.

    A model that was balanced by biases (`balance: bias`) and went on otherwise still has them.
    """
    given = {rule.ours for rule in rules}
    for name, tensor in weights.items():
        if name.endswith(".ffn.bias") and name not in given and tensor.any():
            raise SpecError(
                f"model.{name.removesuffix('.bias')}.balance: experts are chosen by a bias that an"
                " earlier training (balance: bias) left, which this family has no place for"
            )


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
