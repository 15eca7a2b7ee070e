"""Shards that will be needed next, fetched while others are used."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable

from bigmodel_cli.errors import BigmodelError

THREADS = 3
"""Files that are fetched at a time."""


class Prefetch:
    """Fetches shards by number, in the order in which they are announced, by threads.

    At most `ahead` of them are there that were not asked for: more would push each other out of the
    cache. A fault is not said here: who needs the shard meets it again.
    """

    def __init__(self, fetch: Callable[[int], object], ahead: int) -> None:
        self.fetch, self.ahead = fetch, ahead
        self.process = 0
        self.begin()

    def begin(self) -> None:
        """Forget everything: threads and locks do not live on in a process that is forked."""
        self.process = os.getpid()
        self.waiting: deque[int] = deque()
        self.fetched: set[int] = set()
        self.known: set[int] = set()
        self.changed = threading.Condition()
        self.threads: list[threading.Thread] = []

    def __getstate__(self) -> dict[str, object]:
        return {"fetch": self.fetch, "ahead": self.ahead}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self.begin()

    def announce(self, shards: Iterable[int]) -> None:
        """These are needed next, in this order, instead of what was announced before."""
        if self.ahead <= 0:
            return
        if self.process != os.getpid():
            self.begin()
        with self.changed:
            self.waiting = deque(dict.fromkeys(shards))
            self.known = set(self.waiting)
            self.fetched &= self.known
            for _ in range(THREADS - len(self.threads)):
                thread = threading.Thread(target=self._work, daemon=True)
                self.threads.append(thread)
                thread.start()
            self.changed.notify_all()

    def used(self, shard: int) -> None:
        """This one was asked for: it makes room for another."""
        if self.process == os.getpid() and shard in self.known:
            with self.changed:
                self.known.discard(shard)
                self.fetched.discard(shard)
                self.changed.notify_all()

    def _work(self) -> None:
        changed = self.changed
        while True:
            with changed:
                while not self.waiting or len(self.fetched) >= self.ahead:
                    changed.wait()
                shard = self.waiting.popleft()
                if shard not in self.known:
                    continue
                self.fetched.add(shard)
            try:
                self.fetch(shard)
            except BigmodelError:
                with changed:
                    self.fetched.discard(shard)
