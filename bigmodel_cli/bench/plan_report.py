"""Plans as text for people."""

from __future__ import annotations

from collections.abc import Sequence

from bigmodel_cli.bench.clusters import (
    ATTENTION,
    ETHERNET,
    FULL_NAMES,
    JOINED,
    LINKS,
    MOVING,
    OVERLAP,
    PRODUCTS,
    THIS,
)
from bigmodel_cli.bench.mesh.advice import smaller
from bigmodel_cli.bench.mesh.memory import FULL
from bigmodel_cli.bench.mesh.report import of_process
from bigmodel_cli.bench.plan import ALONE, Plan, order
from bigmodel_cli.bench.shares import percent
from bigmodel_cli.console import quantity, rate, seconds_of, sentence, table

MOST = 5
"""Operations that are listed."""


def _batch(plan: Plan) -> str:
    """The samples of a step: devices that take other ones x passes x rows, of which the last may
    have fewer.
    """
    count, share = plan.axes.samples, plan.share
    room = count * share.passes * share.rows
    if room == share.rows:
        return f"{plan.batch:,}"
    sign = "=" if room == plan.batch else "in"
    return f"{plan.batch:,} {sign} {count:,} x {share.passes:,} x {share.rows:,}"


def to_text(plans: Sequence[Plan]) -> str:
    """Tables of time and of memory, where the time goes, and what is assumed."""
    texts = [_times(plans), _memory(plans), *map(of_process, _divided(plans))]
    texts += [f"{plan.name} on {plan.cluster}: {_longest(plan)}" for plan in plans]
    return "\n\n".join([*texts, "\n".join(sentence(text) for text in _said(plans))])


def to_text_of_mesh(plan: Plan) -> str:
    """The same of one plan, whose sentence comes last."""
    texts = [_times([plan]), f"{plan.name} on {plan.cluster}: {_longest(plan)}"]
    texts.append("\n".join(sentence(text) for text in _said([plan])))
    return "\n\n".join([*texts, of_process(plan)])


def _divided(plans: Sequence[Plan]) -> list[Plan]:
    return [plan for plan in plans if plan.how != ALONE]


def _times(plans: Sequence[Plan]) -> str:
    columns = ["network", "devices", "computed in", "batch", "step", "rate", "MFU"]
    columns += ["forward", "backward", "update", "communication"]
    rows = [
        [
            plan.name,
            str(plan.cluster),
            _mode(plan),
            _batch(plan),
            seconds_of(plan.step),
            rate(plan.size / plan.step, plan.unit),
            percent(plan.mfu),
            *(seconds_of(plan.parts[part]) for part in ("forward", "backward", "update")),
            _sent(plan),
        ]
        for plan in plans
    ]
    return f"training steps on paper\n{table(columns, rows)}"


def _mode(plan: Plan) -> str:
    layout = " channels_last" if plan.memory_format == "channels_last" else ""
    return f"{plan.precision}{layout}{' compiled' if plan.compiled else ''}"


def _sent(plan: Plan) -> str:
    if plan.how == ALONE:
        return "-"
    return f"{seconds_of(plan.parts['communication'])} of {seconds_of(plan.communication)}"


def _memory(plans: Sequence[Plan]) -> str:
    rows = [
        [
            plan.name,
            str(plan.cluster),
            plan.how,
            quantity(plan.memory.kept, "B"),
            quantity(plan.memory.passes, "B"),
            quantity(plan.memory.room, "B"),
            "yes" if plan.memory.fits else "no",
            "-" if plan.how == ALONE else quantity(plan.sent, "B"),
        ]
        for plan in plans
    ]
    columns = ["network", "devices", "spread", "kept", "in passes", "there is", "fits"]
    return "memory of a device, and what it sends in a step\n" + table([*columns, "sent"], rows)


def _longest(plan: Plan) -> str:
    whole = sum(plan.operations.values()) or 1.0
    longest = order(plan.operations, MOST)
    shares = ", ".join(f"{name} {100 * seconds / whole:.0f} %" for name, seconds in longest)
    return f"of the operations' time {shares}"


def _said(plans: Sequence[Plan]) -> list[str]:
    """What does not fit, and what is assumed."""
    said = [
        f"{plan.name} does not fit {plan.cluster}: {quantity(plan.memory.kept, 'B')} stay and"
        f" {quantity(plan.memory.passes, 'B')} are added in passes, of"
        f" {100 * FULL:.0f} % of {quantity(plan.memory.room, 'B')}; {smaller(plan)}"
        for plan in plans
        if not plan.memory.fits
    ]
    here = [plan for plan in plans if plan.cluster.name == THIS]
    named = dict.fromkeys(p.cluster.name for p in plans if p.cluster.name != THIS)
    if here:
        said.append(
            "this: by operations of networks and of many sizes that were measured here (kept a day;"
            " --roof measures them anew)"
            if not here[0].at_peaks
            else "this: at the peaks of its products and copies, measured here (kept a day); no"
            " step is as fast"
        )
    for name in named:
        said.append(f"{name}: {FULL_NAMES[name]}")
    if named:
        said.append(
            f"of published dense rates products reach {100 * PRODUCTS:.0f} %, attention"
            f" {100 * ATTENTION:.0f} %, the memory {100 * MOVING:.0f} %, links {100 * LINKS:.0f} %;"
            f" compiled, {100 * JOINED:.0f} % of the bytes of what only moves numbers are left; all"
            " of that is assumed, not measured"
        )
    if _divided(plans):
        said.append(
            "communication (what nothing hides, of all): rings; what goes on beside passes is"
            f" hidden by up to {100 * OVERLAP:.0f} % of them"
        )
    if any(plan.cluster.count > 1 for plan in here):
        said.append(f"between machines such as this: {quantity(8 * ETHERNET, 'bit/s')} assumed")
    said.append("waiting for data is not counted, experts are chosen evenly, rows are whole")
    return said
