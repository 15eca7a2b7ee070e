"""What one process of a plan keeps and sends, as text for people and as rows."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from bigmodel_cli.bench.mesh.advice import advice
from bigmodel_cli.bench.plan import Plan
from bigmodel_cli.console import quantity, seconds_of, sentence, table
from bigmodel_cli.outputs import write_output

COLUMNS = ("part", "name", "axis", "bytes", "bytes_at_peak", "exchanges", "seconds")


def of_process(plan: Plan) -> str:
    """Tables of a process's memory and of what it sends, and a sentence of what they come to."""
    title = f"memory of a process of {plan.name} on {plan.cluster}: {plan.axes}"
    texts = [f"{title}\n{_memory(plan)}"]
    if plan.exchanges:
        texts.append(f"what it sends in a step\n{_sent(plan)}")
    return "\n\n".join([*texts, sentence(advice(plan))])


def _memory(plan: Plan) -> str:
    memory = plan.memory
    rows = [
        [name, *(quantity(kind.get(name, 0.0), "B") for kind in (memory.most, memory.at_peak))]
        for name in memory.most
    ]
    rows.append([f"in all, {memory.moment}", "-", quantity(memory.peak, "B")])
    rows.append(["there is", "-", quantity(memory.room, "B")])
    return table(["of it", "at its most", "at the peak"], rows)


def _sent(plan: Plan) -> str:
    rows = [
        [
            e.kind,
            f"{e.axis} {plan.axes.ring(e.axis)[0]:,}",
            quantity(e.bytes, "B"),
            f"{e.calls:,.0f}",
            seconds_of(e.seconds),
            "beside the passes" if e.hidden else "waited for",
        ]
        for e in plan.exchanges
    ]
    return table(["what", "among", "bytes", "exchanges", "time", "when"], rows)


def write_csv(plan: Plan, path: Path) -> None:
    """A row for each kind of memory, exchange and part of the step. Raises `ResourceError`."""
    text, memory = io.StringIO(newline=""), plan.memory
    rows = csv.writer(text)
    rows.writerow(COLUMNS)
    for name, most in memory.most.items():
        rows.writerow(["memory", name, "", most, memory.at_peak.get(name, 0.0), "", ""])
    for e in plan.exchanges:
        rows.writerow(["exchange", e.kind, e.axis, e.bytes, "", e.calls, e.seconds])
    for name, seconds in plan.parts.items():
        rows.writerow(["step", name, "", "", "", "", seconds])
    write_output(path, [text.getvalue().encode()])
