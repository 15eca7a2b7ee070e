"""Conversations in files: the forms that are common, as lists of messages."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from bigmodel_cli.data.reading import Twice, checked_text, json_rows, lines, once, plain_name
from bigmodel_cli.errors import DataError

ROLES = {
    "human": "user",
    **dict.fromkeys(("gpt", "chatgpt", "model", "bot", "ai"), "assistant"),
}
"""Other words for roles."""
KNOWN = ("system", "developer", "user", "assistant", "tool")
"""Roles whose names are read in any case."""
UNLEARNABLE = ("tools", "functions", "history", "documents", "images", "image", "videos", "audios")
"""Keys of rows without which a conversation would be another one."""
FLAGS = ("weight", "train", "training")
"""Keys of a message that say whether it is learnt: 0 and false, not."""
NOTHING: tuple[Any, ...] = (None, "", [], {})
"""Values of a key that says nothing."""
QUESTIONS = ("prompt", "question", "instruction")
"""Keys of the question that two answers are given to."""
PAIRS = (("prompt", "completion"), ("prompt", "response"), ("question", "answer"))
"""Keys of one question and its answer."""
FORMS = (
    "messages (role, content), conversations (from, value), instruction and output (Alpaca), or"
    " prompt and completion"
)


class Conversation(NamedTuple):
    """Messages, each {"role", "content"}, the last of which is an answer; `place` is where.

    `passed` are the indices of answers that are read but not learnt, `cut` how many messages after
    the last answer are left out, `unread` the keys of the row that were not read.
    """

    place: str
    messages: list[dict[str, str]]
    passed: tuple[int, ...] = ()
    cut: int = 0
    unread: frozenset[str] = frozenset()

    def learns_nothing(self) -> bool:
        """Whether an answer is learnt that is empty."""
        return any(
            message["role"] == "assistant" and not message["content"].strip()
            for index, message in enumerate(self.messages)
            if index not in self.passed
        )


def conversations(path: Path) -> Iterator[Conversation]:
    """The conversations of a .jsonl file, or of a list in a .json file; plain or .gz.

    Raises `DataError` naming a row that is none.
    """
    for place, row in _rows(path):
        yield conversation_of(row, place)


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
        asked, read = _question(row, place)
        better, worse = (_answered(asked, row[name], place) for name in ("chosen", "rejected"))
        if better[:-1] != worse[:-1]:
            raise DataError(f"{place}: chosen and rejected do not answer the same question")
        if len(better) == 1:
            raise DataError(
                f"{place}: two answers without a question; a preference has it under prompt, or as"
                " messages in chosen and rejected"
            )
        if better == worse:
            raise DataError(f"{place}: chosen and rejected are the same; take the row out")
        unread = frozenset(row.keys() - read - {"chosen", "rejected"})
        yield Conversation(place, better, unread=unread), Conversation(place, worse)


def _question(row: dict[str, Any], place: str) -> tuple[list[dict[str, str]], set[str]]:
    """The messages before the two answers, and the keys that have them."""
    _check_whole(row, place)
    name = next((name for name in QUESTIONS if row.get(name)), "prompt")
    found = _turns(row.get(name) or [], "user", place)
    read = {name, "system"}
    if name == "instruction":
        found, read = [_said("user", _instructed(row, place), place)], read | {"input"}
    return [*_system(row, place), *found], read


def _answered(asked: list[dict[str, str]], value: Any, place: str) -> list[dict[str, str]]:
    """The question and an answer, which may have the question in it once more."""
    answer = _turns(value, "assistant", place)
    if not answer or answer[-1]["role"] != "assistant":
        raise DataError(f"{place}: an answer is not a message of the assistant")
    (first, question), (own, rest) = _parted(asked), _parted(answer)
    if question and rest[: len(question)] == question and (not first or own in ([], first)):
        return [*(first or own), *rest]
    if question and question[-1]["role"] == "user" and (own or rest[0]["role"] == "user"):
        raise DataError(f"{place}: the messages of an answer do not begin with those of the prompt")
    return [*asked, *answer]


def _parted(messages: list[dict[str, str]]) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """(a system message at the beginning, if any; the others)."""
    first = sum(message["role"] == "system" for message in messages[:1])
    return messages[:first], messages[first:]


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
        rows = json.loads("\n".join(lines(path)), object_pairs_hook=once)
    except Twice as error:
        raise DataError(
            f"{path}: the key {error} stands twice in one object; take one of them out"
        ) from None
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


def conversation_of(row: dict[str, Any], place: str) -> Conversation:
    """The messages of a row, up to its last answer. Raises `DataError` where none is learnt."""
    found, passed, read = _read(row, place)
    answers = [i for i, message in enumerate(found) if message["role"] == "assistant"]
    if not set(answers) - set(passed):
        raise DataError(f"{place}: no message of the assistant; there is nothing to learn")
    last = answers[-1] + 1
    unread = frozenset(row.keys() - read)
    return Conversation(place, found[:last], tuple(passed), len(found) - last, unread)


def _messages(row: dict[str, Any], place: str) -> list[dict[str, str]]:
    return _read(row, place)[0]


def _read(row: dict[str, Any], place: str) -> tuple[list[dict[str, str]], list[int], set[str]]:
    """The messages of a row, which of them are not learnt, and the keys that were read."""
    _check_whole(row, place)
    system = _system(row, place)
    for name in ("messages", "conversations"):
        if isinstance(row.get(name), list):
            found = [*system, *(_message(m, place) for m in row[name])]
            passed = [i for i, m in enumerate(row[name], len(system)) if not _is_learnt(m, place)]
            return found, passed, {name, "system"}
    for question, answer in (("instruction", "output"), *PAIRS):
        if isinstance(row.get(question), str) and isinstance(row.get(answer), str):
            instructed = question == "instruction"
            asked = _instructed(row, place) if instructed else row[question]
            said = [_said("user", asked, place), _said("assistant", row[answer], place)]
            more = {"input"} if instructed else set()
            return [*system, *said], [], {question, answer, "system", *more}
    raise DataError(f"{place}: the keys are {', '.join(row) or 'none'}; a row has {FORMS}")


def _check_whole(row: dict[str, Any], place: str) -> None:
    """Raise `DataError` for a row with something that a conversation here has not."""
    if there := [name for name in UNLEARNABLE if row.get(name)]:
        raise DataError(
            f"{place}: the row has {', '.join(there)}, without which the conversation would be"
            " another one, and which is not read here; write it into the messages, or take it out"
        )


def _system(row: dict[str, Any], place: str) -> list[dict[str, str]]:
    """The message under the row's own key for it, if any."""
    system = row.get("system")
    return [_said("system", _content(system, place), place)] if system else []


def _instructed(row: dict[str, Any], place: str) -> str:
    """Alpaca's instruction, and its input after it."""
    more = row.get("input")
    return _content(row["instruction"], place) + (f"\n\n{_content(more, place)}" if more else "")


def _is_learnt(message: dict[str, Any], place: str) -> bool:
    """Whether a message that is an answer is learnt. Raises `DataError` for other weights."""
    given = [message[name] for name in FLAGS if message.get(name) is not None]
    if odd := [
        value for value in given if not isinstance(value, int | float) or value not in (0, 1)
    ]:
        raise DataError(f"{place}: a message is learnt or not: {odd[0]!r} is neither 0 nor 1")
    return all(given)


def _message(value: Any, place: str) -> dict[str, str]:
    if not isinstance(value, dict):
        raise DataError(f"{place}: a message is not an object with a role and a content")
    role, content = value.get("role", value.get("from")), value.get("content", value.get("value"))
    if not isinstance(role, str) or not role:
        raise DataError(f"{place}: a message has no role")
    odd = sorted(value.keys() - {"role", "from", "content", "value", *FLAGS})
    if any(value[name] not in NOTHING for name in odd):
        raise DataError(
            f"{place}: a message has {', '.join(odd)}, which is not learnt from here; take it out"
        )
    plain = role.strip().lower()
    role = ROLES.get(plain, plain if plain in KNOWN else checked_text(role, place))
    return _said(role, _content(content, place), place)


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
