"""What a person sees: everything but the result goes to stderr, the result alone to stdout.

On a terminal there is one progress bar; elsewhere there are plain lines without escape codes or carriage returns.
NO_COLOR and TERM=dumb are honoured by rich. A closed stdout never ends a run.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from typing import TYPE_CHECKING, Any, TextIO

from bigmodel_cli.errors import ResourceError

if TYPE_CHECKING:
    from rich.console import Console

SCHEMA_VERSION = 1


def say(message: str) -> None:
    """Print a line on stderr, with control characters made visible. A stderr that is closed, full or gone is ignored."""
    _tell(visible(message))


def say_coloured(text: str) -> None:
    """Print on stderr what holds escape codes of our own; whatever comes from data has gone through `one_line` before."""
    _tell(text)


def _tell(text: str) -> None:
    if sys.stderr is not None:  # where it is None, print would take stdout
        with contextlib.suppress(OSError, ValueError):
            print(text, file=sys.stderr, flush=True)


def visible(text: str) -> str:
    """`text` with control and direction-changing characters (but newline and tab) written as escapes.

    Data may hold sequences that drive a terminal (ESC ]52 writes the clipboard, U+202E turns the line around).
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else escape(c) for c in text)


def one_line(text: str) -> str:
    """The same for a name within a line or a picture: newlines and tabs are escapes too."""
    return text if text.isprintable() else "".join(c if c.isprintable() else escape(c) for c in text)


def escape(character: str) -> str:
    """A character as its code point: '\\x1b', '\\u202e'."""
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def result(text: str, end: str = "\n", styled: bool = False) -> None:
    """Print the command's result on stdout: on a terminal with control characters made visible, elsewhere as it is.

    `styled` text holds escape codes of our own, and has been made visible.

    When the reader has gone (`| head -1`) the rest is dropped quietly. Raises `ResourceError` where stdout cannot be written.
    """
    if sys.stdout is None:  # closed before Python began
        return
    shown = visible(text) if sys.stdout.isatty() and not styled else text
    try:
        print(_encodable(shown, sys.stdout), end=end, flush=True)
    except BrokenPipeError:
        mute_stdout()
    except OSError as error:
        raise stdout_fault(error) from None


def stdout_fault(error: OSError) -> ResourceError:
    """The fault of a stdout that cannot be written, which is muted, so that leaving does not fail again."""
    mute_stdout()
    return ResourceError(f"stdout: cannot be written: {os.strerror(error.errno or 0)}; the result is not shown")


def _encodable(text: str, stream: TextIO) -> str:
    """The text as the stream can write it: names of files in their own bytes, other characters that it lacks as escapes."""
    encoding = stream.encoding or "utf-8"
    try:
        text.encode(encoding, stream.errors or "strict")
        return text
    except UnicodeEncodeError:
        pass
    with contextlib.suppress(AttributeError):  # of a stream that is none of a file
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
    unicode = sys.stdout is None or (sys.stdout.encoding or "utf-8").lower().replace("-", "") == "utf8"
    result(strict_json(values, ascii_only=not unicode))


def strict_json(values: Any, *, ascii_only: bool = True) -> str:
    """Values as one line of JSON; what is not a finite number, which JSON does not have, is null.

    Characters that drive a terminal, end a line or change its direction, and lone surrogates, are JSON's own escapes.
    """
    text = json.dumps(_finite(values), ensure_ascii=ascii_only, allow_nan=False)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _json_escape(c) for c in text)


def _json_escape(character: str) -> str:
    return "\\u007f" if character == "\x7f" else json.dumps(character)[1:-1]  # JSON takes DEL as it is


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list | tuple) else value


def mute_stdout() -> None:
    """Send stdout to nowhere from now on, so that neither a later print nor the interpreter's exit raises."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def is_terminal() -> bool:
    """Whether stderr can show a progress bar that redraws itself."""
    return sys.stderr.isatty() and os.environ.get("TERM", "") not in ("dumb", "")


def has_colour(stream: TextIO) -> bool:
    """Whether escape codes may be written there: a terminal that knows them, and nobody has asked for none."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") != "dumb"


def terminal() -> Console:
    """The rich console on stderr, for the progress bar: what is printed above it is text, without markup or emoji codes."""
    from rich.console import Console, ConsoleDimensions

    class Narrower(Console):
        """Leaves room for the `^C` that a terminal shows after the bar: on a line of its own it would keep the bar there."""

        @property  # type: ignore[misc]  # it is not set here
        def size(self) -> ConsoleDimensions:
            """Columns and lines."""
            width, height = super().size
            return ConsoleDimensions(max(20, width - 4), height)

    return Narrower(stderr=True, highlight=False, markup=False, emoji=False)


def table(columns: list[str], rows: list[list[str]]) -> str:
    """A plain table: columns aligned by spaces, numbers to the right; the same on a terminal and in a pipe."""
    cells = [columns, *rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    right = [bool(rows) and all(_is_number(row[i]) for row in rows) for i in range(len(columns))]
    lines = [
        "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)).rstrip()
        for row in cells
    ]
    return "\n".join(lines)


def columns_of(text: str) -> int:
    """How many columns of a terminal a text takes: some characters take two, some none."""
    from rich.cells import cell_len

    return cell_len(text)


def cut(text: str, columns: int) -> str:
    """The beginning of a text that fits so many columns."""
    from rich.cells import set_cell_size

    return text if columns_of(text) <= columns else set_cell_size(text, columns).rstrip()


def padded(text: str, columns: int, right: bool = True) -> str:
    """A text with blanks beside it, which take it to so many columns."""
    blanks = " " * (columns - columns_of(text))
    return blanks + text if right else text + blanks


def _is_number(text: str) -> bool:
    return not text.strip() or text.strip()[0] in "+-.0123456789"


def quantity(value: float, unit: str = "") -> str:
    """A number for people: 93322 -> '93.3 k', 24e9 with unit 'B' -> '24.0 GB'. Steps of 1,000."""
    for factor, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:.1f} {prefix}{unit}"
    return f"{value:.0f} {unit}".rstrip()
