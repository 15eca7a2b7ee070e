"""A result as text for people: of time, of shares, of memory."""

from __future__ import annotations

from collections.abc import Sequence

from bigmodel_cli.bench.result import Measured, Result
from bigmodel_cli.console import quantity, rate, seconds_of, sentence, table


def to_text(result: Result) -> str:
    """Two tables: of time, and of memory."""
    measured = result.measured
    columns = ["network", "computed in", "median", "p95", "rate", "to the first", "FLOP/s", "MFU"]
    columns.append("parameters")
    ratios = [m.ratio(measured[0]) for m in measured]
    rows = [
        [
            m.facts.name,
            m.facts.precision
            + (" channels_last" if m.facts.memory_format == "channels_last" else ""),
            seconds_of(m.median),
            seconds_of(m.percentile(0.95)),
            rate(m.per_second, m.facts.unit),
            "-" if found is None else f"{found:.2f} x",
            *_work(m),
            f"{m.facts.parameters:,}",
        ]
        for m, found in zip(measured, ratios, strict=True)
    ]
    if all(found is None for found in ratios[1:]):
        columns, *rows = [[*row[:5], *row[6:]] for row in (columns, *rows)]
    return (
        f"training steps on {measured[0].facts.device}\n{table(columns, rows)}{_doubt(measured)}"
        f"{_of_memory(measured)}"
    )


def _work(measured: Measured) -> list[str]:
    share, work = measured.share, measured.work
    if work is None or share is None:
        return ["-", "-"]
    return [quantity(work.useful / measured.median, "FLOP/s"), f"{100 * share:.0f} %"]


def _of_memory(measured: Sequence[Measured]) -> str:
    """What training was foreseen to need, and what it took."""
    rows, parts = [], []
    for m in measured:
        foreseen = {n: v for n, v in m.facts.foreseen.items() if n != "batch"}
        parts = [name.replace("_", " ") for name in foreseen]
        peaks = [quantity(p, "B") if p else "-" for p in (m.peak_tensors, m.peak_process)]
        rows.append([m.facts.name, *(quantity(v, "B") for v in foreseen.values()), *peaks])
    title = "memory of training, foreseen in fp32 and without the data, and the peak of a step"
    return f"\n\n{title}\n" + table(["network", *parts, "peak measured", "process"], rows)


def _doubt(measured: Sequence[Measured]) -> str:
    """What is said where a share of the peak is impossible."""
    if all((m.share or 0) <= 1 for m in measured):
        return ""
    return "\n" + sentence(
        "MFU above 100 %: the machine was faster in the steps than in the matrix products that"
        " measure its peak; other work slowed it: run it again alone"
    )
