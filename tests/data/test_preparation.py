"""Preparing data: a signal in any stage leaves nothing half done, a disk that fails is 5, and the
cache has its place.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from test_cache import KINDS, content, opened, same, write_sources
from zygote import Zygote

from bigmodel_cli import cache_home, failpoints
from bigmodel_cli import progress as progress_room
from bigmodel_cli.data import cache as cache_room
from bigmodel_cli.data.cache import build_once, cached_json
from bigmodel_cli.data.hashes import STORE
from bigmodel_cli.errors import ResourceError
from bigmodel_cli.progress import Progress

STAGES = {
    "text": ["hashing files", "reading the text", "tokenizing"],
    "bpe": ["counting words for the tokenizer", "merging pairs into tokens", "tokenizing"],
    "table": ["hashing files", "reading the tables", "tokenizing"],
    "pairs": ["reading the text", "reading the lines", "counting the pairs", "tokenizing"],
    "image_folder": [
        "hashing files",
        "reading the headers of the train split",
        "decoding",
    ],
    "audio": ["hashing files", "decoding recordings"],
}


class Came(BaseException):
    """What the handler of the signal raises."""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
    return tmp_path / "own" / "bigmodel"


@pytest.fixture
def _raising() -> Iterator[None]:
    def handler(number: int, frame: Any) -> None:
        raise Came

    before = signal.signal(signal.SIGTERM, handler)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("_raising")
@pytest.mark.parametrize("kind", KINDS)
def test_a_signal_in_any_stage_leaves_nothing_half_done(
    kind: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """rows 7 and 66: every kind of data; what is whole stays, and the next start gives what an
    undisturbed one does.
    """
    write_sources()
    undisturbed = opened(kind)
    wanted = content(undisturbed)
    for stage in STAGES[kind]:
        shutil.rmtree(home)
        monkeypatch.setattr(failpoints, "_reached", {})
        monkeypatch.setenv("BIGMODEL_FAILPOINT", f"{stage}:SIGTERM")
        with pytest.raises(Came):
            opened(kind)
        assert not list(home.rglob("*.draft")), stage
        assert all(cache_room._damage(p) == "" for p in home.glob("*/*") if p.is_dir())
        monkeypatch.delenv("BIGMODEL_FAILPOINT")
        again = opened(kind)
        assert again.fingerprint == undisturbed.fingerprint
        assert same(content(again), wanted)
    assert not progress_room._open


@pytest.mark.parametrize("kind", KINDS)
def test_every_stage_of_preparation_shows_its_progress(
    kind: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """row 66: up to the whole, no more and no less, where the whole is known."""
    write_sources()
    seen: dict[str, Progress] = {}
    begin = Progress.__init__

    def begun(self: Progress, what: str, total: float | None, unit: str) -> None:
        begin(self, what, total, unit)
        if total:
            seen[what] = self

    monkeypatch.setattr(Progress, "__init__", begun)
    opened(kind)
    assert seen.keys() >= set(STAGES[kind])
    done = {
        what: p.done / (p.total or 1)
        for what, p in seen.items()
        if "headers" not in what and "merging" not in what
    }
    assert done == dict.fromkeys(done, 1)


FULL = [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO]


@pytest.mark.parametrize("number", FULL, ids=errno.errorcode.get)
@pytest.mark.parametrize("place", ["fsync", "rename", "mkdir"])
def test_a_cache_that_cannot_be_written_is_reported(
    number: int, place: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """rows 10, 11 and 68: full, over quota, read-only or broken: 5 with a remedy, and nothing half
    done under its name.
    """
    write_sources()

    def fail(*arguments: Any, **options: Any) -> Any:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, place, fail)
    with pytest.raises(
        ResourceError, match=f"the cache cannot be written: {os.strerror(number)}; make room there"
    ):
        opened("text")
    monkeypatch.undo()
    os.environ["XDG_CACHE_HOME"] = str(home.parent)
    assert not [p for p in home.glob("*/*") if p.is_dir()]


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="limits of POSIX")
def test_pixels_that_do_not_fit_on_the_disk_end_the_command_with_a_message(
    zygote: Zygote, home: Path, tmp_path: Path
) -> None:
    """row 68: they are written and not mapped, since a mapped file on a full disk ends the process
    by SIGBUS.
    """
    from PIL import Image

    for label in "ab":
        (tmp_path / "pictures" / label).mkdir(parents=True)
        for index in range(12):
            Image.new("RGB", (64, 64), (index, 10, 200)).save(
                tmp_path / "pictures" / label / f"{index}.png"
            )
    Path("cnn.yaml").write_text(
        "model: {type: cnn, layers: [{type: flatten}, {type: dense, units: classes}]}\ndata: {type:"
        " image_folder, root: pictures}\ntask: {type: classification}\ntrain: {steps: 1,"
        " batch_size: 2}\n"
    )
    # 22 images of 12,288 bytes
    ended = zygote.run("pretrain", "cnn.yaml", "--out", "run", limit=60_000)
    assert ended.status == 5, ended.err
    assert (
        "the cache cannot be written: File too large; make room there, or set XDG_CACHE_HOME"
        in ended.err
    )
    assert not list(home.rglob("*.draft"))
    assert not Path("run/checkpoints").exists()


def test_the_cache_folder_follows_xdg_cache_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """row 10: a relative XDG_CACHE_HOME is ignored, as its specification says; a file in its place
    is 5, and no home is 5.
    """
    for named in ("", "relative/cache"):
        monkeypatch.setenv("XDG_CACHE_HOME", named)
        monkeypatch.setenv("HOME", str(tmp_path))
        assert cache_home.cache_directory("kind") == tmp_path / ".cache" / "bigmodel" / "kind"
    assert not Path("relative").exists()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(
        ResourceError,
        match="the cache cannot be written: Not a directory; make room there, or set XDG_CACHE",
    ):
        cache_home.cache_directory("kind")
    monkeypatch.delenv("XDG_CACHE_HOME")
    for home in ("", "relative"):
        monkeypatch.setenv("HOME", home)
        with pytest.raises(
            ResourceError,
            match="no home directory is known; set XDG_CACHE_HOME to an absolute path",
        ):
            cache_home.cache_directory("kind")

    def unknown() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", unknown)
    with pytest.raises(ResourceError, match="no home directory is known"):
        cache_home.cache_directory("kind")


def test_eight_processes_build_once_though_the_builder_is_killed(
    home: Path, tmp_path: Path
) -> None:
    """row 48: one at a time, published by a rename; those that wait build anew where the builder
    died, and only once.
    """
    folder = home / "kind" / "key"
    folder.parent.mkdir(parents=True)
    log = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def build(draft: Path) -> None:
        first = not os.fstat(log).st_size
        os.write(log, b"x")
        (draft / "a.bin").write_bytes(b"a" * 1000)
        if first:
            os.kill(os.getpid(), signal.SIGKILL)
        (draft / "b.bin").write_bytes(b"b" * 1000)

    children = []
    for _ in range(8):
        child = os.fork()
        if not child:
            try:
                build_once(folder, build)
                whole = [(folder / name).read_bytes()[:1] for name in ("a.bin", "b.bin")] == [
                    b"a",
                    b"b",
                ]
            finally:
                os._exit(0 if whole else 1)
        children.append(child)
    statuses = sorted(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)
    assert statuses == [-signal.SIGKILL, *[0] * 7]
    assert (tmp_path / "log").read_bytes() == b"xx"
    assert sorted(p.name for p in folder.parent.iterdir() if not p.name.endswith(".lock")) == [
        "key"
    ]


VALUES = {"list": [1, 2.5, "é"], "text": "x" * 3000}


def other_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_bytes(b"[" * 100_000)


SPOILED: dict[str, Callable[[Path], object]] = {
    "a file in its place": lambda folder: (shutil.rmtree(folder), folder.write_bytes(b"{}")),
    "a link to elsewhere": lambda folder: (
        folder.rename(folder.with_name("away")),
        folder.symlink_to("nowhere"),
    ),
    "a link to itself": lambda folder: (shutil.rmtree(folder), folder.symlink_to(folder.name)),
    "an empty folder": lambda folder: (shutil.rmtree(folder), folder.mkdir()),
    "a file too many": lambda folder: (folder / "more").write_text("x"),
    "a folder too many": lambda folder: (folder / "more").mkdir(),
    "a deep manifest": other_manifest,
    "a manifest of other types": (
        lambda folder: (folder / "manifest.json").write_text('{"content": {"a": 1}}')
    ),
    "size and times put back": lambda folder: _swap(folder / "content"),
}


def _swap(path: Path) -> None:
    stat = path.stat()
    path.write_bytes(path.read_bytes()[::-1])
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
def test_a_damaged_cache_entry_is_built_again(
    spoil: Callable[[Path], object], home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows 73 and 74: whatever is there instead of a cache folder, its values come back."""
    made: list[int] = []

    def make() -> Any:
        made.append(1)
        return VALUES

    assert cached_json("kind", "of this", make) == VALUES
    (folder,) = [p for p in (home / "kind").iterdir() if p.is_dir()]
    spoil(folder)
    for _ in range(2):
        assert cached_json("kind", "of this", make) == VALUES
    assert len(made) == 2
    assert capsys.readouterr().err.count("building it again") == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "spoil", [bytes, lambda b: b[: len(b) // 2], lambda b: bytes(v ^ 0x55 for v in b)]
)
def test_a_damaged_hash_store_gives_the_same_data_of_every_kind(
    kind: str, spoil: Callable[[bytes], bytes], home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """row 73: the table of what is in files, for every kind of data: the same data, and no
    traceback.
    """
    write_sources()
    first = opened(kind)
    store = home / "hashes" / STORE
    if not store.exists():
        pytest.skip("this kind remembers nothing of files")
    store.write_bytes(spoil(store.read_bytes()))
    again = opened(kind)
    assert again.fingerprint == first.fingerprint
    assert same(content(again), content(first))
