"""Terminal output: the result alone on stdout, everything else on stderr.

On a terminal there is one progress bar; elsewhere there are plain lines without escape codes or
carriage returns. NO_COLOR and TERM=dumb are honoured by rich. A closed stdout never ends a run.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from bigmodel_cli.errors import ResourceError

if TYPE_CHECKING:
    from rich.console import Console

SCHEMA_VERSION = 1
NUMBER = re.compile(
    r"[-+]?[\d,:]*\.?\d+(e[-+]?\d+)?( ± [\d,.]+(e[-+]?\d+)?)?( ?%| [a-zA-Zµ][\w/]*)?", re.ASCII
)
"""A number such as '-1,234.5', '93.3 kB', '12 tokens/s', '0.91 ± 0.02', '1:02:03'."""
FEWEST = 20
"""Least width in columns that long text is wrapped to."""


def say(message: str) -> None:
    """Print a line on stderr, with control characters made visible.

    A stderr that is closed, full or gone is ignored.
    """
    _tell(visible(message))


def say_coloured(text: str) -> None:
    """Print on stderr what contains our own escape codes; text from data must have gone through
    `one_line`.
    """
    _tell(text)


def _tell(text: str) -> None:
    if sys.stderr is not None:  # where it is None, print would take stdout
        with contextlib.suppress(OSError, ValueError):
            print(text, file=sys.stderr, flush=True)


def visible(text: str) -> str:
    """`text` with control and direction-changing characters (but newline and tab) written as
    escapes.

    Data may contain sequences that control a terminal (ESC ]52 writes the clipboard, U+202E
    reverses the line).
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else escape(c) for c in text)


def one_line(text: str) -> str:
    """As `visible`, for a name within a line or a picture: newlines and tabs are escapes too."""
    return (
        text if text.isprintable() else "".join(c if c.isprintable() else escape(c) for c in text)
    )


def escape(character: str) -> str:
    """A character as its code point: '\x1b', '\u202e'."""
    code = ord(character)
    return (
        f"\\x{code:02x}"
        if code < 0x100
        else f"\\u{code:04x}"
        if code < 0x10000
        else f"\\U{code:08x}"
    )


def result(text: str, end: str = "\n", styled: bool = False) -> None:
    """Print the command's result on stdout: on a terminal with control characters made visible,
    elsewhere as it is.

    `styled` text contains our own escape codes, and has been made visible already.

    When the reader has gone (`| head -1`) the rest is dropped quietly. Raises `ResourceError` where
    stdout cannot be written.
    """
    if sys.stdout is None:  # closed before Python started
        return
    shown = visible(text) if sys.stdout.isatty() and not styled else text
    try:
        print(_encodable(shown, sys.stdout), end=end, flush=True)
    except BrokenPipeError:
        mute_stdout()
    except OSError as error:
        raise stdout_fault(error) from None


def stdout_fault(error: OSError) -> ResourceError:
    """The fault of a stdout that cannot be written; stdout is muted, so that exiting does not fail
    again.
    """
    mute_stdout()
    return ResourceError(
        f"stdout: cannot be written: {os.strerror(error.errno or 0)}; the result is not shown"
    )


def _encodable(text: str, stream: TextIO) -> str:
    """The text as the stream can write it: file names in their own bytes, other characters that it
    lacks as escapes.
    """
    encoding = stream.encoding or "utf-8"
    try:
        text.encode(encoding, stream.errors or "strict")
        return text
    except UnicodeEncodeError:
        pass
    with contextlib.suppress(AttributeError):  # of a stream that is not a file
        stream.reconfigure(errors="surrogateescape")  # type: ignore[attr-defined]
    pieces = []
    for character in text:
        try:
            character.encode(encoding, "surrogateescape")
            pieces.append(character)
        except UnicodeEncodeError:
            pieces.append(escape(character))
    return "".join(pieces)


def result_json(values: dict[str, Any]) -> None:
    """Print one JSON object, with `schema_version` first, on stdout."""
    result_record({"schema_version": SCHEMA_VERSION, **values})


def result_record(values: dict[str, Any]) -> None:
    """Print one line of JSON on stdout."""
    unicode = (
        sys.stdout is None or (sys.stdout.encoding or "utf-8").lower().replace("-", "") == "utf8"
    )
    result(strict_json(values, ascii_only=not unicode))


def strict_json(values: Any, *, ascii_only: bool = True) -> str:
    """Values as one line of JSON; numbers that are not finite, which JSON lacks, are null.

    Characters that control a terminal, end a line or change its direction, and lone surrogates, are
    JSON escapes.
    """
    text = json.dumps(_finite(values), ensure_ascii=ascii_only, allow_nan=False)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _json_escape(c) for c in text)


def _json_escape(character: str) -> str:
    return (
        "\\u007f" if character == "\x7f" else json.dumps(character)[1:-1]
    )  # JSON takes DEL as it is


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list | tuple) else value


def mute_stdout() -> None:
    """Send stdout to nowhere from now on, so that neither a later print nor the interpreter's exit
    raises.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def is_terminal() -> bool:
    """Whether stderr can show a progress bar that redraws itself."""
    return sys.stderr.isatty() and os.environ.get("TERM", "") not in ("dumb", "")


def has_colour(stream: TextIO) -> bool:
    """Whether colour escape codes may be written there: a capable terminal, and colour is not
    turned off.
    """
    return (
        stream.isatty()
        and not os.environ.get("NO_COLOR")
        and os.environ.get("TERM", "dumb") != "dumb"
    )


def terminal() -> Console:
    """The rich console on stderr, for the progress bar; text printed above it has no markup or
    emoji codes.
    """
    from rich.console import Console, ConsoleDimensions

    class Narrower(Console):
        """A console that leaves room for the `^C` which a terminal shows after the bar, and which
        would leave the bar there.
        """

        @property  # type: ignore[misc]  # it is not set here
        def size(self) -> ConsoleDimensions:
            width, height = super().size
            return ConsoleDimensions(max(20, width - 4), height)

    return Narrower(stderr=True, highlight=False, markup=False, emoji=False)


def table(columns: list[str], rows: list[list[str]]) -> str:
    """A table for stdout, numbers right-aligned: on a terminal within its width, elsewhere columns
    aligned by blanks.

    Where a terminal is too narrow for the columns, each row is a paragraph of names and values.
    """
    cells = [[one_line(cell) for cell in row] for row in (columns, *rows)]
    right = [
        bool(rows) and all(map(_is_number, column)) for column in zip(*cells[1:], strict=True)
    ] or [False] * len(columns)
    widths = [max(map(columns_of, column)) for column in zip(*cells, strict=True)]
    room = _columns_of_stdout()
    if room is None:
        lines = [zip(row, widths, right, strict=True) for row in cells]
        return "\n".join("  ".join(padded(*cell) for cell in line).rstrip() for line in lines)
    least = [
        width if number else min(width, FEWEST) for width, number in zip(widths, right, strict=True)
    ]
    if sum(least) + 2 * (len(columns) - 1) > room:
        return "\n\n".join(named_values(list(zip(cells[0], row, strict=True))) for row in cells[1:])
    return _rich_table(cells, right, least, room)


def named_values(pairs: Sequence[tuple[str, str]]) -> str:
    """Names and their values, a line each; on a terminal a long value is wrapped below itself."""
    room, width = _columns_of_stdout(), max(columns_of(name) for name, _ in pairs) + 2
    lines = []
    for name, value in pairs:
        parts = [value] if room is None else _wrapped(value, max(FEWEST // 2, room - width))
        lines += [
            padded(name if not k else "", width, right=False) + part for k, part in enumerate(parts)
        ]
    return "\n".join(line.rstrip() for line in lines)


def sentence(text: str) -> str:
    """A line of text for stdout, wrapped on a terminal."""
    room = _columns_of_stdout()
    return text if room is None else "\n".join(_wrapped(text, room))


def _wrapped(text: str, columns: int) -> list[str]:
    from rich.console import Console
    from rich.text import Text

    return [line.plain.rstrip() for line in Text(text).wrap(Console(), columns)] or [""]


def _columns_of_stdout() -> int | None:
    """Width of the terminal that stdout writes to; None where it is not a terminal."""
    if sys.stdout is None or not sys.stdout.isatty():
        return None
    return max(FEWEST, shutil.get_terminal_size().columns)


def _rich_table(cells: list[list[str]], right: list[bool], least: list[int], room: int) -> str:
    """A header, a rule below it, and rows whose texts are wrapped.

    Without escape codes: it may be shown anywhere.
    """
    from rich.box import Box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    plain = os.environ.get("TERM", "dumb") == "dumb" or not (
        sys.stdout.encoding or ""
    ).lower().startswith("utf")
    empty, rule = "    \n", "-" if plain else "─"
    box = Box(f"{empty}{empty} {rule}{rule} \n{empty * 5}", ascii=plain)
    shown = Table(box=box, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for name, number, width in zip(cells[0], right, least, strict=True):
        shown.add_column(
            Text(name),
            justify="right" if number else "left",
            no_wrap=number,
            min_width=width,
            overflow="fold",
        )
    for row in cells[1:]:
        shown.add_row(*map(Text, row))
    page = io.StringIO()
    Console(file=page, width=room, height=100, color_system=None, force_terminal=False).print(shown)
    return "\n".join(line.rstrip() for line in page.getvalue().rstrip("\n").split("\n"))


def columns_of(text: str) -> int:
    """Display width of a text: some characters take two columns, some none."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def cut(text: str, columns: int) -> str:
    """The longest beginning of a text that fits into that many columns."""
    from rich.cells import set_cell_size

    return text if columns_of(text) <= columns else set_cell_size(text, columns).rstrip()


def padded(text: str, columns: int, right: bool = True) -> str:
    """A text padded with blanks to that many columns."""
    blanks = " " * (columns - columns_of(text))
    return blanks + text if right else text + blanks


def _is_number(text: str) -> bool:
    """Whether a cell is a number with its unit, or marks a missing one."""
    return text.strip() in ("", "-", "not known") or NUMBER.fullmatch(text.strip()) is not None


def quantity(value: float, unit: str = "") -> str:
    """A number for people: 93322 -> '93.3 k', 24e9 with unit 'B' -> '24.0 GB'. Steps of 1,000."""
    for factor, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:.1f} {prefix}{unit}"
    return f"{value:.0f} {unit}".rstrip()


def rate(value: float, unit: str) -> str:
    """A rate for people: '12,345 tokens/s', '0.42 samples/s'."""
    return f"{value:,.0f} {unit}/s" if value >= 100 else f"{value:.3g} {unit}/s"


def seconds_of(value: float) -> str:
    """A short time for people: '12.34 ms', '1.23 s'."""
    return f"{1e3 * value:.2f} ms" if value < 1 else f"{value:.2f} s"


def short_names(paths: Sequence[Sequence[Path]]) -> list[str]:
    """A name for each of several things: the shortest end of its path that no other path ends with.

    Each has one path or several; a later one is used where an earlier one is also another thing's.
    Things with the same paths are numbered.
    """
    tails = [
        [Path(*path.parts[-n:]).as_posix() for path in own for n in range(1, len(path.parts) + 1)]
        for own in paths
    ]
    names = []
    for index, own in enumerate(tails):
        others = {tail for other in (*tails[:index], *tails[index + 1 :]) for tail in other}
        names.append(next((tail for tail in own if tail not in others), own[0]))
    return [
        f"{n} ({names[:i].count(n) + 1})" if names.count(n) > 1 else n for i, n in enumerate(names)
    ]
