"""Patterns of names: one grammar for all that a spec says of weights by their names."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase


def matches(name: str, pattern: str) -> bool:
    """Whether a pattern means a name: all of it, with * for anything, or a module above it."""
    return fnmatchcase(name, pattern) or fnmatchcase(name, pattern + ".*")


def generally(name: str) -> str:
    """The name with * for the numbers of blocks."""
    return re.sub(r"\.\d+(?=\.)", ".*", name)
