"""Shards that will be needed next, fetched while others are used."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence

from bigmodel_cli.errors import BigmodelError

THREADS = 8
"""Files that are fetched at a time: each waits for answers most of the time."""


class Prefetch:
    """Has shards, by number, fetched in the order in which they are announced, by threads.

    At most `room` bytes of them lie ahead of the one that was used last: more would push each other
    out of the cache. A shard that is used stands for all that were announced before it, whoever
    used those. A fault is not said here: who needs the shard meets it again.
    """

    def __init__(self, fetch: Callable[[int], object], sizes: Sequence[int], room: int) -> None:
        self.fetch, self.sizes, self.room = fetch, sizes, room
        self.begin()

    def begin(self) -> None:
        """Forget everything: threads and locks do not live on in a process that is forked."""
        self.process = os.getpid()
        self.turns: dict[int, int] = {}
        self.announced: list[int] = []
        self.used_up = self.begun = 0  # of those announced: how many are behind, and were begun
        self.changed = threading.Condition()
        self.threads: list[threading.Thread] = []

    def __getstate__(self) -> dict[str, object]:
        return {"fetch": self.fetch, "sizes": self.sizes, "room": self.room}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self.begin()

    def is_told(self) -> bool:
        """Whether something was announced in this process."""
        return self.process == os.getpid() and bool(self.announced)

    def announce(self, shards: Sequence[int]) -> None:
        """These are needed next, in this order, instead of what was announced before."""
        if self.process != os.getpid():
            self.begin()
        with self.changed:
            self.turns = {shard: turn for turn, shard in enumerate(shards)}
            self.announced = list(shards)
            self.used_up = self.begun = 0
            for _ in range(min(THREADS, len(shards)) - len(self.threads)):
                thread = threading.Thread(target=self._work, daemon=True)
                self.threads.append(thread)
                thread.start()
            self.changed.notify_all()

    def used(self, shard: int) -> None:
        """This one was asked for: it and those before it make room for others."""
        if self.process != os.getpid():
            return
        with self.changed:
            turn = self.turns.get(shard, -1)
            if turn >= self.used_up:
                self.used_up = turn + 1
                self.begun = max(self.begun, self.used_up)
                self.changed.notify_all()

    def _next(self) -> int | None:
        """The shard that is to be fetched now; None where there is none, or no room for it."""
        if self.begun >= len(self.announced):
            return None
        ahead = sum(self.sizes[shard] for shard in self.announced[self.used_up : self.begun])
        shard = self.announced[self.begun]
        return shard if ahead + self.sizes[shard] <= self.room else None

    def _work(self) -> None:
        while True:
            with self.changed:
                while (shard := self._next()) is None:
                    self.changed.wait()
                self.begun += 1
            try:
                self.fetch(shard)
            except (BigmodelError, OSError):
                continue
