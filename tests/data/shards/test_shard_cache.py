"""The cache of shards: a bound at each moment, whoever fetches what, and whoever is killed."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bigmodel_cli.data.shards import cache as cache_module
from bigmodel_cli.data.shards.cache import DRAFT, LOCK, ShardCache
from bigmodel_cli.data.shards.prefetch import Prefetch
from bigmodel_cli.errors import DataError, ResourceError

LIMIT = 100_000
FORK = multiprocessing.get_context("fork")


def content(number: int) -> bytes:
    """Of another size for each number, up to two fifths of the limit."""
    return bytes([number]) * (4_000 + 36_000 * (number % 7) // 6)


def maker(number: int, pause: float = 0.001) -> Callable[[Any], None]:
    def make(file: Any) -> None:
        data = content(number)
        for place in range(0, len(data), 9_000):
            cache_module.write(file, data[place : place + 9_000])
            time.sleep(pause)

    return make


def taken(folder: Path) -> tuple[int, int, int]:
    """(bytes reserved or kept, bytes on the disk, drafts), while nothing is begun or removed."""
    reserved = there = drafts = 0
    with open(folder / LOCK, "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for path in folder.iterdir():
            try:
                size = path.stat().st_size
            except FileNotFoundError:  # a draft that was given up
                continue
            there += size
            if path.name.startswith(DRAFT):
                drafts += 1
                size = max(size, int(path.name.split("-")[2]))
            reserved += size
    return reserved, there, drafts


class Ahead(Prefetch):
    """Has files of `content` made."""

    def __init__(self, cache: ShardCache) -> None:
        self.cache = cache
        super().__init__([len(content(n)) for n in range(25)], LIMIT // 2)

    def fetch(self, shard: int) -> None:
        self.cache.prepare(str(shard), len(content(shard)), maker(shard))

    def keep(self, shard: int) -> None:
        self.cache.keep(str(shard))


def _run(folder: str, seed: int) -> None:
    """A run: two threads that read, and others that fetch ahead."""
    cache, draws = ShardCache(LIMIT, Path(folder)), random.Random(seed)
    order = [draws.randrange(25) for _ in range(45)]
    ahead = Ahead(cache)
    ahead.announce(list(dict.fromkeys(order)))
    faults = []

    def read(numbers: list[int]) -> None:
        try:
            for n in numbers:
                with cache.held(str(n), len(content(n)), maker(n)) as path:
                    time.sleep(0.001)
                    if path.read_bytes() != content(n):
                        faults.append(n)
                ahead.used(n)
        except BaseException:
            faults.append(-1)
            raise

    threads = [threading.Thread(target=read, args=(part,)) for part in (order[::2], order[1::2])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os._exit(3 if faults else 0)


def test_runs_threads_and_those_that_fetch_ahead_share_a_bound(tmp_path: Path) -> None:
    """Three runs with ten threads each; what is reserved is looked at all the while."""
    orphan = tmp_path / "draft-0000-90000"
    orphan.write_bytes(b"x" * 50_000)  # its maker was killed
    runs = [FORK.Process(target=_run, args=(str(tmp_path), n)) for n in range(3)]
    for run in runs:
        run.start()
    most = most_drafts = 0
    while any(run.is_alive() for run in runs):
        reserved, there, drafts = taken(tmp_path)
        if not orphan.exists():
            most, most_drafts = max(most, reserved), max(most_drafts, drafts)
            assert there <= reserved <= LIMIT
        time.sleep(0.001)
    assert [run.exitcode for run in runs] == [0] * 3
    assert most > LIMIT // 2
    assert most_drafts > 1
    assert not orphan.exists()


def test_a_file_that_is_read_is_not_removed_and_room_is_waited_for(tmp_path: Path) -> None:
    cache = ShardCache(LIMIT, tmp_path)
    done = threading.Event()

    def other() -> None:
        with cache.held("b", 60_000, lambda file: file.write(b"b" * 60_000)):
            done.set()

    thread = threading.Thread(target=other)
    with cache.held("a", 60_000, lambda file: file.write(b"a" * 60_000)) as path:
        thread.start()
        assert not done.wait(0.1)
        assert path.read_bytes() == b"a" * 60_000
    thread.join(10)
    assert done.is_set()
    assert not path.exists()
    assert taken(tmp_path)[:2] == (60_000, 60_000)


def test_a_file_larger_than_the_cache_or_than_was_said_is_refused(tmp_path: Path) -> None:
    cache = ShardCache(1_000, tmp_path)
    with (
        pytest.raises(ResourceError, match=r"data\.cache_bytes: 1\.0 kB do not hold one shard of"),
        cache.held("a", 1_001, lambda file: None),
    ):
        pass
    with (
        pytest.raises(DataError, match="more bytes than were foreseen"),
        cache.held("a", 10, lambda file: file.write(b"x" * 11)),
    ):
        pass
    assert taken(tmp_path) == (0, 0, 0)


def _killed(folder: str) -> None:
    def make(file: Any) -> None:
        file.write(b"half")
        os.kill(os.getpid(), signal.SIGKILL)

    ShardCache(LIMIT, Path(folder)).prepare("a", 90_000, make)


def test_a_process_killed_while_it_fetches_leaves_nothing(tmp_path: Path) -> None:
    process = FORK.Process(target=_killed, args=(str(tmp_path),))
    process.start()
    process.join(20)
    assert process.exitcode == -signal.SIGKILL
    assert taken(tmp_path) == (90_000, 4, 1)
    cache = ShardCache(LIMIT, tmp_path)
    with cache.held("b", 20_000, lambda file: file.write(b"b" * 20_000)):
        assert taken(tmp_path) == (20_000, 20_000, 0)
    with cache.held("a", 90_000, lambda file: file.write(b"a" * 90_000)) as path:
        assert path.stat().st_size == 90_000


def test_who_comes_second_waits_for_the_first_who_may_fail(tmp_path: Path) -> None:
    cache, begun, go, made = ShardCache(LIMIT, tmp_path), threading.Event(), threading.Event(), []

    def first(file: Any) -> None:
        begun.set()
        go.wait(10)
        raise DataError("the first one failed")

    def second(file: Any) -> None:
        made.append(1)
        file.write(b"x")

    def fetch() -> None:
        with pytest.raises(DataError, match="the first one failed"):
            cache.prepare("a", 10, first)

    thread = threading.Thread(target=fetch)
    thread.start()
    assert begun.wait(10)
    cache.prepare("a", 10, second)  # who fetches ahead does not wait
    threading.Timer(0.05, go.set).start()
    with cache.held("a", 10, second) as path:
        assert path.read_bytes() == b"x"
    thread.join(10)
    assert made == [1]


def _linger(is_up: Any) -> None:
    is_up.set()
    time.sleep(60)


def test_a_process_that_is_forked_holds_nothing_back(tmp_path: Path) -> None:
    """Loader workers begin while threads fetch: a lock that they inherit would last as they do."""
    cache, begun, go = ShardCache(LIMIT, tmp_path), threading.Event(), threading.Event()

    def make(file: Any) -> None:
        file.write(b"a" * 60_000)
        begun.set()
        go.wait(10)

    thread = threading.Thread(target=cache.prepare, args=("a", 60_000, make))
    thread.start()
    assert begun.wait(10)
    is_up = FORK.Event()
    child = FORK.Process(target=_linger, args=(is_up,))
    child.start()
    try:
        assert is_up.wait(30)
        go.set()
        thread.join(10)
        held = [os.readlink(f"/proc/{child.pid}/fd/{n}") for n in _descriptors(child.pid)]
        assert not [name for name in held if str(tmp_path) in name]
        with cache.held("b", 90_000, lambda file: file.write(b"b")):
            assert taken(tmp_path) == (1, 1, 0)
    finally:
        child.kill()
        child.join(10)


def _descriptors(process: int | None) -> list[str]:
    return os.listdir(f"/proc/{process}/fd")


class Noted(Prefetch):
    """Notes what is fetched, and what is kept for the while."""

    def __init__(self, sizes: list[int], room: int) -> None:
        self.got: list[int] = []
        self.kept: list[int] = []
        super().__init__(sizes, room)

    def fetch(self, shard: int) -> None:
        self.got.append(shard)

    def keep(self, shard: int) -> None:
        self.kept.append(shard)

    def wait(self, numbers: set[int]) -> None:
        end = time.monotonic() + 10
        while set(self.got) != numbers and time.monotonic() < end:
            time.sleep(0.002)
        time.sleep(0.02)
        assert set(self.got) == numbers


def test_what_is_ahead_is_counted_in_bytes_from_the_place_of_use() -> None:
    ahead = Noted([10, 10, 30, 10, 10, 10, 50], 40)
    ahead.announce([4, 2, 0, 1, 3, 6, 5])
    ahead.wait({4, 2})  # 10 and 30; 10 more would be too much
    ahead.used(4)
    ahead.wait({4, 2, 0})
    ahead.used(1)  # some other process used 2 and 0
    ahead.wait({4, 2, 0, 3})  # 6 alone is more than there is room for
    ahead.used(6)
    ahead.wait({4, 2, 0, 3, 5})


def test_what_is_fetched_and_not_used_yet_is_not_what_makes_room(tmp_path: Path) -> None:
    """Else the next group of shards would go for the one after it, since it is older than what was
    used just now.
    """
    cache = ShardCache(40, tmp_path)
    for number, key in enumerate("nu"):  # what comes next is older than what was used up
        cache.put(key, key.encode() * 20)
        os.utime(cache.folder / cache_module._name(key), (number, number))
    ahead = Noted([20, 20], 40)
    ahead.keep = lambda shard: cache.keep("n")  # type: ignore[method-assign, assignment]
    ahead.fetch = lambda shard: cache.put("c", b"c" * 20) if shard else None  # type: ignore[method-assign]
    ahead.announce([0, 1])
    end = time.monotonic() + 10
    while not (tmp_path / cache_module._name("c")).exists() and time.monotonic() < end:
        time.sleep(0.002)
    left = {key for key in "nuc" if (tmp_path / cache_module._name(key)).exists()}
    assert left == {"n", "c"}
