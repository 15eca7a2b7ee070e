"""Chat templates: how the messages of a conversation become one text."""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from bigmodel_cli.data.base import Assets
from bigmodel_cli.data.chat import renderer
from bigmodel_cli.data.text.tokenizer import Tokenizer
from bigmodel_cli.errors import BigmodelError, CheckpointError, DataError

ASSET = "chat_template.jinja"
"""A checkpoint's file with the template that it was trained with."""
DATE = "chat_template.date"
"""A checkpoint's file with the date that its template wrote into the training data."""
PUBLISHED, IN_CONFIG = "hf.chat_template.jinja", "hf.tokenizer_config.json"
"""Files of a published model that may have its template."""
BUILT_IN = "the built-in template"
PLAIN = """\
{% for message in messages %}
{% if message.role == 'assistant' %}
### Assistant:
{{ message.content }}{{ eos_token }}
{% else %}
### {{ message.role | capitalize }}:
{{ message.content }}

{% endif %}
{% endfor %}
{% if add_generation_prompt %}
### Assistant:
{% endif %}
"""
"""The template of a model that comes without one: its only special token ends an answer."""
Message = Mapping[str, Any]


class Template:
    """A template, rendered in a process of its own (see renderer.py).

    What it writes of the date is `date` (YYYY-MM-DD), or when the process began. Use as a context
    manager. Raises `fault` for a template that cannot be compiled.
    """

    def __init__(
        self,
        text: str,
        tokenizer: Tokenizer,
        name: str,
        fault: type[BigmodelError] = CheckpointError,
        date: str = "",
    ) -> None:
        self.text, self.name, self.fault, self.date = text, name, fault, date
        # as in transformers: there are no tools, which templates ask for in several ways
        self.names = {**tokenizer.named, **dict.fromkeys(("tools", "documents"))}
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(
            [sys.executable, "-I", renderer.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self._ask({"template": self.text, "names": self.names, "date": self.date})
        return self

    def __exit__(self, *raised: object) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()

    def render(self, messages: Sequence[Message], *, prompt: bool) -> str:
        """The text of a conversation; with `prompt`, up to where the next answer begins.

        Raises `fault` where the template refuses the messages, or fails.
        """
        return self._ask({"messages": list(messages), "add_generation_prompt": prompt})

    def _ask(self, values: dict[str, Any]) -> str:
        assert self.process is not None
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(values).encode() + b"\n")
            self.process.stdin.flush()
            answer = json.loads(self.process.stdout.readline())
        except (OSError, ValueError):
            answer = {"error": "it ended the process that renders it (too much memory?)"}
        if "error" in answer:
            raise self.fault(f"{self.name}: the chat template: {answer['error']}")
        return str(answer["text"])


def is_dated(text: str) -> bool:
    """Whether a template may write the date."""
    return "strftime_now" in text


def date_of(assets: Assets) -> str:
    """The date for training: a checkpoint's, so that a resumed run has the same data, or today's.

    Raises `CheckpointError` for one that is none.
    """
    if DATE not in assets:
        return datetime.date.today().isoformat()
    try:
        return datetime.date.fromisoformat(_text(assets[DATE], DATE)).isoformat()
    except ValueError as error:
        raise CheckpointError(f"{DATE}: not a date: {error}; use another checkpoint") from None


def find_template(path: Path | None, assets: Assets) -> tuple[str, str]:
    """(text, name) of the template: the given file's, else the checkpoint's, else `PLAIN`.

    Raises `CheckpointError` for one that is not text, `DataError` for such a file.
    """
    if path is not None:
        try:
            return path.read_text(encoding="utf-8-sig"), str(path)
        except ValueError as error:
            raise DataError(f"{path}: not UTF-8: {error}; save it as UTF-8") from None
    for name in (ASSET, PUBLISHED):
        if name in assets:
            return _text(assets[name], name), name.removeprefix("hf.")
    if IN_CONFIG in assets:
        found = json.loads(_text(assets[IN_CONFIG], IN_CONFIG)).get("chat_template")
        if isinstance(found, list):  # several, by name
            named = {t.get("name"): t.get("template") for t in found if isinstance(t, dict)}
            found = named.get("default")
            if not isinstance(found, str):
                raise CheckpointError(
                    f"{IN_CONFIG.removeprefix('hf.')}: chat_template: none of"
                    f" {', '.join(map(str, named))[:80]} is called default; write one of them to"
                    f" {PUBLISHED.removeprefix('hf.')} beside it, or name it in data.template"
                )
        if isinstance(found, str):
            return found, IN_CONFIG.removeprefix("hf.")
    return PLAIN, BUILT_IN


def _text(content: bytes, name: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{name}: not UTF-8: {error}; use another checkpoint") from None
