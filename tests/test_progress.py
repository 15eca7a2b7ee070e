"""Long work shows its progress, in lines or in one bar, and a signal does not wait for it."""

from __future__ import annotations

import gzip
import io
import os
import re
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bigmodel_cli import progress as progress_room
from bigmodel_cli.data.reading import pieces
from bigmodel_cli.heeding import heeding
from bigmodel_cli.progress import progress, reading


def test_lines_with_the_time_left_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """row 66: plain lines every ten seconds, and none of what ends sooner."""
    now = 100.0
    monkeypatch.setattr(progress_room.time, "perf_counter", lambda: now)
    with progress("tokenizing", 4000, "B") as shown:
        for _ in range(4):
            now += 6
            shown.add(1000)
    with progress("counting", None, "rows") as shown:
        now += 70
        shown.to(12)
    assert capsys.readouterr().err.splitlines() == [
        "tokenizing: 50 % of 4.0 kB, 0:12 left",
        "tokenizing: 100 % of 4.0 kB, 0:00 left",
        "counting: 12 rows in 1:10",
    ]


def test_one_bar_at_a_time_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """row 66: a bar on a terminal, which is taken away at the end, and also where the work is
    broken off.
    """
    screen = io.StringIO()
    monkeypatch.setattr(progress_room, "is_terminal", lambda: True)
    monkeypatch.setattr(progress_room, "BAR_AFTER", 0.0)
    monkeypatch.setattr(progress_room, "BAR_EVERY", 0.0)
    monkeypatch.setattr(
        progress_room, "terminal", lambda: Console(file=screen, force_terminal=True, width=100)
    )
    before = threading.active_count()
    bars = []

    def broken_off() -> None:
        with progress("the first [red] work", 10, "B") as first:
            first.to(5)
            with progress("the second", None, "B") as second:
                second.to(7)
                bars.extend([first, second])
                assert first.bar is None
                assert second.bar is not None
                assert threading.active_count() == before  # nothing that a fork would stumble over
                raise KeyError

    with pytest.raises(KeyError):
        broken_off()
    assert [shown.bar for shown in bars] == [None, None]
    text = re.sub("\x1b\\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    assert "the first [red] work" in text
    assert " 50 %" in text


def test_what_is_read_is_measured_as_it_is_on_the_disk(tmp_path: Path) -> None:
    """row 66: of plain and of compressed files, so that the share is right."""
    text = "".join(f"{n} is a line of this text\n" for n in range(100_000))
    Path("a.txt").write_text(text)
    with gzip.open("b.txt.gz", "wt") as file:
        file.write(text)
    for name in ("a.txt", "b.txt.gz"):
        with reading("reading", [Path(name)]):
            shares = [
                progress_room._open[-1].done / Path(name).stat().st_size for _ in pieces(Path(name))
            ]
        assert shares == sorted(shares)
        assert 0 < shares[0] < 0.75
        assert shares[-1] == 1
    assert not progress_room._open


def test_a_signal_does_not_wait_for_a_library() -> None:
    """row 66: what the handler raises is raised at once, while the call goes on in its thread."""

    class Came(BaseException):
        pass

    def handler(number: int, frame: Any) -> None:
        raise Came

    before = signal.signal(signal.SIGUSR1, handler)
    release = threading.Event()
    threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1)).start()
    start = time.monotonic()
    try:
        with pytest.raises(Came):
            heeding(lambda: release.wait(60))
    finally:
        signal.signal(signal.SIGUSR1, before)
        release.set()
    assert time.monotonic() - start < 30
    assert heeding(lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        heeding(lambda: 1 / 0)
