"""A result as text for people: of time, of shares, of memory."""

from __future__ import annotations

from collections.abc import Sequence

from bigmodel_cli.bench.kinds import KINDS
from bigmodel_cli.bench.report_parts import of_generation, of_left_out, of_parts
from bigmodel_cli.bench.result import Measured, Result
from bigmodel_cli.bench.shares import of_time, percent
from bigmodel_cli.bench.verdict import UNDECIDED
from bigmodel_cli.console import counted, quantity, rate, seconds_of, sentence, table


def to_text(result: Result) -> str:
    """Tables of time, of parts and of memory, for each kind of work."""
    texts = [_of_one_kind(KINDS[doing].title, own) for doing, own in result.by_doing().items()]
    return "\n\n".join(texts) + of_left_out(result.left_out)


def _of_one_kind(title: str, measured: Sequence[Measured]) -> str:
    columns = ["network", "batch", "computed in", "median", "p95", "rate", "to the first"]
    columns += ["FLOP/s", "MFU", "roofline", "parameters"]
    ratios = [m.ratio(measured[0]) for m in measured]
    rows = [
        [
            m.facts.name,
            f"{m.facts.batch_size:,}",
            _mode(m),
            seconds_of(m.median),
            seconds_of(m.percentile(0.95)),
            rate(m.per_second, m.facts.unit),
            "-" if found is None else f"{found:.2f} x",
            *_work(m),
            f"{m.facts.parameters:,}",
        ]
        for m, found in zip(measured, ratios, strict=True)
    ]
    if any(m.joules is not None for m in measured):
        columns.append("energy a step")
        for row, m in zip(rows, measured, strict=True):
            row.append("-" if m.joules is None else f"{m.joules:.3g} J")
    if all(found is None for found in ratios[1:]):
        columns, *rows = [[*row[:6], *row[7:]] for row in (columns, *rows)]
    said = [sentence(verdict_of(m, measured[0])) for m in measured if m.verdict is not None]
    verdicts = "\n\n" + "\n".join(said) if said else ""
    return (
        f"{title} on {measured[0].facts.device}\n{table(columns, rows)}{_doubt(measured)}"
        f"{verdicts}{of_parts(measured)}{of_generation(measured)}{of_time(measured)}"
        f"{_of_memory(measured)}"
    )


def _mode(measured: Measured) -> str:
    facts = measured.facts
    layout = " channels_last" if facts.memory_format == "channels_last" else ""
    return f"{facts.precision}{layout}{' compiled' if facts.compiled else ''}"


def verdict_of(measured: Measured, first: Measured) -> str:
    """The verdict on a target in words."""
    verdict = measured.verdict
    assert verdict is not None
    per = f"for each of its {measured.facts.unit}"
    name, other = measured.facts.name, first.facts.name
    what = "block" if verdict.apart else "round"
    if verdict.rejected > verdict.rounds:
        every = verdict.rounds + verdict.rejected
        return (
            f"{name} against {other}: other work ran in {verdict.rejected:,} of"
            f" {counted(every, what)}, too many to tell; run it alone"
        )
    if verdict.low is None or verdict.high is None or verdict.floor is None:
        return f"{name} against {other}: too few rounds to tell"
    percent = f"{abs(100 * verdict.change):.1f} % "
    ends = sorted(100 * end for end in (verdict.low, verdict.high))
    said = {
        "slower": f"{name} takes {percent}longer than {other} {per}",
        "faster": f"{name} takes {percent}less time than {other} {per}",
        "same": f"{name} and {other} are equally fast",
        UNDECIDED: f"{name} against {other}: not decided",
    }[verdict.says]
    lost = ""
    if verdict.rejected:
        left_out = counted(verdict.rejected, f"{what} was", f"{what}s were")
        lost = f"; {left_out} left out: other work ran"
    return (
        f"{said} (99 %: {ends[0]:+.1f} to {ends[1]:+.1f} %; processes of one program differ by"
        f" {100 * verdict.floor:.1f} %; {counted(verdict.rounds, what)}{lost})"
    )


def _work(measured: Measured) -> list[str]:
    share, work = measured.share, measured.work
    if work is None or share is None:
        return ["-"] * 3
    found = None if measured.roofline is None else measured.roofline.share
    return [quantity(work.useful / measured.median, "FLOP/s"), percent(share), percent(found)]


def _of_memory(measured: Sequence[Measured]) -> str:
    """What training was foreseen to need, and what it took; of other work, what it took."""
    parts = list(dict.fromkeys(n for m in measured for n in m.facts.foreseen if n != "batch"))
    on_device = any(m.peak_device is not None for m in measured)
    rows = []
    for m in measured:
        peaks = [m.peak_tensors, m.peak_process, *([m.peak_device] if on_device else [])]
        sizes = [*(m.facts.foreseen.get(part) for part in parts), *peaks]
        rows.append([m.facts.name, *(quantity(n, "B") if n else "-" for n in sizes)])
    foreseen = " of training, foreseen in fp32 and without the data" if len(parts) > 1 else ""
    title = f"memory{foreseen}, the peak of a step, and of the process above what it began with"
    names = [part.replace("_", " ") for part in parts]
    columns = ["network", *names, "peak measured", "process", *(["device"] if on_device else [])]
    return f"\n\n{title}\n" + table(columns, rows)


def _doubt(measured: Sequence[Measured]) -> str:
    """What is said where a share of the peak is impossible."""
    if all((m.share or 0) <= 1 for m in measured):
        return ""
    return "\n" + sentence(
        "MFU above 100 %: the machine was faster in the steps than in the matrix products that"
        " measure its peak; other work slowed it: run it again alone"
    )
