"""The tree of a spec's options, given the types that the spec has chosen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic.fields import FieldInfo

from bigmodel_cli.config import Options, classes_in, typed

ITEMS = 3
"""Items of a list that are looked into: the options of the others are the same."""


@dataclass(frozen=True)
class Known:
    """An option that the spec may give: its path, whether it is given, and its class."""

    path: str
    given: bool
    value: Any = None

    @property
    def name(self) -> str:
        """The last word of the path."""
        return self.path.rpartition(".")[2]


def known(options: type[Options], values: Any, path: str = "") -> Iterator[Known]:
    """Every option that `values` may give, for the chosen types; none below null or an unknown
    type.
    """
    given = values if isinstance(values, Mapping) else {}
    for name, field in options.model_fields.items():
        place = f"{path}.{name}" if path else name
        yield Known(place, name in given, given.get(name))
        if name in given:
            inner = given[name]
        elif field.is_required():
            inner = {}
        else:
            inner = field.get_default(call_default_factory=True)
        for index, item in enumerate(inner[:ITEMS] if isinstance(inner, list) else [inner]):
            chosen = _chosen(field.annotation, item, field.default)
            if chosen is not None:
                yield from known(
                    chosen, item, f"{place}.{index}" if isinstance(inner, list) else place
                )


def _chosen(annotation: Any, value: Any, default: Any) -> type[Options] | None:
    """The class of options of a value; None where it is not a mapping, or its type is unknown."""
    if isinstance(value, Options):
        return type(value)
    by_type = typed(annotation)
    if isinstance(value, str):
        return by_type.get(value)
    if not isinstance(value, Mapping):
        return None
    if by_type:
        return by_type.get(str(value.get("type", _type_of(default))))
    classes = classes_in(annotation)
    return classes[0] if len(classes) == 1 else None


def classes_at(root: type[Options], location: Iterable[Any]) -> list[type[Options]]:
    """The classes of options at one of pydantic's error locations, or at a path of the spec."""
    classes: list[type[Options]] = [root]
    for part in location:
        # A union's place is followed by the chosen type, which may have the name of a field.
        tagged = [c for c in classes if part in types_of(c)] if len(classes) > 1 else []
        if tagged:
            classes = tagged
            continue
        holders = [c for c in classes if part in c.model_fields]
        if holders:
            classes = [
                inner for c in holders for inner in classes_in(c.model_fields[part].annotation)
            ]
        elif not (
            isinstance(part, int)
            or str(part).isdecimal()
            or any(part in types_of(c) for c in classes)
        ):
            return []
    return classes


def fields_at(root: type[Options], path: Sequence[str]) -> list[FieldInfo]:
    """The fields that the option at a path has in the classes that may hold it."""
    holders = classes_at(root, path[:-1]) if path else []
    return [c.model_fields[path[-1]] for c in holders if path[-1] in c.model_fields]


def default_type(root: type[Options], path: Sequence[str]) -> str | None:
    """The default's `type` of the option at a path, used by a mapping without `type`; None where
    there is none.
    """
    return next((_type_of(field.default) for field in fields_at(root, path)), None)


def _type_of(default: Any) -> str | None:
    return getattr(default, "type", None)


def types_of(options: type[Options]) -> list[str]:
    """What `type` may be in these options; one word as a rule."""
    return list(typed(options))


def types_at(root: type[Options], location: Iterable[Any]) -> list[str]:
    """The words at a place that stand for a mapping of that type."""
    return [word for options in classes_at(root, location) for word in types_of(options)]
