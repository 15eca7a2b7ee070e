"""Plain values as YAML text, and words without quotes as values.

They follow the core schema of YAML 1.2, not YAML 1.1: `1e-3` is a number, `no` and `off` are
strings, `010` is ten (octal is `0o10`).
"""

from __future__ import annotations

import math
import re
from typing import Any

import yaml

_INT = re.compile(r"[-+]?[0-9][0-9_]*\Z")
_RADIX = re.compile(r"0o[0-7]+\Z|0x[0-9a-fA-F]+\Z")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9]*)?)([eE][-+]?[0-9]+)?\Z")
_SPECIAL = re.compile(r"[-+]?\.(inf|Inf|INF)\Z|\.(nan|NaN|NAN)\Z")
_WORDS = {"": None, "~": None, "null": None, "Null": None, "NULL": None}
_BOOLS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}


def plain_scalar(text: str) -> Any:
    """The value of a word without quotes."""
    if text in _WORDS:
        return _WORDS[text]
    if text in _BOOLS:
        return _BOOLS[text]
    if len(text) > 100:  # no number is that long, and int() of a very long one is slow
        return text
    if _RADIX.match(text):
        return int(text, 0)
    if _INT.match(text):
        return int(text.replace("_", ""))
    if _FLOAT.match(text):
        return float(text.replace("_", ""))
    if _SPECIAL.match(text):
        return math.nan if text.lower()[1] == "n" else -math.inf if text[0] == "-" else math.inf
    return text


def dump_yaml(values: Any, width: int = 110, flow: bool | None = False) -> str:
    """Plain values as YAML text that `parse_yaml` reads back: strings that look like numbers here
    are quoted.

    `flow` None: the innermost mappings and lists in brackets.
    """

    class Dumper(yaml.SafeDumper):
        """PyYAML quotes what YAML 1.1 takes for another type; `1e3` and `0o7` are not among it."""

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
        quotes = "'" if not isinstance(plain_scalar(value), str) else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=quotes)

    Dumper.add_representer(str, text)
    return yaml.dump(values, Dumper=Dumper, sort_keys=False, width=width, default_flow_style=flow)


def on_one_line(value: Any) -> str:
    """Plain values as YAML on one line, lists and mappings in brackets."""
    return dump_yaml(value, 10**6, flow=True).removesuffix("\n").removesuffix("\n...")
