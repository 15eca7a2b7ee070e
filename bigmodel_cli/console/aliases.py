"""Files and folders that messages call by another name than their path."""

from __future__ import annotations

_NAMES: dict[str, str] = {}


def call(path: object, name: str) -> None:
    """From now on messages write `name` for that path, and for the beginning of what is below."""
    _NAMES[str(path)] = name


def with_names(text: str) -> str:
    """The text with those names."""
    for path, name in _NAMES.items():
        text = text.replace(path, name)
    return text


def forget_names() -> None:
    """A command begins."""
    _NAMES.clear()
