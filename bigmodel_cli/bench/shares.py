"""Where the time of steps goes, as text for people."""

from __future__ import annotations

from collections.abc import Sequence

from bigmodel_cli.bench.losses import HOST, OTHERS, WAIT
from bigmodel_cli.bench.result import Measured
from bigmodel_cli.console import counted, seconds_of, sentence, table

NOISY = 0.95
"""Where operations' times had to be shortened to less than this to fit in the step, it is said."""


def of_time(measured: Sequence[Measured]) -> str:
    """For each target what its step has to take and what it loses, and what to change; how the
    machine's peaks were measured.
    """
    texts = [found for m in measured if (found := _of(m))]
    peaks = dict.fromkeys(m.work.peaks for m in measured if m.work is not None and m.work.peaks)
    roofs = ["the machine's peaks: " + each for each in peaks]
    return "".join(f"\n\n{text}" for text in [*texts, "\n".join(map(sentence, roofs))] if text)


def percent(part: float | None) -> str:
    """A share; "-" where there is none."""
    return "-" if part is None else f"{100 * part:.0f} %"


def _of(measured: Measured) -> str:
    found, work = measured.roofline, measured.work
    if found is None or work is None:
        return ""
    by_name = {o.name: o for o in found.operations}
    lost = [loss for loss in found.losses if loss.name != OTHERS or loss.seconds]
    own = [loss for loss in lost if loss.name not in (HOST, WAIT, OTHERS)]
    others = [o for o in found.operations if o.name not in {loss.name for loss in own}]

    def row(name: str, calls: int | None, took: float, least: float) -> list[str]:
        times = [seconds_of(took), seconds_of(least), seconds_of(took - least)]
        share = f"{100 * (took - least) / found.seconds:.0f} %" if found.seconds else "-"
        return [name, "-" if calls is None else f"{calls:,}", *times, share]

    rows = []
    for loss in lost:
        if loss.name == OTHERS:
            took, least = sum(o.seconds for o in others), sum(o.least for o in others)
            rows.append(row(OTHERS, sum(o.calls for o in others), took, least))
        elif (o := by_name.get(loss.name)) is not None and loss in own:
            rows.append(row(o.name, o.calls, o.seconds, o.least))
        else:
            rows.append(row(loss.name, None, loss.seconds, 0.0))
    columns = ["operation", "calls", "time", "at the peaks", "lost", "of the step"]
    title = (
        f"where a step of {measured.facts.name} goes: {seconds_of(found.seconds)}, of which"
        f" {seconds_of(found.least)} ({100 * found.share:.0f} %) at the machine's peaks"
    )
    said = [measured.advice or "", work.note]
    held = sum(o.held for o in found.operations)
    if held:
        calls = sum(o.calls for o in found.operations)
        said.append(
            f"{held:,} of {counted(calls, 'call')} were faster than the peaks, from caches: their"
            f" own time counts as what they have to take ({100 * found.held:.0f} % of that time)"
        )
    if found.pressed < NOISY:
        said.append(
            f"operations took {100 / found.pressed - 100:.0f} % longer while they were watched than"
            " fits in a step: their times are in proportion; run it again alone"
        )
    notes = "\n".join(sentence(text) for text in said if text)
    return f"{title}\n{table(columns, rows)}\n{notes}".rstrip()
