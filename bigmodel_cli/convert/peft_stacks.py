"""Adapters of stacks of experts in PEFT's files: the layout of its `target_parameters`.

A parameter of theirs (E, M, N), such as `experts.gate_up_proj`, has for E experts one A, whose rows
are those of each expert one after the other, and one B, whose columns are the first of each expert,
then the second of each, and so on. Several parameters of one module are wrapped in one another: the
last one outermost. The names are those in memory, where all experts of a layer are one tensor, also
of families whose files have one of each.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bigmodel_cli.adapters.attaching import Adapter
from bigmodel_cli.adapters.base import Factors, LowRankOptions
from bigmodel_cli.checkpoints.files import clipped
from bigmodel_cli.convert.config import Config
from bigmodel_cli.convert.peft_layout import CONFIG, EXPERT, PREFIX, WEIGHTS, Layout
from bigmodel_cli.convert.peft_ranks import Ranks, ranks_of_parts
from bigmodel_cli.convert.rules import Rule
from bigmodel_cli.convert.weights import FolderTensors
from bigmodel_cli.errors import CheckpointError, SpecError
from bigmodel_cli.lazy import Tensor, torch

IN_MEMORY = {
    **dict.fromkeys(("gate_proj", "w1"), ("gate_up_proj", False)),
    **dict.fromkeys(("up_proj", "w3"), ("gate_up_proj", True)),
    **dict.fromkeys(("down_proj", "w2"), ("down_proj", False)),
}
"""The parameter that it is a part of, and whether it is the second half of its rows."""
A, B, WRAPPED = "lora_A.weight", "lora_B.weight", ".base_layer"


@dataclass
class Stack:
    """A parameter of theirs: which rows of it each weight (E, M, N) of ours is."""

    name: str
    rows: dict[str, list[int]] = field(default_factory=dict)

    @property
    def module(self) -> str:
        """The module that holds it."""
        return self.name.rpartition(".")[0]


def stacks(layout: Layout) -> list[Stack]:
    """The stacks of a model, in the order of theirs."""
    found: dict[str, Stack] = {}
    for rule in layout.rules:
        if rule.ours in layout.stacked:
            name, rows = _place(rule, layout.weights[rule.ours].shape[1])
            found.setdefault(name, Stack(name)).rows.setdefault(rule.ours, rows)
    return list(found.values())


def _place(rule: Rule, count: int) -> tuple[str, list[int]]:
    """The parameter in memory, and the rows of it that `count` rows of ours are."""
    if one := EXPERT.fullmatch(rule.theirs):
        name, second = IN_MEMORY[one[2]]
        first = count * second
        return f"{one[1]}{name}", [*range(first, first + count)]
    if rule.half is None:
        return rule.theirs, [*range(count)]
    second = rule.half.second
    first, step = (int(second), 2) if rule.half.mixed else (count * second, 1)
    return rule.theirs, [first + step * i for i in range(count)]


def stems(module: Sequence[Stack]) -> dict[str, str]:
    """What the names of each parameter's factors begin with; all are of one module."""
    last = len(module) - 1
    return {s.name: f"{PREFIX}{s.module}{WRAPPED * (last - i)}." for i, s in enumerate(module)}


def by_module(of: Iterable[Stack]) -> list[list[Stack]]:
    """Those of each module."""
    found: dict[str, list[Stack]] = {}
    for stack in of:
        found.setdefault(stack.module, []).append(stack)
    return list(found.values())


@dataclass(frozen=True)
class Written:
    """Tensors by name; rank and alpha of each parameter; the weights of ours that they are of."""

    tensors: dict[str, Tensor]
    said: dict[str, tuple[int, float]]
    ours: set[str]


def written(
    layout: Layout, own: Mapping[str, Adapter], options: LowRankOptions, power: float
) -> Written:
    """The factors of stacks as PEFT has them. Raises `SpecError` for what it does not have."""
    found = Written({}, {}, set())
    adapted = [s for s in stacks(layout) if s.rows.keys() & own.keys()]
    for module in by_module(adapted):
        for stack, stem in zip(module, stems(module).values(), strict=True):
            parts = _parts(own, stack)
            check(next(iter(parts)), parts.values(), options)
            scale = next(iter(parts.values())).scale
            narrow, wide = [], []
            for ours, part in parts.items():
                a, b = part.portable()
                height = sum(map(len, stack.rows.values()))
                block = b.new_zeros(len(b), height, b.shape[2])
                block[:, stack.rows[ours]] = b
                narrow.append(a if part.scale == scale else a * (part.scale / scale))
                wide.append(block)
            a, b = torch.cat(narrow, 1), torch.cat(wide, 2)
            found.tensors[stem + A] = a.flatten(0, 1)
            found.tensors[stem + B] = b.permute(1, 2, 0).flatten(1)
            rank = a.shape[1]
            found.said[stack.name] = rank, scale * rank**power
            found.ours.update(parts)
    return found


def _parts(own: Mapping[str, Adapter], stack: Stack) -> dict[str, Factors]:
    """The factors for some rows of a stack, by the names of ours."""
    return {name: next(iter(own[name].factors().values())) for name in stack.rows if name in own}


def check(name: str, parts: Iterable[Factors], options: LowRankOptions) -> None:
    """Raise `SpecError` where a parameter of this name cannot be adapted so in PEFT."""
    if any(part.magnitudes() is not None for part in parts):
        raise SpecError(
            f"adapter: {name}: PEFT has no dora of experts and routers; leave it out of"
            " adapter.targets, or merge"
        )
    if options.dropout:
        raise SpecError(
            f"adapter.dropout: {name}: PEFT has none where experts and routers are adapted; set it"
            " to 0, or merge"
        )


def is_meant(name: str, patterns: Sequence[str]) -> bool:
    """Whether one of these is a parameter's name or the end of it."""
    return any(f".{name}".endswith(f".{pattern}") for pattern in patterns)


def targeted(layout: Layout, patterns: Sequence[str]) -> Iterator[tuple[Stack, str]]:
    """The stacks that `target_parameters` means, as PEFT matches names, and their stems."""
    for module in by_module(s for s in stacks(layout) if is_meant(s.name, patterns)):
        yield from zip(module, stems(module).values(), strict=True)


def is_parameter(config: Config, module: str) -> bool:
    """Whether a module's matrix is adapted by the parameter's name."""
    wanted = config.maybe("target_parameters", list) or []
    return is_meant(f"{module}.weight", [*map(str, wanted)])


def named(config: Config, layout: Layout) -> list[tuple[Stack, str]]:
    """The stacks that are adapted, each with the beginning of its tensors' names.

    Raises `CheckpointError` where there is none of this name.
    """
    wanted = config.maybe("target_parameters", list) or []
    found: list[tuple[Stack, str]] = []
    known = [stack.name for stack in stacks(layout)]
    known += [f"{place.module}.weight" for place in layout.places()]
    for name in map(str, wanted):
        if not any(is_meant(one, [name]) for one in known):
            raise CheckpointError(
                f"{config.file}: target_parameters: {clipped(name)!r}: not a stack of experts of"
                " this model; an adapter belongs to the model that it was trained on"
            )
    found += targeted(layout, [str(name) for name in wanted])
    return found


def read(
    folder: Path, layout: Layout, stack: Stack, stem: str, theirs: FolderTensors, rank: int
) -> tuple[Tensor, Tensor]:
    """A (E, R, N) and B (E, M, R) of a stack.

    Raises `CheckpointError` where one is missing or of another shape.
    """
    name = next(iter(stack.rows))
    count, _, wide = layout.weights[name].shape
    high = sum(map(len, stack.rows.values()))
    expected = {stem + A: (count * rank, wide), stem + B: (high, rank * count)}
    for tensor, shape in expected.items():
        if tensor not in theirs or tuple(theirs[tensor].shape) != shape:
            there = f"{list(theirs[tensor].shape)}" if tensor in theirs else "missing"
            raise CheckpointError(
                f"{folder / WEIGHTS}: {tensor}: {there}, where {CONFIG} and the model give"
                f" {list(shape)} for {stack.name}"
            )
    a, b = (theirs.read(tensor) for tensor in expected)
    return a.view(count, rank, wide), b.view(high, rank, count).permute(2, 0, 1)


def meant(stack: Stack, b: Tensor, ranks: Ranks) -> dict[str, tuple[int, float]]:
    """Name -> rank and alpha of the weights of ours that a stack's factors change."""
    rank, alpha = ranks.of(stack.name)
    rows = {n: r for n, r in stack.rows.items() if bool(b[:, r].any())} or stack.rows
    # what any expert has counts
    own = ranks_of_parts(b.abs().amax(0), [*rows.values()], ranks.rank)
    return {n: (r, ranks.own(alpha, rank, r)) for n, r in zip(rows, own, strict=True)}


def described(
    folder: Path,
    layout: Layout,
    wanted: Iterable[tuple[Stack, str]],
    theirs: FolderTensors,
    ranks: Ranks,
) -> tuple[dict[str, tuple[int, float]], set[str]]:
    """The same of all stacks that are adapted, and the modules that their tensors are named by.

    Raises `CheckpointError`.
    """
    found: dict[str, tuple[int, float]] = {}
    modules = set()
    for stack, stem in wanted:
        rank, _ = ranks.of(stack.name)
        _, b = read(folder, layout, stack, stem, theirs, rank)
        found |= meant(stack, b, ranks)
        modules.add(stem.removeprefix(PREFIX).rstrip("."))
    return found, modules


def fill(stack: Stack, own: Mapping[str, Adapter], a: Tensor, b: Tensor) -> None:
    """Copy a stack's factors into ours, which are of the ranks that `meant` found."""
    parts, first = _parts(own, stack), 0
    apart = len(parts) > 1 and a.shape[1] == sum(part.rank for part in parts.values())
    with torch.no_grad():
        for name, part in parts.items():
            block = slice(first, first + part.rank) if apart else slice(None)
            part.lora_A.copy_(a[:, block])
            part.lora_B.copy_(b[:, stack.rows[name]][:, :, block])
            first += part.rank
