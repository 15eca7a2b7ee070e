"""A result as text for people: of time, of shares, of memory."""

from __future__ import annotations

from collections.abc import Sequence

from bigmodel_cli.bench.result import Measured, Result
from bigmodel_cli.bench.shares import of_time
from bigmodel_cli.bench.verdict import UNDECIDED
from bigmodel_cli.console import counted, quantity, rate, seconds_of, sentence, table


def to_text(result: Result) -> str:
    """Two tables: of time, and of memory."""
    measured = result.measured
    columns = ["network", "computed in", "median", "p95", "rate", "to the first", "FLOP/s", "MFU"]
    columns += ["memory", "roofline", "parameters"]
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
    said = [sentence(verdict_of(m, measured[0])) for m in measured if m.verdict is not None]
    verdicts = "\n\n" + "\n".join(said) if said else ""
    return (
        f"training steps on {measured[0].facts.device}\n{table(columns, rows)}{_doubt(measured)}"
        f"{verdicts}{of_time(measured)}{_of_memory(measured)}"
    )


def verdict_of(measured: Measured, first: Measured) -> str:
    """The verdict on a target in words."""
    verdict = measured.verdict
    assert verdict is not None
    per = f"for each of its {measured.facts.unit}"
    name, other = measured.facts.name, first.facts.name
    if verdict.rejected > verdict.rounds:
        every = verdict.rounds + verdict.rejected
        return (
            f"{name} against {other}: other work ran in {verdict.rejected:,} of"
            f" {counted(every, 'round')}, too many to tell; run it alone"
        )
    if verdict.low is None or verdict.high is None or verdict.floor is None:
        return f"{name} against {other}: too few rounds to tell"
    percent = f"{abs(100 * verdict.change):.1f} % "
    ends = sorted(100 * end for end in (verdict.low, verdict.high))
    said = {
        "slower": f"{name} takes {percent}longer than {other} {per}",
        "faster": f"{name} takes {percent}less time than {other} {per}",
        "same": f"{name} and {other} are equally fast, within 1 %",
        UNDECIDED: f"{name} against {other}: not decided",
    }[verdict.says]
    lost = ""
    if verdict.rejected:
        lost = f"; {counted(verdict.rejected, 'round was', 'rounds were')} left out: other work ran"
    return (
        f"{said} (99 %: {ends[0]:+.1f} to {ends[1]:+.1f} %; processes of one program differ by"
        f" {100 * verdict.floor:.1f} %; {counted(verdict.rounds, 'round')}{lost})"
    )


def _work(measured: Measured) -> list[str]:
    share, work = measured.share, measured.work
    if work is None or share is None:
        return ["-"] * 4
    found = None if measured.roofline is None else measured.roofline.share
    shares = [_percent(part) for part in (share, measured.read_share, found)]
    return [quantity(work.useful / measured.median, "FLOP/s"), *shares]


def _percent(part: float | None) -> str:
    return "-" if part is None else f"{100 * part:.0f} %"


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
