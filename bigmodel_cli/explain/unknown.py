"""What to write instead of an option that is unknown at its place."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from bigmodel_cli.config import Options
from bigmodel_cli.errors import did_you_mean
from bigmodel_cli.explain.places import Place
from bigmodel_cli.explain.synonyms import closest, remark, targets
from bigmodel_cli.explain.tree import Known, classes_at, known, types_at, types_of
from bigmodel_cli.explain.values import shown
from bigmodel_cli.yaml_source import Node

MOST_PLACES = 3
LONGEST = 200


class Tree:
    """What messages are made from: the spec, and the options that exist."""

    def __init__(self, root: Node, options: type[Options], notes: Mapping[str, str]) -> None:
        self.root, self.options, self.notes = root, options, notes

    @cached_property
    def plain(self) -> Any:
        return self.root.plain()

    @cached_property
    def known(self) -> list[Known]:
        """The options that this spec may give."""
        return list(known(self.options, self.plain))


def what_instead(tree: Tree, place: Place, location: tuple[Any, ...]) -> str:
    """'; what to write' for an option that is unknown at its place."""
    name, options = place.path[-1], tree.options
    if len(name) > LONGEST:
        return ""
    word, colon, rest = name.partition(":")
    if colon and rest:
        return f"; write a blank after the colon: {word}: {rest}"
    siblings = [name for c in classes_at(options, location[:-1]) for name in c.model_fields]
    close = difflib.get_close_matches(name.lower().replace("-", "_"), siblings, n=1, cutoff=0.85)
    if close:
        return f"; did you mean {close[0]}?"
    if name in types_at(options, location[:-2]) and location[-2] in types_at(
        options, location[:-2]
    ):
        return f"; write type: {name} in its place"
    others = _of_other_types(options, name, location)
    elsewhere = _elsewhere(tree.known, place, name, by_name=not others)
    if elsewhere and any(
        option.path.rpartition(".")[0] == ".".join(place.path[:-1]) for option in elsewhere
    ):
        others = ""  # what is called otherwise here is what was meant
    texts = [text for text in (others, _use(elsewhere, options, tree.plain), remark(name)) if text]
    if texts:
        return "".join(f"; {text}" for text in texts)
    likely = did_you_mean(name, siblings)
    if likely:
        return likely
    likely_tree = _elsewhere(tree.known, place, closest(name)) or _called_so(tree.known, name)
    if likely_tree:
        return f"; did you mean {' or '.join(option.path for option in likely_tree)}?"
    few = (
        f"; there are {', '.join(dict.fromkeys(siblings))}" if 0 < len(set(siblings)) <= 24 else ""
    )
    return f"{few}; see `{_command(place, location)}`"


def _command(place: Place, location: tuple[Any, ...]) -> str:
    """The `bigmodel options` command that shows the options beside the unknown one."""
    path = [name for name in place.path[:-1] if not name.isdecimal()]
    kind = str(location[-2]) if len(location) > 1 else ""
    chosen = [kind] if path and kind not in path and not kind.isdecimal() else []
    return " ".join(filter(None, ["bigmodel options", ".".join(path), *chosen]))


def _of_other_types(options: type[Options], name: str, location: tuple[Any, ...]) -> str:
    """Which other types have the option, where one of several was chosen."""
    own = location[-2] if len(location) > 1 else None
    if own not in types_at(options, location[:-2]):
        return ""
    others = [types_of(c)[0] for c in classes_at(options, location[:-2]) if name in c.model_fields]
    return (
        f"type: {', '.join(others)} ha{'s' if len(others) == 1 else 've'} it, and this is {own}"
        if others
        else ""
    )


def _called_so(tree: list[Known], name: str) -> list[Known]:
    """The options with the name most similar to the word."""
    names = difflib.get_close_matches(name, {option.name for option in tree}, n=1, cutoff=0.8)
    return [option for option in tree if option.name in names][:MOST_PLACES]


def _elsewhere(tree: list[Known], place: Place, name: str, by_name: bool = True) -> list[Known]:
    """The options of that name, or of other tools' name; those of the same section first, then the
    shortest.
    """
    wanted = targets(name)
    options = [
        option
        for option in tree
        if (by_name and option.name == name and name != "type")
        or any(option.path == target or option.path.endswith(f".{target}") for target in wanted)
    ]
    section = place.path[0]
    options.sort(
        key=lambda option: (
            option.name != name,
            option.path.split(".")[0] != section,
            option.path.count("."),
        )
    )
    return options[:MOST_PLACES]


def _use(found: list[Known], options: type[Options], plain: Any) -> str:
    """'use a.b, or c.d': and which of them are given already, or excluded by another."""
    texts = []
    for option in found:
        section, _, name = option.path.rpartition(".")
        others = [
            w
            for c in classes_at(options, section.split("."))
            for p in c.exclusive
            if name in p
            for w in p
            if w != name
        ]
        values = plain.get(section)
        stand = [w for w in others if isinstance(values, dict) and values.get(w) is not None]
        if option.given:
            value = option.value
            texts.append(
                option.path
                + (
                    " (given already)"
                    if isinstance(value, dict | list)
                    else f" ({shown(value)} now)"
                )
            )
        else:
            texts.append(option.path + (f" (instead of {section}.{stand[0]})" if stand else ""))
    return f"use {', or '.join(texts)}" if texts else ""
