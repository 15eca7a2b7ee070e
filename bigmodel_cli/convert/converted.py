"""The weights of a model of ours in files of theirs, converted as they are read."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from bigmodel_cli.checkpoints.files import clipped
from bigmodel_cli.checkpoints.places import Complete, refused
from bigmodel_cli.checkpoints.safe import dtype_name
from bigmodel_cli.checkpoints.stored import Tensors
from bigmodel_cli.checkpoints.weights import below
from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.console import counted
from bigmodel_cli.convert.family import BODY, CLASSIFICATION, TAGGING, Family, head_of, written_out
from bigmodel_cli.convert.rules import Rule, check_complete, check_fit
from bigmodel_cli.convert.weights import FolderTensors, Stored
from bigmodel_cli.errors import CheckpointError
from bigmodel_cli.lazy import Module, Tensor, torch
from bigmodel_cli.models import Model, build, within
from bigmodel_cli.models.base import AnyModelOptions

SPARE, TIMES = 4_000_000, 30
"""Numbers that a model may have beside those in the files, and per number of them."""
HEADLESS = (BODY, CLASSIFICATION, TAGGING)
FLOATS = (torch.float32, torch.bfloat16, torch.float16)


class ConvertedTensors(Tensors):
    """The weights by our names; they are read from the files as they are copied.

    Buffers that no tensor of theirs gives keep the value that the network is built with. The head
    of a network that comes without one is left out. Raises `CheckpointError` for files that do not
    fit.
    """

    def __init__(
        self,
        family: Family,
        options: AnyModelOptions,
        info: DatasetInfo,
        task: str,
        theirs: FolderTensors,
        folder: Path,
    ) -> None:
        task = head_of(task)
        built = _outline(options, info, theirs, folder)
        absent = () if task else built.output_layers()
        self.described = {
            name: tensor for name, tensor in built.state_dict().items() if not below(name, absent)
        }
        self.tied = {n: of for n, of in _tied(built).items() if n in self.described}
        learned = [name for name, _ in built.named_parameters() if name in self.described]
        rules = list(family.rules(written_out(options), info, task))
        check_complete(rules, self.described, learned)
        spare = _spare(family, options, info, theirs, folder) if task != CLASSIFICATION else []
        wanted = [rule.theirs for rule in (*rules, *(rule for rule, _ in spare))]
        there = _named_today(family, theirs, folder, wanted)
        if all(rule.theirs in there for rule, _ in spare):
            rules += [rule for rule, _ in spare]
            self.described |= {rule.ours: tensor for rule, tensor in spare}
        self.spare = tuple(p for p in family.spare if any(below(n, (p,)) for n in self.described))
        check_fit(rules, self.described, {name: theirs[at] for name, at in there.items()})
        given = {rule.theirs for rule in rules}
        self.stored = {name: theirs.stored[at] for name, at in there.items()}
        copies = {n: of for n, of in family.copies.items() if n in there and n not in given}
        if task in HEADLESS:  # without the logits of tokens, whose matrix it would be
            copies = {}
        for name, of in copies.items():
            _check_equal(name, of, self.stored, folder)
        given |= copies.keys()
        foreseen = family.leftovers_of(written_out(options))
        left = _ignored([name for name in there if name not in given], foreseen, folder)
        for rule in rules:
            name, dtype = rule.theirs, self.stored[rule.theirs].described.dtype
            counts = dtype == self.described[rule.ours].dtype  # of batches, such as BatchNorm's
            if dtype not in FLOATS and not counts:
                raise CheckpointError(
                    f"{folder}: {clipped(name)}: {dtype_name(self.stored[name].described)}; weights"
                    " are read in fp32, bf16 or fp16"
                )
        self.rules: dict[str, list[Rule]] = {}
        for rule in rules:
            self.rules.setdefault(rule.ours, []).append(rule)
        self.notes = [f"{folder}: ignored: {left}"] if left else []

    def hold_as_stored(self, model: Module) -> None:
        for name, own in (*model.named_parameters(), *model.named_buffers()):
            dtypes = {self.stored[r.theirs].described.dtype for r in self.rules.get(name, ())}
            if len(dtypes) == 1:
                own.data = torch.empty_like(own, dtype=dtypes.pop())
        held = model.state_dict()
        self.described = {n: t.to(held[n].dtype) for n, t in self.described.items() if n in held}

    def copy_to(self, targets: Mapping[str, Tensor], complete: Complete = refused) -> None:
        there = {name: t for name, t in targets.items() if not t.is_meta}
        self._copy([(r, t) for name, t in there.items() for r in self.rules.get(name, ())])
        alone = [name for name in targets.keys() - there.keys() if name in self.rules]
        # each by itself, whichever files it is in
        for name in sorted(alone, key=lambda name: min(map(self._place, self.rules[name]))):
            tensor = torch.empty_like(targets[name], device="cpu")
            self._copy([(rule, tensor) for rule in self.rules[name]])
            complete(name, tensor)
            del tensor  # before the next is read

    def _copy(self, jobs: Iterable[tuple[Rule, Tensor]]) -> None:
        with torch.no_grad():
            for rule, target in sorted(jobs, key=lambda job: self._place(job[0])):
                _copy(rule, target, self.stored[rule.theirs])

    def _place(self, rule: Rule) -> tuple[Path, int]:
        return self.stored[rule.theirs].place

    def stream(self) -> Iterator[tuple[str, Tensor]]:
        for name in self.rules:
            yield name, self.glance(name)

    def glance(self, name: str) -> Tensor:
        tensor = torch.zeros_like(self.described[name], device="cpu")
        self.copy_to({name: tensor})
        return tensor


def _tied(model: Module) -> dict[str, str]:
    """Further names of a weight -> its first one."""
    first: dict[int, str] = {}
    every = model.named_parameters(remove_duplicate=False)
    named = [(name, first.setdefault(id(weight), name)) for name, weight in every]
    return {name: of for name, of in named if name != of}


def _check_equal(name: str, of: str, stored: Mapping[str, Stored], folder: Path) -> None:
    """Raise `CheckpointError` where a tensor is not another one a second time."""
    one, other = (torch.empty_like(stored[n].described, device="cpu") for n in (name, of))
    if one.shape == other.shape and one.dtype == other.dtype:
        stored[name].fill(one, 0)
        stored[of].fill(other, 0)
        if torch.equal(one, other):
            return
    raise CheckpointError(
        f"{folder}: {name} is not {of}, and by config.json they are one weight; use another"
        " checkpoint"
    )


def _copy(rule: Rule, target: Tensor, stored: Stored) -> None:
    """Copy a tensor of theirs: straight into the target's memory where that is laid out alike."""
    memory = rule.memory(target, stored.described.dtype)
    if memory is not None:
        stored.fill(memory, rule.skip)
        return
    own = rule.own(target)
    for first, piece in stored.pieces(rule.skip, own[0] if own else 1):
        rule.load(target, piece, first)


def _spare(
    family: Family,
    options: AnyModelOptions,
    info: DatasetInfo,
    theirs: FolderTensors,
    folder: Path,
) -> list[tuple[Rule, Tensor]]:
    """The rules of what only a model for labels has, each with the whole tensor of ours."""
    if not family.spare:
        return []
    labels = replace(info, classes=("",), tagged=False)
    own = _outline(options, labels, theirs, folder).state_dict()
    every = family.rules(written_out(options), labels, CLASSIFICATION)
    return [(rule, own[rule.ours]) for rule in every if below(rule.ours, family.spare)]


def _outline(
    options: AnyModelOptions, info: DatasetInfo, theirs: FolderTensors, folder: Path
) -> Model:
    """The model on the meta device. Raises `CheckpointError` for one far larger than the files."""
    held = sum(tensor.numel() for tensor in theirs.values())
    most = SPARE + TIMES * held
    try:
        with within(theirs, info.outputs), torch.device("meta"):
            built = build(options, info)
        size = sum(weight.numel() for weight in built.parameters())
    except (RuntimeError, ValueError, ArithmeticError) as error:  # sizes beyond an integer
        raise CheckpointError(
            f"{folder}: config.json describes a model that cannot be built: "
            f"{clipped(str(error).partition(chr(10))[0])}"
        ) from None
    if size > most:
        raise CheckpointError(
            f"{folder}: config.json describes a model of {size:,} numbers, and the files hold"
            f" {held:,}: damaged or changed; use another checkpoint"
        )
    return built


def _named_today(
    family: Family, theirs: FolderTensors, folder: Path, wanted: Iterable[str]
) -> dict[str, str]:
    """The names that the rules have -> the names in the files, which may be older ones, or lack
    the prefix of the network below the head, or have it without a head.
    """
    names: dict[str, str] = {}
    for at in theirs:
        name = at
        for pattern, text in family.renamed.items():
            name = re.sub(pattern, text, name)
        if name in names:
            raise CheckpointError(
                f"{folder}: {clipped(at)} and {clipped(names[name])} are the same weight"
            )
        names[name] = at
    prefix = family.prefix
    for name in wanted if prefix else ():
        other = name.removeprefix(prefix) if name.startswith(prefix) else prefix + name
        if name not in names and other in names:
            names[name] = names.pop(other)
    return names


def _ignored(left: list[str], foreseen: Iterable[str], folder: Path) -> str:
    """The tensors without a place in the model, numbers in their names as *, with counts.

    Raises `CheckpointError` for those that the family does not foresee.
    """
    odd = [n for n in left if not any(re.fullmatch(p, n) for p in foreseen)]
    if odd:
        raise CheckpointError(
            f"{folder}: {counted(len(odd), 'tensor')} that the model has no place for: "
            f"{', '.join(map(clipped, odd[:5]))}"
        )
    counts = Counter(re.sub(r"\d+", "*", name) for name in left)
    shown = [f"{clipped(n)} ({c})" if c > 1 else clipped(n) for n, c in counts.most_common(5)]
    return ", ".join([*shown, *([f"and {len(counts) - 5} more"] if len(counts) > 5 else [])])
