"""The process that renders chat templates, run as a script by `template.py`: it imports nothing of
bigmodel.

A template comes with a published model and is a program, so it runs here, in jinja2's sandbox, with
bounded memory and computing time. The first line of stdin is {"template", "names", "date"}, each
further one {"messages", "add_generation_prompt"}; each is answered by a line with {"text"} or
{"error"}.
"""

from __future__ import annotations

import datetime
import json
import resource
import signal
import sys
from types import FrameType
from typing import Any

SECONDS = 5.0  # of computing, for one conversation
MEMORY = 1 << 30
MOST_CHARACTERS = 1 << 26
NONE_OF_THESE = {"tools": None, "documents": None}
"""What templates may ask for: there, as where transformers renders them, and none."""


class TooLong(Exception):
    """The template computes for too long."""


def _stop(number: int, frame: FrameType | None) -> None:
    raise TooLong(f"it computes for more than {SECONDS:g} s")


def _refuse(message: str) -> None:
    raise ValueError(message)


def _json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """The filter that published templates call, without jinja2's escapes for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def compiled(template: str, date: str) -> Any:
    """The template with the settings and functions that published ones rely on.

    Its clock stands still, at this date or now, so that all texts agree.
    """
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """{% generation %} marks an answer in some templates; its content is as any."""

        tags: set[str] = {"generation"}  # noqa: RUF012  # as its base declares it

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation]
    )
    environment.filters["tojson"] = _json
    environment.globals["raise_exception"] = _refuse
    now = datetime.datetime.fromisoformat(date) if date else datetime.datetime.now()
    environment.globals["strftime_now"] = now.strftime
    try:
        return environment.from_string(template)
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(f"line {error.lineno}: {error.message}") from None


def _answer(call: Any) -> dict[str, str]:
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        text = call()
    except MemoryError:
        return {"error": "it needs too much memory"}
    except Exception as error:
        return {"error": (str(error) or type(error).__name__)[:500]}
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    if len(text) > MOST_CHARACTERS:
        return {"error": f"its text has {len(text):,} characters"}
    return {"text": text}


def main() -> None:
    """Answer line by line until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides, and closes stdin
    signal.signal(signal.SIGVTALRM, _stop)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    first = json.loads(sys.stdin.buffer.readline())
    made: list[Any] = []

    def prepare() -> str:
        made.append(compiled(first["template"], first["date"]))
        return ""

    answer = _answer(prepare)
    while True:
        sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
        sys.stdout.buffer.flush()
        line = sys.stdin.buffer.readline()
        if not line:
            return
        values = {**NONE_OF_THESE, **first["names"], **json.loads(line)}
        answer = _answer(lambda given=values: made[0].render(**given))


if __name__ == "__main__":
    main()
