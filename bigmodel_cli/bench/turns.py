"""Processes take turns in blocks, forwards and backwards: A B B A A B B A ...

So a drift of the machine's speed meets all of them alike.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from bigmodel_cli.bench.doing import LEAST
from bigmodel_cli.bench.mood import Reading, mood, one_tick, read, refusal
from bigmodel_cli.bench.result import Block
from bigmodel_cli.bench.worker import Subject

SHORTEST = 0.15
"""Seconds of a block, unless its steps are longer."""


@dataclass
class Turns:
    """The blocks so far, of each subject.

    `reading` and `clock` tell of the machine and the time.
    """

    subjects: Sequence[Subject]
    reading: Callable[[], Reading | None] = read
    clock: Callable[[], float] = time.perf_counter
    blocks: list[list[Block]] = field(default_factory=list)

    def take(self, seconds: float, decided: Callable[[list[list[Block]]], bool]) -> None:
        """Rounds, until `decided` says so of the blocks so far, or `seconds` are over; at least
        one.
        """
        self.blocks = [[] for _ in self.subjects]
        order, place = list(range(len(self.subjects))), 0
        deadline = self.clock() + seconds
        while not self.blocks[0] or (self.clock() < deadline and not decided(self.blocks)):
            for number in order:
                self.blocks[number].append(self._block(number, seconds, place))
                place += 1
            order.reverse()

    def _block(self, number: int, seconds: float, place: int) -> Block:
        before, own = self.reading(), time.process_time()
        least = 1 if len(self.subjects) > 1 else LEAST
        found = self.subjects[number].block(min(SHORTEST, seconds), least)
        after = self.reading()
        own = time.process_time() - own  # asking and reading take a share of a short block too
        seen = mood(before, after, found.processor + own)
        rejected = refusal(seen, self._usual(), one_tick(before, after))
        return replace(found, place=place, mood=seen, rejected=rejected)

    def _usual(self) -> float | None:
        """The median frequency so far; None where it is not known."""
        known = [b.mood.mhz for own in self.blocks for b in own if b.mood.mhz is not None]
        return statistics.median(known) if known else None
