"""What was learnt as text for people: a table, and who is better than whom."""

from __future__ import annotations

from bigmodel_cli.bench.learn.ladder import WITHIN
from bigmodel_cli.bench.learn.ranking import BETTER, UNDECIDED
from bigmodel_cli.bench.learn.result import Learning, Learnt
from bigmodel_cli.console import counted, listed, rate, table

MOST = 20
"""Names in a line."""


def to_text(found: Learning) -> str:
    """The best first."""
    metric = found.metric
    columns = ["structure", "parameters", metric.name, "95 %", "best rate", "good rates"]
    columns += ["steps", "rate", "runs", "lost"]
    rows = [_row(found, structure) for structure in found.ranked]
    budgets = [b.text for b in (found.length, found.size) if b is not None]
    seeds = counted(len(found.seeds), "seed")
    head = f"{metric.name} on the validation data after {' and '.join(budgets)}, {seeds}"
    foot = (
        f"good rates: {metric.name} at most {100 * WITHIN:.0f} % worse than at the best rate, with"
        f" seed {found.seeds[0]}; > or <: the window may go on, beyond what was tried"
    )
    parts = [f"{head}\n{table(columns, rows)}", foot, *verdicts(found), found.note]
    return "\n".join(part for part in parts if part)


def _row(found: Learning, own: Learnt) -> list[str]:
    metric = found.metric
    name, mean, best = metric.name, own.mean, own.rate
    half = own.half
    per_second = _per_second(own)
    return [
        own.name,
        f"{own.parameters:,}",
        "not finite" if mean is None else metric.shown(name, mean),
        "-" if half is None else f"+- {metric.shown_difference(name, half)}",
        "-" if best is None else f"{best:.3g}",
        window_of(own),
        "-" if not own.best else f"{sum(o.steps for o in own.best) / len(own.best):,.0f}",
        "-" if per_second is None else rate(per_second, own.unit),
        f"{len(own.outcomes)}",
        f"{100 * own.share_lost:.0f} %",
    ]


def _per_second(own: Learnt) -> float | None:
    """The rate of the best runs in training."""
    steps = sum(o.steps for o in own.best)
    seconds = sum(o.curve[-1].seconds for o in own.best if o.curve)
    return steps * own.size / seconds if seconds > 0 else None


def window_of(own: Learnt) -> str:
    """'< 0.001 to 0.004 (4 x)'."""
    window = own.window
    if window is None:
        return "-"
    low = f"{'< ' if window.open_below else ''}{window.low:.3g}"
    high = f"{'> ' if window.open_above else ''}{window.high:.3g}"
    return f"{low} to {high} ({window.width:g} x)"


def verdicts(found: Learning) -> list[str]:
    """A line for each structure: which others it is surely better than, and with which it is not
    decided.
    """
    if not found.pairs:
        return []
    lines = [
        "verdicts, each pair over seeds and validation items; any of them is false with a"
        " probability of 5 %:"
    ]
    better: dict[str, list[str]] = {own.name: [] for own in found.ranked}
    unsure: dict[str, list[str]] = {own.name: [] for own in found.ranked}
    places = {own.name: number for number, own in enumerate(found.ranked)}
    for pair in found.pairs:
        upper, lower = sorted((pair.first, pair.second), key=places.__getitem__)
        if pair.says == UNDECIDED:
            unsure[upper].append(lower)
        else:
            winner = pair.second if pair.says == BETTER else pair.first
            better[winner].append(pair.first if winner == pair.second else pair.second)
    for own in found.ranked:
        says = []
        if better[own.name]:
            says.append(f"better than {listed(better[own.name], MOST)}")
        if unsure[own.name]:
            says.append(f"not decided against {listed(unsure[own.name], MOST)}")
        if says:
            lines.append(f"  {own.name}: {'; '.join(says)}")
    return lines
