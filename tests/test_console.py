"""Output to terminals and pipes: no character of the data controls a terminal; JSON stays JSON."""

from __future__ import annotations

import io
import json
import os
import re
import sys
from collections.abc import Callable

import pytest
from zygote import Zygote

from bigmodel_cli.console import (
    columns_of,
    one_line,
    result,
    result_record,
    strict_json,
    table,
    visible,
)
from bigmodel_cli.train.observers.progress import Progress

DRIVING = {
    "escape": "\x1b]52;c;aGk=\x07",
    "nul": "\0",
    "return": "\r",
    "delete": "\x7f",
    "c1": "\x9b31m",
    "override": "\u202e",
    "isolate": "\u2066",
    "line separator": "\u2028",
    "zero width": "\u200b",
    "byte": os.fsdecode(b"\xff"),
    "tag": "\U000e0041",
}


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        """It is."""
        return True


@pytest.mark.parametrize("text", DRIVING.values(), ids=DRIVING)
def test_control_characters_are_escaped_and_json_round_trips(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows 50 and 81."""
    shown = visible(f"a{text}b\n\tc é 漢")
    assert shown.startswith("a\\")
    assert shown.endswith("b\n\tc é 漢")
    assert shown.replace("\n", "").replace("\t", "").isprintable()
    assert one_line(f"{text}\n\t").isprintable()
    line = strict_json({text: [text, "é漢"]}, ascii_only=False)
    assert line.isprintable()
    assert "é漢" in line
    assert json.loads(line) == {text: [text, "é漢"]}
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    result(f"name {text}")
    assert terminal.getvalue() == visible(f"name {text}") + "\n"


def test_a_pipe_gets_names_in_their_own_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 85: the path of a checkpoint that is not UTF-8 goes on to the next command as it is."""
    for encoding, expected in (
        ("utf-8", b"r\xff\x1b \xc3\xa9\n"),
        ("latin-1", b"r\xff\x1b \xe9\n"),
        ("ascii", b"r\xff\x1b \\xe9\n"),
    ):
        buffer = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffer, encoding=encoding))
        result(os.fsdecode(b"r\xff\x1b ") + "é")
        assert buffer.getvalue() == expected
    buffer = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffer, encoding="latin-1"))
    result_record({"a": "漢"})
    assert buffer.getvalue() == b'{"a": "\\u6f22"}\n'


def test_lines_above_the_progress_bar_are_text_without_markup(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Row 81: neither markup, emoji codes nor escapes of a class's name take effect."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    progress = Progress()
    progress.open_bar(0)
    progress.on_message("[red]x[/red] :smile: \x1b]52;c;aGk=\x07 \u202e")
    progress.close()
    assert "[red]x[/red] :smile: \\x1b]52;c;aGk=\\x07 \\u202e" in terminal.getvalue()


@pytest.mark.parametrize("columns", [80, 60, 40])
def test_the_progress_bar_keeps_step_and_time_left_in_a_narrow_terminal(
    columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(columns))
    progress = Progress()
    progress.total, progress.unit = 100, "tokens"
    progress.open_bar(0)
    progress.on_log({"step": 100, "loss": 4.5, "lr": 1e-3, "per_second": 12345.0})
    assert progress.bar is not None
    progress.bar.refresh()
    progress.close()
    assert "step 100/100" in terminal.getvalue()
    assert "loss 4.5000" in terminal.getvalue()
    assert ("12,345 tokens/s" in terminal.getvalue()) == (columns == 80)
    assert "left" in terminal.getvalue()
    assert "…" not in terminal.getvalue()


@pytest.mark.parametrize(
    "words",
    [
        ["pre\x9b31mtrain"],
        ["models", "\x1b]52;x\x07\u202e"],
        ["models", "--\x1bx"],
        ["pretrain", "\x1b]0;x\x07.yaml"],
    ],
    ids=["command", "argument", "option", "file"],
)
def test_arguments_in_messages_on_a_terminal_are_escaped(words: list[str], zygote: Zygote) -> None:
    """Rows 50 and 81: usage errors, which repeat the arguments, too."""
    ended, text = zygote.on_a_terminal(*words, stdout="terminal")
    assert ended.status == 2
    assert "\\x" in text
    assert text.replace("\r\n", "").isprintable()


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make stdout a terminal of that many columns."""

    def make(columns: int, **environment: str) -> None:
        monkeypatch.setattr(sys, "stdout", Terminal())
        for name, value in {"COLUMNS": str(columns), "TERM": "xterm", **environment}.items():
            monkeypatch.setenv(name, value)

    return make


COLUMNS = ["name", "what it is", "loss", "rate"]
ROWS = [
    [
        "漢字",
        "a long text of several words that no narrow terminal has room for",
        "-1,234.5000",
        "12 samples/s",
    ],
    ["b\x1b[31m\n", "x", "not known", "9.1 ksamples/s"],
]


def test_a_pipe_gets_a_line_for_each_row_numbers_to_the_right() -> None:
    lines = table(COLUMNS, ROWS).split("\n")
    assert [re.split("  +", line) for line in lines[1:]] == [
        ROWS[0], ["b\\x1b[31m\\x0a", "x", "not known", "9.1 ksamples/s"],
    ]  # fmt: skip
    assert len({columns_of(line) for line in lines}) == 1
    assert lines[0].endswith("loss            rate")
    assert table(["a", "b"], []) == "a  b"


@pytest.mark.parametrize("term", ["xterm", "dumb"])
@pytest.mark.parametrize("columns", [120, 80, 60, 40, 24])
def test_a_table_fits_its_terminal_and_loses_nothing(
    columns: int, term: str, screen: Callable[..., None]
) -> None:
    screen(columns, TERM=term)
    text = table(COLUMNS, ROWS)
    assert max(map(columns_of, text.split("\n"))) <= columns
    assert text.replace("\n", "").isprintable()
    assert ("─" in text) == (term == "xterm" and columns >= 80)
    kept = re.sub(r"\s", "", text)
    for cell in (
        cell for row in ROWS for cell in row if columns == 120 or columns <= 60 or " " not in cell
    ):
        assert re.sub(r"\s", "", cell.replace("\x1b", "\\x1b").replace("\n", "\\x0a")) in kept
    lines = text.split("\n")
    if columns >= 80:
        ends = {
            columns_of(line[: line.index(cell)]) + len(cell)
            for line in lines
            for cell in ("-1,234.5000", "not known")
            if cell in line
        }
        assert len(ends) == 1
    else:
        assert [line.split()[0] for line in lines if line[:1] not in ("", " ")] == [
            "name",
            "what",
            "loss",
            "rate",
        ] * 2


@pytest.mark.parametrize(
    ("cell", "number"),
    [("12", True), ("-1.5e-05", True), ("45.20 %", True), ("1,234 tokens/s", True),
     ("0.912 ± 0.013", True),
     ("1:02:03", True), ("-", True), ("not known", True), ("28 x 28", False), ("3d net", False),
     ("2 of 3 steps", False),
     ("step 3", False)],
)  # fmt: skip
def test_only_numbers_are_right_aligned(cell: str, number: bool) -> None:
    text = table(["a name that is long", "b"], [[cell, "x"]])
    assert text.split("\n")[1].startswith(" ") == number
