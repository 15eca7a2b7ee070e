"""Long stacks of equal blocks, measured by short ones: costs are linear in the number of blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TypeVar

from bigmodel_cli.models.base import AnyModelOptions
from bigmodel_cli.models.block import BlockOptions

LONG, KEPT = 16, 4
"""More than `LONG` equal blocks in a row are measured with `KEPT` and with one more."""

T = TypeVar("T")


@dataclass(frozen=True)
class Stack:
    """Equal blocks in a row: option, first index and number; `short` is the short model's index."""

    name: str
    first: int
    count: int
    short: int

    @property
    def kept(self) -> int:
        """How many of them the short model has."""
        return self.count if self.count <= LONG else KEPT


def shortened(
    options: AnyModelOptions,
) -> tuple[AnyModelOptions, list[Stack], list[AnyModelOptions]]:
    """(the options with `KEPT` blocks per long stack, all stacks, options with one block more).

    Of the last there is one for each long stack.
    """
    stacks: list[Stack] = []
    lists: dict[str, list[BlockOptions]] = {}
    for name in type(options).model_fields:
        value = getattr(options, name)
        if not isinstance(value, list) or not all(
            isinstance(block, BlockOptions) for block in value
        ):
            continue
        lists[name] = []
        first = short = 0
        for alike, group in groupby(value, lambda block: block.model_copy(update={"repeat": 1})):
            stack = Stack(name, first, sum(block.repeat for block in group), short)
            first, short = first + stack.count, short + stack.kept
            stacks.append(stack)
            lists[name].append(alike.model_copy(update={"repeat": stack.kept}))
    more = []
    for stack in stacks:
        if stack.count > LONG:
            place = [s for s in stacks if s.name == stack.name].index(stack)
            blocks = list(lists[stack.name])
            blocks[place] = blocks[place].model_copy(update={"repeat": stack.kept + 1})
            more.append(options.model_copy(update={**lists, stack.name: blocks}))
    return options.model_copy(update=lists), stacks, more


def extended(stacks: list[Stack], short: int, more: Sequence[int]) -> int:
    """The whole model's cost from those of the short one and of the ones with one more block."""
    long = [stack for stack in stacks if stack.count > LONG]
    return short + sum((s.count - s.kept) * (m - short) for s, m in zip(long, more, strict=True))


def in_whole(
    stacks: list[Stack], short: list[T], path: Callable[[T], str], moved: Callable[[T, str], T]
) -> list[T]:
    """The whole model's items (layers, weights) from the short one's.

    A long stack's first block stands for those left out. `path` gives an item's path in the short
    model, and `moved` the same item at another path.
    """
    found: list[T] = []
    block = _block(stacks)
    for (name, number), group in groupby(short, lambda item: block(path(item))):
        inside = list(group)
        if not name:
            found += inside
            continue
        for index in _numbers(stacks, name, number):
            prefix = f"{name}.{number}"
            found += [moved(x, f"{name}.{index}{path(x).removeprefix(prefix)}") for x in inside]
    return found


def _block(stacks: list[Stack]) -> Callable[[str], tuple[str, int]]:
    """The block of a path: the list's name and the index in it; ("", 0) where there is none."""
    names = {stack.name for stack in stacks}

    def block(path: str) -> tuple[str, int]:
        name, _, rest = path.partition(".")
        number = rest.partition(".")[0]
        return (name, int(number)) if name in names and number.isdigit() else ("", 0)

    return block


def _numbers(stacks: list[Stack], name: str, number: int) -> Iterator[int]:
    """The indices in the whole model of the blocks that one of the short model stands for."""
    stack = next(s for s in stacks if s.name == name and s.short <= number < s.short + s.kept)
    left_out, place = stack.count - stack.kept, number - stack.short
    yield from (
        range(stack.first, stack.first + left_out + 1)
        if place == 0
        else [stack.first + left_out + place]
    )
