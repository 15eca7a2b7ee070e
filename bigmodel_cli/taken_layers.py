"""Layers of a checkpoint's network that become the blocks of a smaller one: `init.layers`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bigmodel_cli.checkpoints import TakenLayers, Tensors
from bigmodel_cli.console import listed, say
from bigmodel_cli.differences import leaves, written
from bigmodel_cli.errors import OptionError, did_you_mean
from bigmodel_cli.models import Model
from bigmodel_cli.names import generally, matches
from bigmodel_cli.spec import Spec

ALONE = ("repeat", "dropout", "drop_path")
"""Options of a block that may be others than those of the layer that it is taken from, by their
last word: how many follow, and what is dropped in training.
"""
SHOWN = 12
WHOLE = (
    "leave model out of the spec, or --set model=null, to take the checkpoint's layers as they are"
)


def with_depth(spec: Spec, stored: Spec, source: Path) -> Spec:
    """The spec of a finetuning from `source`, whose spec is `stored`, with as many blocks as
    `init.layers` names, where its network is the checkpoint's.

    Each block then has the options of its layer. Raises `OptionError` for a layer that the
    checkpoint does not have.
    """
    if spec.init.layers is None:
        return spec
    with spec.placing():
        taken = _checked(spec, stored, source)
        left = {stack: n for stack, n in taken.items() if not spec.says_depth(stack)}
        try:
            model = spec.model.with_layers(left) if left else spec.model
        except ValueError as error:
            what = str(error).splitlines()[-1 if len(str(error).splitlines()) < 3 else 2].strip()
            raise OptionError(("init.layers", f"not a network of these layers: {what}")) from None
        found = spec.model_copy(update={"model": model})
        _refuse_unlike(found, stored, taken)
    return found


def take(spec: Spec, stored: Spec, weights: Tensors, source: Path) -> Tensors:
    """The weights of the layers that `init.layers` names, by the names of this spec's blocks; all
    where it names none. What is taken and what is left out is said.

    Raises `OptionError` where blocks of the spec are not what these layers are.
    """
    if spec.init.layers is None:
        return weights
    with spec.placing():
        taken = _checked(spec, stored, source)
        _refuse_unlike(spec, stored, taken)
    found = TakenLayers(weights, taken)
    for stack, numbers in taken.items():
        left = [n for n in range(len(stored.model.one_by_one(stack))) if n not in numbers]
        own = _numbers(range(len(numbers)))
        say(
            f"init.layers: {stack} {own} {'are' if len(numbers) > 1 else 'is'} the checkpoint's"
            f" {_numbers(numbers)}; left out: {_numbers(left) if left else 'none'}"
        )
    return found


def left_out(spec: Spec, model: Model, weights: Tensors) -> list[str]:
    """The names of the weights, of the model or the checkpoint, that `init.leave_out` means; of a
    tied weight all.

    Raises `OptionError` for a pattern that means nothing.
    """
    if not spec.init.leave_out:
        return []
    shared: dict[int, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        shared.setdefault(id(tensor), []).append(name)
    alike = {name: names for names in shared.values() for name in names}
    every = list(dict.fromkeys([*alike, *weights]))
    found: dict[str, None] = {}
    for index, pattern in enumerate(spec.init.leave_out):
        meant = [name for name in every if matches(name, pattern)]
        if not meant:
            general = list(dict.fromkeys(map(generally, every)))
            hint = did_you_mean(pattern, general) or f"; they are called like {every[0]}"
            with spec.placing():
                raise OptionError(
                    (f"init.leave_out.{index}", f"{pattern!r} matches no weight{hint}")
                )
        found |= {other: None for name in meant for other in alike.get(name, [name])}
    return list(found)


def _checked(spec: Spec, stored: Spec, source: Path) -> Mapping[str, Sequence[int]]:
    """`init.layers`, all of which the checkpoint has. Raises `OptionError`."""
    given, stacks, kind = spec.init.layers or {}, stored.model.stacks, stored.model.type
    if not stacks:
        what = f"{source}: model.type: {kind} is not made of blocks that could be taken one by one"
        why = f" ({found})" if (found := stored.model.in_blocks) else ""
        raise OptionError(("init.layers", f"{what}{why}; leave it out"))
    faults = []
    for stack, numbers in given.items():
        if stack not in stacks:
            form = f"{{{', '.join(f'{name}: [...]' for name in stacks)}}}"
            form = "[...]" if len(stacks) == 1 else form
            what = f"{source}: model.type: {kind} has no {stack}; write {form}"
            faults.append(("init.layers", what))
            continue
        last = len(stored.model.one_by_one(stack)) - 1
        for index, number in enumerate(numbers):
            if number > last:
                path = (
                    f"init.layers.{index}" if len(stacks) == 1 else f"init.layers.{stack}.{index}"
                )
                faults.append((path, f"{number}: {source} has the layers 0 to {last}"))
    if faults:
        raise OptionError(*faults)
    return given


def _refuse_unlike(spec: Spec, stored: Spec, taken: Mapping[str, Sequence[int]]) -> None:
    """Raise `OptionError` where blocks of the spec are not what the layers taken are."""
    faults = [fault for stack in taken for fault in _unlike(spec, stored, stack, taken[stack])]
    if faults:
        raise OptionError(*faults)


def _unlike(
    spec: Spec, stored: Spec, stack: str, numbers: Sequence[int]
) -> Iterator[tuple[str, str]]:
    """The faults of a stack whose blocks are not those layers."""
    path = f"model.{stack}"
    if stack not in spec.model.stacks:
        kinds = f"model.type: {spec.model.type} has no {stack}, which the checkpoint has"
        yield "init.layers", f"{kinds} (model.type: {stored.model.type}); {WHOLE}"
        return
    own, theirs = spec.model.one_by_one(stack), stored.model.one_by_one(stack)
    if len(own) != len(numbers):
        yield (
            path,
            f"{len(own)} blocks, and init.layers takes {len(numbers)} of the checkpoint's"
            f" {len(theirs)}; make them as many, or {WHOLE}",
        )
        return
    alike: dict[str, list[int]] = {}
    for index, (block, number) in enumerate(zip(own, numbers, strict=True)):
        changed = list(_changed(theirs[number], block, f"{stack}.{index}", spec.init.leave_out))
        if changed:
            alike.setdefault(listed(changed, 3), []).append(index)
    for text, blocks in alike.items():
        layers = _numbers([numbers[index] for index in blocks])
        yield (
            path,
            f"{_numbers(blocks)}: not what the checkpoint's layers {layers} are: {text}; {WHOLE}",
        )


def _changed(
    before: dict[str, Any], now: dict[str, Any], place: str, without: Sequence[str]
) -> Iterator[str]:
    """The options of a block that are not the layer's, but for parts whose weights are left out."""
    old, new = dict(leaves(before)), dict(leaves(now))
    for name in dict.fromkeys([*old, *new]):
        same = name in old and name in new and old[name] == new[name]
        if same or name.rpartition(".")[2] in ALONE:
            continue
        if any(matches(f"{place}.{name}", pattern) for pattern in without):
            continue
        yield f"{name} {_side(old, name)} -> {_side(new, name)}"


def _side(values: Mapping[str, Any], name: str) -> str:
    return written(values[name]) if name in values else "(none)"


def _numbers(numbers: Sequence[int]) -> str:
    return listed([str(n) for n in numbers], SHOWN)
