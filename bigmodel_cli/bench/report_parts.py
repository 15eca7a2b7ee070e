"""The parts of steps as text, what generation tells besides, and who was left out."""

from __future__ import annotations

from collections.abc import Sequence

from bigmodel_cli.bench.result import LeftOut, Measured
from bigmodel_cli.bench.shares import percent
from bigmodel_cli.console import quantity, rate, seconds_of, table


def of_parts(measured: Sequence[Measured]) -> str:
    """A table of the parts of a step, where it has several; "" else.

    Shares are of the sum of the parts: on a GPU they are measured in steps of their own, which wait
    after each part.
    """
    parts = {m.facts.name: m.parts() for m in measured}
    names = list(dict.fromkeys(name for own in parts.values() for name in own))
    if len([name for name in names if name != "rest"]) < 2:
        return ""
    rows = [
        [
            name,
            *(
                f"{seconds_of(own[part])} ({100 * own[part] / (sum(own.values()) or 1):.0f} %)"
                if part in own
                else "-"
                for part in names
            ),
        ]
        for name, own in parts.items()
    ]
    return "\n\nparts of a step\n" + table(["network", *names], rows)


def of_generation(measured: Sequence[Measured]) -> str:
    """A table of reading and of writing, for what writes texts; "" else."""
    rows = []
    for m in measured:
        told, parts = m.facts.told, m.parts()
        if "first_token_s" not in told:
            continue
        rows.append(
            [
                m.facts.name,
                f"{told['prompt_tokens']:.0f} + {told['new_tokens']:.0f}",
                rate(m.facts.batch_size * told["prompt_tokens"] / parts["prefill"], "tokens"),
                seconds_of(told["first_token_s"]),
                rate(m.facts.batch_size * (told["new_tokens"] - 1) / parts["decode"], "tokens"),
                quantity(told["cache_bytes"], "B"),
                percent(m.read_share),
            ]
        )
    columns = ["network", "tokens", "prefill", "first token after", "decode", "cache"]
    columns.append("of the copy rate")
    return "\n\nreading and writing\n" + table(columns, rows) if rows else ""


def of_left_out(left_out: Sequence[LeftOut]) -> str:
    """A line for each target that could not do a kind of work; "" where all could."""
    return "".join(f"\n\n{found.name}: not timed: {found.reason}" for found in left_out)
