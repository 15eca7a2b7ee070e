"""Conversations in files: the forms that are common, as lists of messages."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from bigmodel_cli.data.reading import checked_text, json_rows, lines, plain_name
from bigmodel_cli.errors import DataError

ROLES = {"human": "user", "gpt": "assistant", "model": "assistant", "bot": "assistant"}
"""Other words for roles."""
PAIRS = (("prompt", "completion"), ("prompt", "response"), ("question", "answer"))
"""Keys of one question and its answer."""
FORMS = (
    "messages (role, content), conversations (from, value), instruction and output (Alpaca), or"
    " prompt and completion"
)


class Conversation(NamedTuple):
    """Messages, each {"role", "content"}, the last of which is an answer; `place` is where."""

    place: str
    messages: list[dict[str, str]]


def conversations(path: Path) -> Iterator[Conversation]:
    """The conversations of a .jsonl file, or of a list in a .json file; plain or .gz.

    Raises `DataError` naming a row that is none.
    """
    for place, row in _rows(path):
        yield Conversation(place, messages_of(row, place))


def preferences(path: Path) -> Iterator[tuple[Conversation, Conversation]]:
    """(the conversation with the better answer, that with the worse one) of each row.

    Raises `DataError` naming a row that is none.
    """
    for place, row in _rows(path):
        if not {"chosen", "rejected"} <= row.keys():
            raise DataError(
                f"{place}: the keys are {', '.join(row) or 'none'}; a preference has prompt, chosen"
                " and rejected"
            )
        asked = _turns(row.get("prompt", []), "user", place)
        better, worse = (
            [*asked, *_turns(row[name], "assistant", place)] for name in ("chosen", "rejected")
        )
        for messages in (better, worse):
            if not messages or messages[-1]["role"] != "assistant":
                raise DataError(f"{place}: an answer is not a message of the assistant")
        if better[:-1] != worse[:-1]:
            raise DataError(f"{place}: chosen and rejected do not answer the same question")
        if better == worse:
            raise DataError(f"{place}: chosen and rejected are the same; take the row out")
        yield Conversation(place, better), Conversation(place, worse)


def _turns(value: Any, role: str, place: str) -> list[dict[str, str]]:
    """A text as one message, or a list of messages."""
    if isinstance(value, str):
        return [_said(role, value, place)]
    if not isinstance(value, list):
        raise DataError(f"{place}: neither a text nor a list of messages")
    return [_message(m, place) for m in value]


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    return json_rows(path) if plain_name(path).endswith(".jsonl") else _listed(path)


def _listed(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        rows = json.loads("\n".join(lines(path)))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({error}); a .json file is a list of objects") from None
    if not isinstance(rows, list):
        raise DataError(f"{path}: not a list of objects; one on each line is .jsonl")
    for number, row in enumerate(rows):
        place = f"{path}[{number}]"
        if not isinstance(row, dict):
            raise DataError(f"{place}: not an object; a .json file is a list of them")
        yield place, row


def asked(given: str, place: str) -> list[dict[str, str]]:
    """The messages that a user gives: a JSON list of them, an object with "messages", or the text
    of one question.

    Raises `DataError` where the last of them is an answer already.
    """
    if not given.lstrip().startswith(("[", "{")):
        return [_said("user", given, place)]
    try:
        row = json.loads(given)
    except (ValueError, RecursionError):
        return [_said("user", given, place)]
    found = _messages({"messages": row} if isinstance(row, list) else row, place)
    if not found or found[-1]["role"] == "assistant":
        raise DataError(f"{place}: the last message is not one that asks for an answer")
    return found


def messages_of(row: dict[str, Any], place: str) -> list[dict[str, str]]:
    """The messages of a row, up to its last answer. Raises `DataError` where there is none."""
    found = _messages(row, place)
    answers = [i for i, message in enumerate(found) if message["role"] == "assistant"]
    if not answers:
        raise DataError(f"{place}: no message of the assistant; there is nothing to learn")
    return found[: answers[-1] + 1]


def _messages(row: dict[str, Any], place: str) -> list[dict[str, str]]:
    for name in ("messages", "conversations"):
        if isinstance(row.get(name), list):
            system = row.get("system")
            first = [{"role": "system", "content": system}] if isinstance(system, str) else []
            return [_message(m, place) for m in (*first, *row[name])]
    if isinstance(row.get("instruction"), str) and isinstance(row.get("output"), str):
        more = row.get("input")
        asked = row["instruction"] + (f"\n\n{_content(more, place)}" if more else "")
        return [_said("user", asked, place), _said("assistant", row["output"], place)]
    for question, answer in PAIRS:
        if isinstance(row.get(question), str) and isinstance(row.get(answer), str):
            return [_said("user", row[question], place), _said("assistant", row[answer], place)]
    raise DataError(f"{place}: the keys are {', '.join(row) or 'none'}; a row has {FORMS}")


def _message(value: Any, place: str) -> dict[str, str]:
    if not isinstance(value, dict):
        raise DataError(f"{place}: a message is not an object with a role and a content")
    role, content = value.get("role", value.get("from")), value.get("content", value.get("value"))
    if not isinstance(role, str) or not role:
        raise DataError(f"{place}: a message has no role")
    odd = sorted(value.keys() - {"role", "from", "content", "value"})
    if any(value[name] for name in odd):
        raise DataError(
            f"{place}: a message has {', '.join(odd)}, which is not learnt from here; take it out"
        )
    return _said(ROLES.get(role, role), _content(content, place), place)


def _said(role: str, content: str, place: str) -> dict[str, str]:
    return {"role": role, "content": checked_text(content, place)}


def _content(content: Any, place: str) -> str:
    """A text, or the texts of a list of parts."""
    if isinstance(content, list) and all(
        isinstance(part, dict) and part.get("type") == "text" for part in content
    ):
        content = "".join(str(part.get("text", "")) for part in content)
    if not isinstance(content, str):
        raise DataError(f"{place}: the content of a message is not text")
    return content
