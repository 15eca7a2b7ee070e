"""`bigmodel options`: the options at a path of a spec, read from a cached description.

Without plugins, nothing here imports pydantic, which would take longer than all the rest.
"""

from __future__ import annotations

from bigmodel_cli.console import result, result_json
from bigmodel_cli.options.cache import description
from bigmodel_cli.options.lookup import Found, find
from bigmodel_cli.options.table import to_json, to_text


def print_options(
    path: str = "", kind: str | None = None, *, json: bool = False, plugins: bool = False
) -> None:
    """Print what is at a path, of the type `kind`. Raises `SpecError` where there is no such."""
    known = description(plugins)
    found = find(known, path, kind)
    if json:
        result_json(to_json(known, found))
    else:
        result(to_text(known, found))


__all__ = ["Found", "description", "find", "print_options", "to_json", "to_text"]
