"""Targets take turns in blocks, forwards and backwards: A B B A A B B A ...

So a drift of the machine's speed meets all of them alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from bigmodel_cli.bench.doing import LEAST
from bigmodel_cli.bench.result import Block
from bigmodel_cli.bench.worker import Subject

SHORTEST = 0.25
"""Seconds of a block, unless its steps are longer."""


def take_turns(
    subjects: Sequence[Subject],
    seconds: float,
    decided: Callable[[list[list[Block]]], bool],
    clock: Callable[[], float] = time.perf_counter,
) -> list[list[Block]]:
    """The blocks of each subject, until `decided` says so of those so far, or each had about so
    many `seconds`; at least one of each.
    """
    blocks: list[list[Block]] = [[] for _ in subjects]
    deadline, place = clock() + seconds * len(subjects), 0
    order = list(range(len(subjects)))
    while not blocks[0] or (clock() < deadline and not decided(blocks)):
        for number in order:
            found = subjects[number].block(min(SHORTEST, seconds), LEAST)
            blocks[number].append(replace(found, place=place))
            place += 1
        order.reverse()
    return blocks
