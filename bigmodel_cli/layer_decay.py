"""Layer-wise decay of the learning rate: blocks near the input are changed less by finetuning."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from bigmodel_cli.checkpoints.weights import below
from bigmodel_cli.errors import SpecError
from bigmodel_cli.models import Model
from bigmodel_cli.roles import Weight


def with_layer_decay(model: Model, weights: Iterable[Weight], decay: float | None) -> list[Weight]:
    """The weights with their multiples of the learning rate (Clark et al. 2020, ELECTRA).

    The head and the norm before it have 1, the last block `decay`, the one before it decay^2, and
    what comes before the first block has one power more than that. A tied embedding is one of
    those. Raises `SpecError` for a network without blocks.
    """
    every = list(weights)
    if decay is None:
        return every
    last = model.last_layers()
    depths = _depths(model, [w.name for w in every if not below(w.name, last)])
    if not any(depths.values()):
        raise SpecError("train.layer_decay: this network is not made of blocks; leave it out")
    deepest = max(depths.values()) + 1
    return [replace(w, rate=decay ** (deepest - depths.get(w.name, deepest))) for w in every]


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


def rates(described: Iterable[Mapping[str, object]]) -> str:
    """The multiples of `describe_weights`' result as one line, from the input to the output."""
    found = dict.fromkeys(w["rate"] for w in described if isinstance(w.get("rate"), float))
    shown = [f"{rate:.3g}" for rate in sorted(r for r in found if isinstance(r, float))]
    few = shown if len(shown) <= 8 else [*shown[:3], "...", *shown[-3:]]
    return f"learning rates by depth are multiplied by {', '.join(few)}" if shown else ""
