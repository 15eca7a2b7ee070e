"""Fetching from servers that are late, odd, busy or wrong: the file, or one clear message."""

from __future__ import annotations

import datetime
import email.utils
import multiprocessing
from email.message import Message
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bigmodel_cli.data.shards import fetching, web
from bigmodel_cli.data.shards.cache import ShardCache
from bigmodel_cli.data.shards.shard import Shard
from bigmodel_cli.data.shards.sources import find_shards
from bigmodel_cli.errors import DataError, MissingData
from tests.data.shards.serving import serving
from tests.data.shards.test_shard_formats import write_megatron

CONTENT = np.random.default_rng(3).integers(0, 256, 600_011, np.uint8).tobytes()


@pytest.fixture(autouse=True)
def _quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr(fetching, "FIRST_WAIT", 0.001)


def found(url: str) -> Shard:
    (shard,) = find_shards([url], Path(), "data.train")
    return shard


def fetched(shard: Shard, tmp_path: Path) -> bytes:
    folder = tmp_path / "cache"
    folder.mkdir(exist_ok=True)
    with shard.held(ShardCache(10**7, folder)) as path:
        return path.read_bytes()


@pytest.mark.parametrize(
    ("odd", "cuts"),
    [
        (set(), 0.5),
        ({"no_head"}, 0.3),
        ({"whole"}, 0.5),
        ({"whole", "no_head", "unnamed"}, 0.3),
        ({"unnamed"}, 0.4),
        ({"weak"}, 0.4),
        ({"unsized"}, 0.4),
        ({"unsized", "weak", "whole"}, 0.3),
        ({"closing", "no_head"}, 0.3),
        ({"closing", "whole", "unnamed"}, 0.3),
        ({"moved"}, 0.3),
    ],
)
def test_whatever_a_server_does_the_file_is_whole(
    odd: set[str], cuts: float, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.txt").write_bytes(CONTENT)
    with serving(tmp_path / "in", cuts=cuts, odd=odd) as server:
        assert fetched(found(f"{server.url}/a.txt"), tmp_path) == CONTENT


def test_an_empty_file_of_a_server_without_head(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"")
    with serving(tmp_path, odd={"no_head"}) as server:
        assert found(f"{server.url}/a.txt").size == 0


@pytest.mark.parametrize(
    ("odd", "cuts", "words"),
    [
        ({"packed", "no_head"}, 0.0, "sends it packed by gzip, though asked not to"),
        ({"elsewhere"}, 0.0, "refused with status 302"),
        ({"shifted"}, 1.0, "of another place of the file"),
        ({"other_part"}, 1.0, "changed while it was fetched"),
    ],
)
def test_what_is_wrong_is_said(odd: set[str], cuts: float, words: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.txt").write_bytes(CONTENT)
    with serving(tmp_path / "in", cuts=cuts, odd=odd) as server:
        with pytest.raises(DataError, match=words) as fault:
            fetched(found(f"{server.url}/a.txt"), tmp_path)
        assert f"{server.url}/a.txt" in str(fault.value)


def test_a_trickle_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_bytes(CONTENT[:5_000])
    monkeypatch.setattr(web, "TIMEOUT", 0.1)
    monkeypatch.setattr(fetching, "TRIES", 3)
    with serving(tmp_path) as server:
        shard = found(f"{server.url}/a.txt")
        server.pause = 0.02
        with pytest.raises(DataError, match=r"\d+ bytes a second; 3 tries"):
            fetched(shard, tmp_path)


def test_a_busy_server_is_left_alone_as_long_as_it_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_bytes(CONTENT)
    slept: list[float] = []
    monkeypatch.setattr(fetching.time, "sleep", slept.append)
    with serving(tmp_path, odd={"busy"}) as server:
        assert fetching.read(f"{server.url}/a.txt") == CONTENT
    assert [seconds for seconds in slept if seconds] == [1.0]  # the server's own are 0
    soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=90)
    headers = Message()
    headers["retry-after"] = email.utils.format_datetime(soon)
    seconds = web._seconds(headers)
    assert seconds is not None
    assert 80 < seconds <= 90
    headers.replace_header("retry-after", "soon")
    assert web._seconds(headers) is None


def test_names_with_spaces_percents_and_other_letters(tmp_path: Path) -> None:
    name = "dä ta/50% off %zz & 日本+.txt"
    (tmp_path / "in" / name).parent.mkdir(parents=True)
    (tmp_path / "in" / name).write_bytes(CONTENT)
    with serving(tmp_path / "in") as server:
        assert fetched(found(f"{server.url}/{name}"), tmp_path) == CONTENT
        quoted = fetching.joined(f"{server.url}/d%C3%A4%20ta", name.partition("/")[2])
        assert fetched(found(quoted), tmp_path) == CONTENT
        with pytest.raises(MissingData, match="no such file"):
            found(f"{server.url}/dä ta/50%25.txt")
    assert web.as_sent("http://bücher.example:80/a?x=1 2#part") == (
        "http://xn--bcher-kva.example:80/a?x=1%202"
    )


def test_a_file_that_is_replaced_between_two_fetches_is_not_taken(tmp_path: Path) -> None:
    write_megatron(tmp_path / "a", [[1, 2, 3], [4, 5]])
    with serving(tmp_path) as server:
        shard = found(f"{server.url}/a.idx")
        write_megatron(tmp_path / "a", [[1, 2, 3], [4, 6]])
        with pytest.raises(DataError, match="not the file that was there at the start"):
            fetched(shard, tmp_path)


def _fetch(shard: Shard, folder: str, found: Any) -> None:
    with shard.held(ShardCache(10**7, Path(folder))) as path:
        found.put(path.read_bytes() == CONTENT)


def test_two_processes_fetch_a_file_once(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.txt").write_bytes(CONTENT)
    context = multiprocessing.get_context("fork")
    with serving(tmp_path / "in", latency=0.1) as server:
        shard, queue = found(f"{server.url}/a.txt"), context.Queue()
        folder = tmp_path / "cache"
        folder.mkdir()
        others = [context.Process(target=_fetch, args=(shard, str(folder), queue)) for _ in "ab"]
        for other in others:
            other.start()
        assert [queue.get(timeout=20) for _ in others] == [True, True]
        for other in others:
            other.join(20)
        assert server.bodies["/a.txt"] == 1
