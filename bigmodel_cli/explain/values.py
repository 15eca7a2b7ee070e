"""What is wrong with a value, in plain words: pydantic's kinds of faults, said as a person
would.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from bigmodel_cli.errors import did_you_mean

_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping of options",
    "model_attributes_type": "a mapping of options",
}
_NUMBER = re.compile(r"[-+]?([0-9][0-9_]*)?\.?[0-9]+([eE][-+]?[0-9]+)?\Z")
_YES = {"yes", "y", "on", "1", "true"}
_NO = {"no", "n", "off", "0", "false"}


def shown(value: Any) -> str:
    """A value as written in YAML, shortened."""
    text = (
        "empty (null)"
        if value is None
        else str(value).lower()
        if isinstance(value, bool)
        else _safe_repr(value)
    )
    return text if len(text) <= 60 else text[:57] + "..."


def what_is_wrong(faults: Sequence[Any], as_item: bool = False) -> str:
    """What pydantic found at one place; several faults where several kinds of values are allowed
    there.

    `as_item`: the value could be the only item of the required list.
    """
    last = faults[-1]
    expected = [words for fault in faults if (words := _expected(fault))]
    if not expected:
        return _bound(last)
    value = last["input"]
    choices = [choice for fault in faults for choice in _choices(fault)]
    text = f"{shown(value)} is not {', nor '.join(expected)}"
    kinds = {fault["type"] for fault in faults}
    if "list_type" in kinds and as_item:
        return text + (f"; write [{value}]" if len(str(value)) < 60 else "; write it in [ ]")
    return text + (_remedy(kinds, value, choices) or did_you_mean(shown(value), choices))


def _expected(fault: Any) -> str:
    if fault["type"] == "literal_error":
        choices = _choices(fault)
        return f"one of {', '.join(choices)}" if len(choices) > 1 else choices[0]
    return _EXPECTED.get(fault["type"], "")


def _choices(fault: Any) -> list[str]:
    if fault["type"] != "literal_error":
        return []
    return [c.strip("' ") for c in fault["ctx"]["expected"].replace(" or ", ", ").split(", ")]


def _remedy(kinds: set[str], value: Any, choices: list[str]) -> str:
    """'; what to write', or '' where nothing certain can be said."""
    word = value.strip() if isinstance(value, str) else ""
    if kinds & {"int_type", "float_type", "int_from_float"}:
        if word and len(word) < 40 and _NUMBER.match(word):
            return f"; it is text, since it stands in quotes: write {word}"
        if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
            return f"; write {int(value)}"
    if "bool_type" in kinds and str(value).lower() in _YES | _NO:
        return f"; write {'true' if str(value).lower() in _YES else 'false'}"
    if kinds & {"dict_type", "model_type", "model_attributes_type"}:
        name, colon, rest = word.partition(":")
        return (
            f"; write a blank after the colon: {name}: {rest}"
            if colon and rest and name.isidentifier()
            else ""
        )
    if "string_type" in kinds and isinstance(value, int | float):
        return f"; put it in quotes: '{shown(value)}'"
    if isinstance(value, bool):  # YAML 1.1's words, which other programs write as true and false
        words = [c for c in choices if c in (_YES if value else _NO)]
        return f"; write {words[0]}" if words else ""
    return ""


def _bound(fault: Any) -> str:
    """A number out of bounds, a list too short or too long, or a fault that a class of options
    found itself.
    """
    kind, context = fault["type"], fault.get("ctx", {})
    if kind == "value_error":
        return str(context["error"])
    if kind in ("too_short", "too_long"):
        bound = (
            f"at least {context['min_length']}"
            if kind == "too_short"
            else f"at most {context['max_length']}"
        )
        count = context.get("actual_length")
        have = (
            "too many"
            if count is None
            else "empty"
            if count == 0
            else f"{count} item{'s' * (count != 1)}"
        )
        return f"{have}; give {bound}"
    message = fault["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    message = message.replace("greater than or equal to", "at least").replace(
        "less than or equal to", "at most"
    )
    return f"{shown(fault['input'])} is not {message}" if message != fault["msg"] else message


def _safe_repr(value: Any) -> str:
    """repr() of what may be very large."""
    if isinstance(value, dict | list):
        return (
            f"a mapping ({', '.join(list(map(str, value))[:3])})"
            if isinstance(value, dict)
            else f"a list of {len(value)}"
        )
    return repr(value[:80] if isinstance(value, str) else value)
