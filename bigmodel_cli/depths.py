"""What depends on a weight's depth: layer-wise decay of the learning rate, gradual unfreezing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from bigmodel_cli.checkpoints.weights import below
from bigmodel_cli.errors import SpecError
from bigmodel_cli.models import Model
from bigmodel_cli.recipe import TrainOptions
from bigmodel_cli.roles import Weight

SHOWN = 8
"""Most numbers in a line."""


def by_depth(model: Model, weights: Iterable[Weight], options: TrainOptions) -> list[Weight]:
    """The weights with their multiples of the learning rate and their first steps.

    With `layer_decay` (Clark et al. 2020, ELECTRA) the head and the norm before it have 1, the last
    block the decay, the one before it its square, and what comes before the first block one power
    more than that. With `unfreeze_every` (Howard and Ruder 2018, ULMFiT) they begin in that order.
    A tied embedding comes before the first block. Raises `SpecError` for a network without blocks,
    or where nothing can be trained at first.
    """
    every, decay, steps = list(weights), options.layer_decay, options.unfreeze_every or 0
    if decay is None and not steps:
        return every
    name = "layer_decay" if decay is not None else "unfreeze_every"
    last = model.last_layers()
    depths = _depths(model, [w.name for w in every if not below(w.name, last)])
    if not any(depths.values()):
        raise SpecError(f"train.{name}: this network is not made of blocks; leave it out")
    deepest = max(depths.values()) + 1
    found = []
    for weight in every:
        up = deepest - depths.get(weight.name, deepest)
        found.append(replace(weight, rate=(decay or 1.0) ** up, start=steps * up))
    if not any(w.tensor.requires_grad and not w.start for w in found):
        raise SpecError(
            "train.unfreeze_every: nothing after the last block is trained (the logits' matrix is"
            " the embedding's, or it is frozen); leave it out"
        )
    return found


def _depths(model: Model, names: list[str]) -> Mapping[str, int]:
    """The number of each weight's block, from 1 on; 0 for those before the blocks.

    The norm after a stack counts as of its last block.
    """
    blocks = {name: block for name in names if (block := _block(model, name)) is not None}
    order = {block: i for i, block in enumerate(sorted(set(blocks.values())), 1)}
    tops = {
        f"{stack}_norm": max((order[b] for b in order if b[0] == i), default=0)
        for i, stack in enumerate(model.stacks)
    }
    return {
        name: order[blocks[name]] if name in blocks else tops.get(name.partition(".")[0], 0)
        for name in names
    }


def _block(model: Model, name: str) -> tuple[int, int] | None:
    """(stack, number in it) of a weight's block; None for one that is in none."""
    stack, _, rest = name.partition(".")
    number = rest.partition(".")[0]
    inside = stack in model.stacks and number.isdecimal()
    return (model.stacks.index(stack), int(number)) if inside else None


def said(described: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """`describe_weights`' result in lines: what differs by depth, from the head back."""
    every = list(described)
    if rates := sorted({w["rate"] for w in every if "rate" in w}, reverse=True):
        yield f"learning rates by depth: multiplied by {_row([f'{rate:.3g}' for rate in rates])}"
    if steps := sorted({w["first_step"] for w in every if "first_step" in w}):
        yield f"trained by depth: from steps {_row([f'{step:,}' for step in steps])}"


def _row(numbers: list[str]) -> str:
    few = numbers if len(numbers) <= SHOWN else [*numbers[:3], "...", *numbers[-3:]]
    return f"{', '.join(few)} (the head first)"
