"""Shards that will be needed next, fetched while others are used."""

from __future__ import annotations

import os
import threading
from abc import abstractmethod
from collections.abc import Sequence

from bigmodel_cli.errors import BigmodelError

THREADS = 8
"""Files that are fetched at a time: each waits for answers most of the time."""


class Prefetch:
    """Has shards, by number, fetched in the order in which they are announced, by threads.

    At most `room` bytes of them lie ahead of the one that was used last: more would push each other
    out of the cache. A shard that is used stands for all that were announced before it, whoever
    used those. A fault is not said here: who needs the shard meets it again.
    """

    def __init__(self, sizes: Sequence[int], room: int) -> None:
        self.sizes, self.room = sizes, room
        self.begin()

    @abstractmethod
    def fetch(self, shard: int) -> None:
        """Fetch a shard, unless it is there."""

    @abstractmethod
    def keep(self, shard: int) -> None:
        """A shard that was fetched and not used yet counts as used now: another makes room."""

    def begin(self) -> None:
        """Forget everything: threads and locks do not live on in a process that is forked."""
        self.process = os.getpid()
        self.turns: dict[int, int] = {}
        self.announced: list[int] = []
        self.used_up = self.begun = 0  # of those announced: how many are behind, and were begun
        self.changed = threading.Condition()
        self.threads: list[threading.Thread] = []

    def __getstate__(self) -> dict[str, object]:
        own = ("process", "turns", "announced", "used_up", "begun", "changed", "threads")
        return {name: value for name, value in vars(self).items() if name not in own}

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
                ahead = self.announced[self.used_up : self.begun]
                self.begun += 1
            for other in reversed(ahead):
                self.keep(other)
            try:
                self.fetch(shard)
            except (BigmodelError, OSError):
                continue
