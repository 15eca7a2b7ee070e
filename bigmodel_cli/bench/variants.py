"""`--sweep KEY=V1,V2`: each target with every combination of some options' values."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from bigmodel_cli.errors import SpecError
from bigmodel_cli.overrides import Change

BRACKETS = {"[": "]", "{": "}", "(": ")"}


@dataclass(frozen=True)
class Variant:
    """Changes of a target's options, and what is added to its name for them."""

    title: str = ""
    changes: Sequence[Change] = ()


def variants(sweeps: Sequence[str]) -> list[Variant]:
    """Every combination, the first values first; one without changes where nothing is swept.

    Raises `SpecError`.
    """
    keys, values = [], []
    for text in sweeps:
        key, equals, listed = text.partition("=")
        found = split(listed)
        if not equals or not all(key.split(".")) or not all(found):
            raise SpecError(
                f"--sweep {text}: write KEY=V1,V2 with a dotted key, for instance --sweep"
                " train.batch_size=16,64"
            )
        if key in keys:
            raise SpecError(f"--sweep {text}: {key} is swept twice; give all its values in one")
        if len(set(found)) < len(found):
            raise SpecError(f"--sweep {text}: a value is given twice")
        keys.append(key)
        values.append(found)
    names = tails(keys)
    return [
        Variant(
            "".join(f" {name}={value}" for name, value in zip(names, chosen, strict=True)),
            [f"{key}={value}" for key, value in zip(keys, chosen, strict=True)],
        )
        for chosen in itertools.product(*values)
    ]


def split(text: str) -> list[str]:
    """The values of a list with commas; those within brackets or quotes belong to a value."""
    found, closing, quoted = [""], list[str](), ""
    for character in text:
        if quoted:
            quoted = "" if character == quoted else quoted
        elif character in "\"'":
            quoted = character
        elif character in BRACKETS:
            closing.append(BRACKETS[character])
        elif closing and character == closing[-1]:
            closing.pop()
        if character == "," and not closing and not quoted:
            found.append("")
        else:
            found[-1] += character
    return [value.strip() for value in found]


def tails(keys: Sequence[str]) -> list[str]:
    """The ends of dotted keys by which they differ."""
    found = []
    for key in keys:
        words = key.split(".")
        ends = [".".join(words[i:]) for i in range(len(words) - 1, -1, -1)]
        others = [other for other in keys if other != key]
        found.append(
            next((e for e in ends if not any(f".{o}".endswith(f".{e}") for o in others)), key)
        )
    return found
