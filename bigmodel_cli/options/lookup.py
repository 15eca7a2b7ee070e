"""A path of options looked up in the tree: what is there, or what may have been meant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bigmodel_cli.console import one_line
from bigmodel_cli.errors import SpecError, did_you_mean
from bigmodel_cli.options.tree import ROOT, Tree, Values, classes_of, is_list

MOST_MEANT = 3


@dataclass(frozen=True)
class Found:
    """What is at a path: the `classes` of options that its value may have, and in each `holder` the
    option's own schema.

    `steps` are the names on the way, each with whether its value is a list; `kind` is the requested
    type.
    """

    path: str
    steps: tuple[tuple[str, bool], ...]
    classes: tuple[str, ...]
    holders: tuple[tuple[str, Values], ...]
    kind: str | None


def find(known: dict[str, Any], path: str, kind: str | None) -> Found:
    """The options at a dotted path (with item numbers and types allowed in it), of the type `kind`.

    Raises `SpecError`.
    """
    tree = Tree(known["schema"])
    classes, holders = [ROOT], list[tuple[str, Values]]()
    steps: list[tuple[str, bool]] = []
    for part in [part for part in path.split(".") if part]:
        if part.isdecimal() and steps and steps[-1][1]:
            continue
        of_type = [name for name in classes if part in tree.types(name)]
        inside = [
            (name, tree.properties(name)[part]) for name in classes if part in tree.properties(name)
        ]
        if of_type and not inside:
            classes = of_type
            continue
        holders = inside
        if not holders:
            above = "".join(f"{name}." for name, _ in steps)
            siblings = [
                f"{above}{option}"
                for name in classes
                for option in tree.properties(name)
                if option != "type"
            ]
            meant = _meant(known, path, f"{above}{part}", siblings)
            raise SpecError(f"{one_line(path):.100}: no such option{meant}")
        steps.append((part, any(is_list(values) for _, values in holders)))
        classes = list(dict.fromkeys(name for _, values in holders for name in classes_of(values)))
    named = ".".join(name for name, _ in steps)
    if kind:
        words = [word for name in classes for word in tree.types(name)]
        if kind not in words:
            there = f"one of {', '.join(words)}" if words else f"{named or 'a spec'} has no types"
            raise SpecError(
                f"{one_line(kind):.100}: no such type; {there}{did_you_mean(kind, words)}"
            )
        classes = [name for name in classes if kind in tree.types(name)]
    return Found(named, tuple(steps), tuple(classes), tuple(holders), kind)


def _meant(known: dict[str, Any], path: str, tried: str, siblings: list[str]) -> str:
    """'; did you mean ...?': an option beside it, one of that name or type elsewhere, or another
    tool's name.
    """
    paths: dict[str, list[str]] = known["paths"]
    if near := did_you_mean(tried, siblings) if _alike(tried, siblings) else "":
        return near
    from bigmodel_cli.explain.synonyms import targets

    last = path.rpartition(".")[2]
    ends = [f".{name}" for name in (last, *targets(last))]
    section = tried.partition(".")[0]
    similar = [p for p in paths if any(f".{p}".endswith(end) for end in ends)]
    similar.sort(key=lambda p: (p.partition(".")[0] != section, p.count("."), p))
    similar += [f"{p} {last}" for p in sorted(paths, key=len) if last in paths[p]]
    if similar:
        return f"; did you mean {' or '.join(similar[:MOST_MEANT])}?"
    if near := did_you_mean(last, {p.rpartition(".")[2] for p in paths}):
        return near
    return f"; there are {', '.join(dict.fromkeys(siblings))}" if siblings else ""


def _alike(tried: str, siblings: list[str]) -> bool:
    """Whether the last word is similar to that of one of them, with the same words above it."""
    return bool(
        did_you_mean(tried.rpartition(".")[2], [name.rpartition(".")[2] for name in siblings])
    )
