"""What a plan comes to, in one sentence: whether it fits, what takes most, and what to change."""

from __future__ import annotations

import math

from bigmodel_cli.bench.mesh.gathering import GATHERED, WAITING
from bigmodel_cli.bench.mesh.rank import LOSS
from bigmodel_cli.bench.mesh.traffic import GRADIENTS, PRODUCTS, WEIGHTS, Exchange
from bigmodel_cli.bench.paper import AVERAGES, OPTIMIZER
from bigmodel_cli.bench.paper import GRADIENTS as SUMS
from bigmodel_cli.bench.paper import WEIGHTS as OWN
from bigmodel_cli.bench.plan import Plan
from bigmodel_cli.console import quantity
from bigmodel_cli.models.footprint import ACTIVATIONS

MUCH = 0.25
"""The part of a step from which on waiting for others is worth a word."""
STAYING = (OWN, SUMS, OPTIMIZER, AVERAGES)


def advice(plan: Plan) -> str:
    """One sentence."""
    memory = plan.memory
    largest = max(memory.at_peak, key=lambda name: memory.at_peak[name])
    share = f"{100 * memory.peak / memory.room:.0f} %"
    room = f"{quantity(memory.peak, 'B')} of {quantity(memory.room, 'B')} ({share})"
    most = f"most of it {largest} ({quantity(memory.at_peak[largest], 'B')})"
    part = max(plan.parts, key=lambda name: plan.parts[name])
    name = _longest(plan).kind if part == "communication" else f"the {part} pass"
    name = "the update" if part == "update" else name
    step = f"of a step {name} takes most ({100 * plan.parts[part] / plan.step:.0f} %)"
    verdict = "it fits" if memory.fits else "it does not fit"
    change = _faster(plan) if memory.fits else smaller(plan)
    return f"{verdict}: {room}, {most}; {step}; {change}"


def _longest(plan: Plan) -> Exchange:
    """The exchange that is waited for longest."""
    waited = [e for e in plan.exchanges if not e.hidden]
    beside = [e for e in plan.exchanges if e.hidden]
    rest = plan.parts["communication"] - sum(e.seconds for e in waited)  # of those beside passes
    if beside and rest > max((e.seconds for e in waited), default=0.0):
        waited = beside
    return max(waited or beside, key=lambda e: e.seconds)


def _power(number: float) -> int:
    """The least power of 2 from that number on."""
    return int(2 ** math.ceil(math.log2(max(1.0, number))))


def smaller(plan: Plan) -> str:
    """What to change where it does not fit."""
    memory, axes, options = plan.memory, plan.axes, plan.options
    staying = sum(memory.stays.values())
    if staying > memory.usable:
        more = axes.shard * _power(staying / memory.usable)
        return f"divide what stays among more processes: shard={more}"
    by_kind = {name: memory.at_peak.get(name, 0.0) for name in (GATHERED, WAITING, LOSS)}
    by_kind[ACTIVATIONS] = memory.at_peak.get(ACTIVATIONS, 0.0)
    largest = max(by_kind, key=lambda name: by_kind[name])
    if largest in (GATHERED, WAITING):
        if not options.parallel.reshard:
            return "set train.parallel.reshard=true"
        return f"divide the parts among more: tensor={2 * axes.tensor}"
    if largest == ACTIVATIONS and options.checkpointing == "none":
        return "set train.checkpointing=blocks"
    if plan.share.rows > 1:
        over = memory.peak - memory.usable
        least = max(1, math.floor(plan.share.rows * (1 - over / max(by_kind[largest], over))))
        return f"set train.micro_batch_size={least}"
    if largest == LOSS:
        return f"divide the vocabulary among more: tensor={2 * axes.tensor}"
    return f"divide the parts among more (tensor={2 * axes.tensor}), or shorten the rows"


def _faster(plan: Plan) -> str:
    """What to change in what costs most."""
    waiting = plan.parts["communication"] / plan.step
    if waiting < MUCH:
        return f"{100 * waiting:.0f} % of it waits for other processes: nothing need change"
    exchange = _longest(plan)
    words = {
        PRODUCTS: "take a smaller tensor, within a node",
        WEIGHTS: (
            "let more samples pass at once (train.micro_batch_size, train.batch_size), or keep more"
            " copies (replicate)"
        ),
        GRADIENTS: "let a step have more samples (train.batch_size)",
    }
    where = words.get(exchange.kind, "take fewer processes")
    return (
        f"{100 * waiting:.0f} % of it waits for other processes, most of that for"
        f" {exchange.kind}: {where}"
    )
