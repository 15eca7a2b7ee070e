"""Differences between resolved specs, as dotted paths."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Leaves = Mapping[str, Any]
"""Dotted path -> scalar, for every option of a resolved spec."""


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted path, value) of every leaf of plain values; an empty list or mapping is one."""
    items = (
        value.items()
        if isinstance(value, dict)
        else list(enumerate(value))
        if isinstance(value, list)
        else ()
    )
    if not items:
        yield path, value
    for key, inner in items:
        yield from leaves(inner, f"{path}.{key}" if path else str(key))


def written(value: Any) -> str:
    """A scalar as YAML has it."""
    return (
        "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    )


def differing(specs: Sequence[Leaves]) -> list[str]:
    """Paths at which the specs differ, in their order; below a `type` that differs, only what
    differs under the same type.

    An option that a spec lacks counts as null: older specs lack some. A spec without any option is
    unknown, and ignored.
    """
    known = [spec for spec in specs if spec]
    paths = list(dict.fromkeys(path for spec in known for path in spec))
    changed = [p for p in paths if len({written(spec.get(p)) for spec in known}) > 1]
    types = {p.removesuffix("type") for p in changed if p.endswith(".type")}
    return [
        p
        for p in changed
        if _differs(p, known, [t for t in types if p.startswith(t) and p != f"{t}type"])
    ]


def _differs(path: str, specs: Sequence[Leaves], types: Sequence[str]) -> bool:
    groups: dict[tuple[str, ...], set[str]] = {}
    for spec in specs:
        groups.setdefault(tuple(str(spec.get(f"{t}type")) for t in types), set()).add(
            written(spec.get(path))
        )
    return any(len(group) > 1 for group in groups.values())


def short_paths(paths: Sequence[str]) -> dict[str, str]:
    """Each path with its shortest unique end: `num_heads`, `encoder.dropout`, `optimizer` (its
    type); a number does not come first.
    """
    parts = {path: path.removesuffix(".type").split(".") for path in paths}
    ends = {
        path: [".".join(own[-k:]) for k in range(1, len(own) + 1) if not own[-k].isdigit()]
        for path, own in parts.items()
    }
    counts = Counter(".".join(p[-k:]) for p in parts.values() for k in range(1, len(p) + 1))
    return {
        path: next((end for end in ends[path] if counts[end] == 1), ".".join(parts[path]))
        for path in paths
    }
