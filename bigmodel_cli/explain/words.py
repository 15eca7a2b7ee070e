"""What to write instead of an unknown word on the command line: options of a spec are given by
--set.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from bigmodel_cli.config import Options
from bigmodel_cli.errors import did_you_mean
from bigmodel_cli.explain.synonyms import remark, targets
from bigmodel_cli.explain.tree import known

_TAKE_SPECS = ("pretrain", "finetune", "eval", "bench")
"""Commands with --set."""
_ASSIGNMENT = re.compile(r"[A-Za-z_]+(\.\w+)+=")


def instead(arguments: Sequence[str], option: str, spec: type[Options]) -> str:
    """A sentence, or '' where nothing is known; `option` is the unknown one, '' where there was a
    word too many.

    `spec` are the options of a spec.
    """
    words = [word for word in arguments if not word.startswith("-")]
    command = words[0] if words else ""
    if option == "--debug":
        return f"Write it first: bigmodel --debug {command} ..."
    if command not in _TAKE_SPECS:
        return ""
    return _of_option(arguments, option, spec) if option else _of_words(arguments)


def _of_option(arguments: Sequence[str], option: str, spec: type[Options]) -> str:
    """The --set for an option of other tools, or of the spec."""
    name = option.lstrip("-").replace("-", "_")
    options = [entry for entry in known(spec, {}) if "." in entry.path]
    paths = [entry.path for entry in options if entry.name == name]
    paths += [path for path in targets(name) if path.partition(".")[0] in spec.model_fields]
    if paths:
        value = _value(arguments, option)
        return f"Write --set {paths[0]}={value} in its place."
    if text := remark(name):
        return f"{text[0].upper()}{text[1:]}."
    likely = did_you_mean(name, [entry.name for entry in options])
    near = next((entry.path for entry in options if likely and f" {entry.name}?" in likely), "")
    return (
        f"Options of the spec are given as --set PATH=VALUE; did you mean --set {near}=...?"
        if near
        else ""
    )


def _value(arguments: Sequence[str], option: str) -> str:
    """The value given with the option: after '=', or as the next word."""
    for index, word in enumerate(arguments):
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
        if (
            word == option
            and index + 1 < len(arguments)
            and not arguments[index + 1].startswith("--")
        ):
            return arguments[index + 1]
    return "..."


def _of_words(arguments: Sequence[str]) -> str:
    """The --set for a word without it, or for one that was split in two."""
    for before, word, after in zip(
        arguments[:-1], arguments[1:], [*arguments[2:], ""], strict=True
    ):
        if before == "--set" and "=" not in word and after and not after.startswith("-"):
            return f"Write --set {word}={after.removeprefix('=')} without blanks."
        if before != "--set" and _ASSIGNMENT.match(word):
            return f"Write --set {word}"
    return ""
