"""`bigmodel options`: the options at a path of a spec, read from a cached description."""

from __future__ import annotations

from bigmodel_cli.options.found import Found, find
from bigmodel_cli.options.kept import description
from bigmodel_cli.options.shown import to_json, to_text

__all__ = ["Found", "description", "find", "to_json", "to_text"]
