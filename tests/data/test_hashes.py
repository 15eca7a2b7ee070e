"""What is in a file, remembered: put-back times, changes within a tick, and a store that is damaged
or cannot be written.
"""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest

from bigmodel_cli.data import hashes
from bigmodel_cli.data.hashes import STORE, TICK, check_unchanged, content_hashes
from bigmodel_cli.errors import DataError


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The place of a store of this test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
    return tmp_path / "own" / "bigmodel" / "hashes" / STORE


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were read."""
    seen: list[str] = []
    read = hashes._read
    monkeypatch.setattr(
        hashes, "_read", lambda path, shown: (seen.append(path.name), read(path, shown))[1]
    )
    return seen


def settle() -> None:
    """Wait until what was written is older than a tick."""
    time.sleep(3 * TICK / 1e9)


def write(count: int = 5) -> list[Path]:
    paths = [Path(f"{i}.dat") for i in range(count)]
    for index, path in enumerate(paths):
        path.write_bytes(index.to_bytes(2, "big") * (500 * index if index < 9 else 5))
    settle()
    return paths


def of(paths: list[Path]) -> list[str]:
    return [hashlib.sha256(p.read_bytes()).hexdigest() for p in paths]


def test_hashes_are_those_of_the_content_and_remembered(store: Path, reads: list[str]) -> None:
    paths = write(603)
    assert content_hashes(paths) == of(paths)
    assert len(reads) == 603
    reads.clear()
    assert content_hashes(paths[::-1]) == of(paths[::-1])
    assert content_hashes([p.absolute() for p in paths]) == of(paths)
    assert reads == []
    assert content_hashes([]) == []


def test_a_changed_file_with_its_old_size_and_time_is_hashed_again(
    store: Path, reads: list[str]
) -> None:
    (path,) = write(2)[1:]
    content_hashes([path])
    before = path.stat()
    path.write_bytes(b"x" * before.st_size)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns, after.st_ino) == (
        before.st_size,
        before.st_mtime_ns,
        before.st_ino,
    )
    assert content_hashes([path]) == [hashlib.sha256(b"x" * 1000).hexdigest()]
    assert reads == ["1.dat", "1.dat"]


def test_a_replaced_file_is_hashed_again(store: Path) -> None:
    first, second = write(3)[1:]
    second.write_bytes(b"y" * 1000)
    settle()
    content_hashes([first, second])
    os.utime(second, ns=(0, first.stat().st_mtime_ns))
    second.replace(first)  # its time of change is new as well, and so is the inode
    assert content_hashes([first]) == [hashlib.sha256(b"y" * 1000).hexdigest()]


def test_the_hash_of_a_file_changed_within_the_clocks_resolution_is_not_remembered(
    store: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(2)[1]
    changed = path.stat().st_ctime_ns
    # just changed; the clock was put back
    for after, read_again in (
        (TICK // 2, True),
        (-(10**12), True),
        (2 * TICK, False),
    ):
        monkeypatch.setattr(hashes.time, "time_ns", lambda after=after: changed + after)
        reads.clear()
        content_hashes([path])
        content_hashes([path])
        assert len(reads) == 1 + read_again
    os.utime(path, ns=(0, 10**18))
    stat = path.stat()
    whole = type(
        "Stat",
        (),
        {n: getattr(stat, n) for n in ("st_size", "st_ino", "st_mtime_ns")}
        | {"st_ctime_ns": 10**18},
    )()
    monkeypatch.setattr(hashes.os, "fstat", lambda descriptor: whole)  # times of whole seconds
    for after, settled in ((10**9, False), (3 * 10**9, True)):
        monkeypatch.setattr(hashes.time, "time_ns", lambda after=after: 10**18 + after)
        assert (hashes._read(path, hashes.Progress("", 1, "B"))[1] is not None) == settled


def test_a_file_that_changes_while_it_is_read(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(2)[1]
    add = hashes.Progress.add
    monkeypatch.setattr(hashes.Progress, "add", lambda self, size: path.write_bytes(b"z" * size))
    before = content_hashes([path])
    monkeypatch.setattr(hashes.Progress, "add", add)
    with pytest.raises(
        DataError, match=r"1.dat: changed while it was read; start again when nothing writes to it"
    ):
        check_unchanged([path], before)
    check_unchanged([path], content_hashes([path]))


@pytest.mark.parametrize(
    "damage", ["second bytes", "cut", "empty", "zeros", "a row", "another table", "folder"]
)
def test_a_damaged_hash_store_is_rebuilt(
    damage: str, store: Path, reads: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    paths = write(40)
    content_hashes(paths)
    content = bytearray(store.read_bytes())
    if damage == "second bytes":
        content[::2] = bytes(b ^ 0x55 for b in content[::2])
    elif damage == "cut":
        del content[len(content) // 2 :]
    elif damage == "empty":
        content.clear()
    elif damage == "zeros":
        content[:] = bytes(len(content))
    elif damage == "a row":
        place = content.index(bytes.fromhex(of(paths[7:8])[0]))
        content[place] ^= 1
    store.write_bytes(content)
    if damage == "another table":
        store.unlink()
        import sqlite3

        with sqlite3.connect(store) as table:
            table.execute("CREATE TABLE something (x)")
    if damage == "folder":
        store.unlink()
        store.mkdir()
    assert content_hashes(paths) == of(paths)
    assert content_hashes(paths) == of(paths)
    said = capsys.readouterr().err
    assert "Traceback" not in said
    if damage in ("second bytes", "cut", "zeros", "another table"):
        assert "the stored hashes of files cannot be read" in said or "cannot be written" in said
    if damage != "folder":
        reads.clear()
        content_hashes(paths)
        assert reads == []  # it is whole again


def test_any_changed_byte_of_the_hash_store_leaves_the_hashes_right(store: Path) -> None:
    paths = write(3)
    wanted = content_hashes(paths)
    whole = store.read_bytes()
    for place in range(0, len(whole), 151):
        store.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        assert content_hashes(paths) == wanted


def test_files_that_are_not_there_are_named(store: Path) -> None:
    with pytest.raises(DataError, match=r"^gone: cannot be read: No such file or directory$"):
        content_hashes([Path("gone")])
