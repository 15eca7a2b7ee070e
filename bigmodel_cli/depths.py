"""Rates and first steps of weights: by depth, layer-wise decay and gradual unfreezing; by name."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from bigmodel_cli.checkpoints.weights import below
from bigmodel_cli.console import counted, listed
from bigmodel_cli.errors import OptionError, did_you_mean
from bigmodel_cli.models import Model
from bigmodel_cli.names import generally, matches
from bigmodel_cli.recipe import TrainOptions
from bigmodel_cli.roles import Weight

_FACTOR = re.compile(r"(.*)\.parametrizations\.(\w+)\.0\.parts\.(\w+)\.(.*)")
_PART = re.compile(r"^(\w+(?:\.\d+)?).*")
"""A weight's block, or the part that is in none."""
WHOLE = "whole"  # the part of a weight that is one matrix
SHOWN = 8
"""Most numbers in a line."""


def rated(model: Model, weights: Iterable[Weight], options: TrainOptions) -> list[Weight]:
    """The weights with their multiples of the learning rate, by depth and by name, and their first
    steps.

    The factors of all patterns that mean a weight multiply, with its depth's. Raises `OptionError`
    for a pattern that means nothing that is trained, and as `by_depth`.
    """
    found = by_depth(model, weights, options)
    names = _all_names(model, found)
    factors = dict.fromkeys(names, 1.0)
    trained = [w.name for w in found if w.tensor.requires_grad]
    for pattern, factor in options.lr_scale.items():
        meant = [name for name in names if any(matches(n, pattern) for n in names[name])]
        if not set(meant) & set(trained):
            raise OptionError((f"train.lr_scale.{pattern}", _unmatched(pattern, meant, trained)))
        for name in meant:
            factors[name] *= factor
    return [replace(w, rate=w.rate * factors[w.name]) for w in found]


def _all_names(model: Model, weights: Iterable[Weight]) -> dict[str, list[str]]:
    """All that a weight is called, by its first name: of a tied one every name, of an adapter's
    factors also the short one, such as blocks.0.mixer.qkv.q.lora_A.
    """
    shared: dict[int, list[str]] = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        shared.setdefault(id(p), []).append(name)
    found = {}
    for weight in weights:
        own = shared.get(id(weight.tensor), [])
        every = own if len(own) > 1 else [weight.name]  # equal blocks of a plan share tensors
        found[weight.name] = list(dict.fromkeys([*every, *map(short_name, every)]))
    return found


def short_name(name: str) -> str:
    """What people call a weight: of an adapter's factor, the name of what it adapts and its own."""
    found = _FACTOR.fullmatch(name)
    if found is None:
        return name
    above, own, part, factor = found.groups()
    pieces = [above, "" if own == "weight" else own, "" if part == WHOLE else part, factor]
    return ".".join(filter(None, pieces))


def _unmatched(pattern: str, meant: list[str], trained: list[str]) -> str:
    if meant:
        first = short_name(meant[0])
        return f"matches only weights that are not trained, such as {first}; leave it out"
    general = list(dict.fromkeys(generally(short_name(name)) for name in trained))
    hint = did_you_mean(pattern, general)
    return f"matches no weight{hint}; those that are trained are {listed(general, SHOWN)}"


def by_depth(model: Model, weights: Iterable[Weight], options: TrainOptions) -> list[Weight]:
    """The weights with their multiples of the learning rate and their first steps.

    With `layer_decay` (Clark et al. 2020, ELECTRA) the head and the norm before it have 1, the last
    block the decay, the one before it its square, and what comes before the first block one power
    more than that. With `unfreeze_every` (Howard and Ruder 2018, ULMFiT) they begin in that order.
    A tied embedding comes before the first block. Raises `OptionError` for a network without
    blocks, or where nothing can be trained at first.
    """
    every, decay, steps = list(weights), options.layer_decay, options.unfreeze_every or 0
    if decay is None and not steps:
        return every
    name = "layer_decay" if decay is not None else "unfreeze_every"
    last = model.last_layers()
    depths = _depths(model, [w.name for w in every if not below(w.name, last)])
    if not any(depths.values()):
        raise OptionError((f"train.{name}", "this network is not made of blocks; leave it out"))
    deepest = max(depths.values()) + 1
    found = []
    for weight in every:
        up = deepest - depths.get(weight.name, deepest)
        found.append(replace(weight, rate=(decay or 1.0) ** up, start=steps * up))
    if not any(w.tensor.requires_grad and not w.start for w in found):
        what = (
            "nothing after the last block is trained (the logits' matrix is the embedding's, or it"
            " is frozen); leave it out"
        )
        raise OptionError(("train.unfreeze_every", what))
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


def said(
    described: Iterable[Mapping[str, Any]], options: TrainOptions, total: int | None = None
) -> Iterator[str]:
    """`describe_weights`' result in lines: what differs by depth, the head first, or by name, and
    what a run of `total` steps never comes to train.
    """
    every = list(described)
    rates = sorted({w["rate"] for w in every if "rate" in w}, reverse=True)
    if rates and not options.lr_scale:
        yield f"learning rates by depth: multiplied by {_row([f'{rate:.3g}' for rate in rates])}"
    for rate in rates if options.lr_scale else ():
        those = [w for w in every if w.get("rate") == rate]
        names = list(dict.fromkeys(generally(short_name(w["name"])) for w in those))
        count = sum(math.prod(w["shape"]) for w in those)
        size = f"{counted(len(those), 'tensor')} ({count:,} numbers)"
        yield f"learning rate times {rate:.3g}: {size}: {listed(names, 4)}"
    if steps := sorted({w["first_step"] for w in every if "first_step" in w}):
        yield f"trained by depth: from steps {_row([f'{step:,}' for step in steps])}"
    if total is not None and options.unfreeze_every and steps and steps[-1] > total:
        late = [w for w in every if w.get("first_step", 0) > total]
        names = list(dict.fromkeys(_PART.sub(r"\1", w["name"]) for w in late))
        enough = (total - 1) // ((steps[-1] - 1) // options.unfreeze_every)
        remedy = f"{enough:,} at most lets all begin" if enough else "more steps are needed"
        yield (
            f"train.unfreeze_every: {options.unfreeze_every:,}, and the run has"
            f" {counted(total, 'step')}: {counted(len(late), 'tensor is', 'tensors are')} never"
            f" trained ({listed(names, 4)}); {remedy}"
        )


def _row(numbers: list[str]) -> str:
    few = numbers if len(numbers) <= SHOWN else [*numbers[:3], "...", *numbers[-3:]]
    return f"{', '.join(few)} (the head first)"
