"""Experts: which of them each token took, with what weight, and how the load is spread."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from bigmodel_cli.console import columns_of, one_line, padded
from bigmodel_cli.lazy import Module, Tensor, torch
from bigmodel_cli.parts.contract import routing
from bigmodel_cli.parts.watched import RoutingCall

Routed = list[tuple[str, RoutingCall]]
"""Names of parts and their calls, in the order of the forward pass."""
BARS = " ▁▂▃▄▅▆▇█"
PLAIN = " .:-=+*#@"


@contextmanager
def watch_routing(model: Module) -> Iterator[Routed]:
    """Inside, the calls of all parts that send tokens to experts are kept, in a list."""
    calls = Routed()
    with watch_experts(model, lambda name, call: calls.append((name, call))):
        yield calls


@contextmanager
def watch_experts(
    model: Module, each: Callable[[str, RoutingCall], Tensor | None]
) -> Iterator[None]:
    """Inside, `each` is given every call of a part that sends tokens to experts, with its name;
    what it returns replaces the weights.
    """
    found = routing(model)
    before = {name: part.routing_watcher for name, part in found.items()}
    try:
        for name, part in found.items():
            part.routing_watcher = partial(each, name)
        yield
    finally:
        for name, part in found.items():
            part.routing_watcher = before[name]


def routing_table(calls: Routed) -> dict[str, Any]:
    """{"routing": [a record of each call]} of the first row, or nothing where there are no experts.

    See `record_of`.
    """
    return {"routing": [record_of(name, call) for name, call in calls]} if calls else {}


def record_of(name: str, call: RoutingCall) -> dict[str, Any]:
    """A call as plain values.

    By token: `chosen`, the experts' numbers, heaviest first, and their `weights`. By expert:
    `load`, its share of all choices, and `weight`, of all weights. `even` is 1 / experts,
    `balance` the load's entropy as a part of the largest (1: even), `busiest` the largest load over
    the even one, `idle` the experts that no token took.
    """
    chosen, weights = call.chosen[0].cpu(), call.weights[0].float().cpu()  # (T, k)
    if call.real is not None:
        real = call.real[0].cpu()
        chosen, weights = chosen[real], weights[real]
    order = weights.argsort(dim=-1, descending=True, stable=True)
    chosen, weights = chosen.gather(-1, order), weights.gather(-1, order)
    load = _shares(chosen, torch.ones_like(weights), call.experts)
    entropy = -float(torch.special.xlogy(load, load).sum())
    return {
        "layer": name,
        "experts": call.experts,
        "top_k": chosen.shape[-1],
        "shared": call.shared,
        "tokens": len(chosen),
        "dropped": call.dropped,
        "even": 1 / call.experts,
        "load": load.tolist(),
        "weight": _shares(chosen, weights, call.experts).tolist(),
        "balance": entropy / math.log(call.experts) if call.experts > 1 else 1.0,
        "busiest": float(load.max()) * call.experts,
        "idle": int((load == 0).sum()),
        "chosen": chosen.tolist(),
        "weights": weights.tolist(),
    }


def _shares(chosen: Tensor, amounts: Tensor, experts: int) -> Tensor:
    """(E)   the share of all amounts (T, k) that goes to each expert."""
    total = torch.zeros(experts, dtype=torch.float64)
    total.index_add_(0, chosen.flatten(), amounts.flatten().double())
    return total / total.sum().clamp(min=1e-30)


def shown(
    records: Sequence[dict[str, Any]],
    labels: Sequence[str],
    columns: int = 100,
    lines: int = 12,
    plain: bool = False,
) -> list[str]:
    """Text of such records, within `columns` and `lines`: each layer's load as a bar an expert,
    and which experts the last token, the last of `labels`, took. Only ASCII where `plain`.
    """
    found = []
    token = one_line(labels[-1]) if labels else "the last token"
    name = max(columns_of(one_line(record["layer"])) for record in records)
    for record in records[: max(1, lines - 2)]:
        load = record["load"]
        marks = PLAIN if plain else BARS
        head = f"{padded(one_line(record['layer']), name, right=False)}  "
        figures = f"balance {record['balance']:.2f}, busiest {record['busiest']:.1f}x"
        figures += f", {record['idle']} idle" if record["idle"] else ""
        figures += f", {record['dropped']} dropped" if record["dropped"] else ""
        took = " ".join(
            f"{e}:{100 * w:.0f} %"
            for e, w in list(zip(record["chosen"][-1], record["weights"][-1], strict=True))[:2]
        )
        room = columns - columns_of(head) - len(figures) - len(took) - 6
        bars = "".join(_bar(share, max(load), marks) for share in _folded(load, max(4, room)))
        found.append(f"{head}[{bars}] {figures}  {took}"[:columns])
    if len(records) > len(found):
        found.append(f"({len(records) - len(found)} further layers with experts: --json)")
    title = f"experts: load of each by layer, and those that {token!r} took"
    return [title if columns_of(title) <= columns else title[:columns], *found]


def _folded(load: Sequence[float], room: int) -> list[float]:
    """At most `room` values: the largest of neighbours, where there are more experts."""
    size = -(-len(load) // room)
    return [max(load[start : start + size]) for start in range(0, len(load), size)]


def _bar(share: float, most: float, marks: str) -> str:
    """A blank for nothing, else one of the marks by the share of the largest."""
    if not share or not most:
        return marks[0]
    return marks[max(1, round(share / most * (len(marks) - 1)))]
