"""Options that stand in a dataclass, because several commands take them or they are many."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import is_dataclass
from typing import Any


def fields_as_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command as Typer needs it: a parameter that is a dataclass gives way to its fields.

    Each field is a parameter of its own, in the dataclass's place; `command` gets them put
    together again.
    """
    parameters: dict[str, inspect.Parameter] = {}
    groups: dict[str, tuple[type[Any], list[str]]] = {}
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        own = {parameter.name: parameter}
        group: Any = parameter.annotation
        if isinstance(group, type) and is_dataclass(group):
            own = dict(inspect.signature(group, eval_str=True).parameters)
            groups[parameter.name] = (group, list(own))
        parameters |= own

    @functools.wraps(command)
    def spread(**given: Any) -> None:
        for name, (group, names) in groups.items():
            given[name] = group(**{field: given.pop(field) for field in names})
        command(**given)

    spread.__annotations__ = {name: p.annotation for name, p in parameters.items()}
    spread.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters.values()]
    )
    return spread
