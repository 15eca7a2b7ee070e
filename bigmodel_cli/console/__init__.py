"""Terminal output: the result alone on stdout, everything else on stderr.

On a terminal there is one progress bar; elsewhere there are plain lines without escape codes or
carriage returns. NO_COLOR and TERM=dumb are honoured by rich. A closed stdout never ends a run.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from typing import TYPE_CHECKING, Any, TextIO

from bigmodel_cli.console.aliases import call, forget_names, with_names
from bigmodel_cli.console.tables import (
    columns_of,
    columns_of_stdout,
    cut,
    named_values,
    narrowed,
    padded,
    sentence,
    table,
)
from bigmodel_cli.console.text import (
    counted,
    escape,
    listed,
    one_line,
    quantity,
    rate,
    seconds_of,
    short_names,
    visible,
)
from bigmodel_cli.errors import ResourceError

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "call",
    "columns_of",
    "columns_of_stdout",
    "counted",
    "cut",
    "escape",
    "has_colour",
    "is_terminal",
    "listed",
    "mute_stdout",
    "named_values",
    "narrowed",
    "one_line",
    "padded",
    "quantity",
    "rate",
    "result",
    "result_json",
    "result_record",
    "say",
    "say_coloured",
    "say_once",
    "seconds_of",
    "sentence",
    "short_names",
    "stdout_fault",
    "strict_json",
    "table",
    "terminal",
    "visible",
    "with_names",
]
SCHEMA_VERSION = 1
_SAID: set[str] = set()
_SPEAKER = [""]


def say(message: str) -> None:
    """Print a line on stderr, with control characters made visible, and what has another name (see
    `call`) under that.

    A stderr that is closed, full or gone is ignored.
    """
    say_coloured(visible(with_names(_SPEAKER[0] + message)))


def speak_for(name: str) -> None:
    """Lines of `say` begin with this name from here on: of a process beside others."""
    _SPEAKER[0] = f"{name}: " if name else ""


def say_once(message: str) -> None:
    """The same, unless this command has printed it: several models may be read of one folder."""
    if message not in _SAID:
        _SAID.add(message)
        say(message)


def forget_what_was_said() -> None:
    """A command begins."""
    _SAID.clear()
    forget_names()


def say_coloured(text: str) -> None:
    """Print on stderr what contains our own escape codes; text from data must have gone through
    `one_line`.
    """
    if sys.stderr is not None:  # where it is None, print would take stdout
        with contextlib.suppress(OSError, ValueError):
            print(text, file=sys.stderr, flush=True)


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
    # JSON takes DEL as it is
    return "\\u007f" if character == "\x7f" else json.dumps(character)[1:-1]


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
