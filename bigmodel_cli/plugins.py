"""Plugins: users' own Python files, named on the command line with --plugin (never in YAML, which
runs no code).

A plugin has classes of options, each with a `type` of its own, and a table `PARTS = {"mixer":
[...], ...}` of those it adds, by the kind of table that they join: `bigmodel_cli.tables` has them
all. A part's options are a subclass of `bigmodel_cli.config.Options` with a method `build`; others
are a subclass of their table's base class.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import sys
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from bigmodel_cli.config import Options, Table
from bigmodel_cli.console import visible
from bigmodel_cli.disk import refusal
from bigmodel_cli.errors import SpecError, did_you_mean

PLUGINS = "x-plugins"
"""The key of a recorded spec that lists the plugin files it needs."""
VARIABLE = "BIGMODEL_PLUGINS"
"""Environment variable with the plugins' paths, so that loader workers and a launcher's processes
find them too.

It is a JSON list of pairs: the path as it was given, for messages, and the absolute one.
"""

_ORIGINS: dict[type[Options], tuple[str, Path]] = {}


@dataclass(frozen=True)
class PluginPart:
    """Options of a part from a plugin: its path in the spec, its slot, and the plugin's file."""

    path: str
    slot: str
    options: Any
    file: Path


def parts_from_files(value: Any, path: str = "") -> Iterator[PluginPart]:
    """The options of plugins' parts among these options, each with its path."""
    if type(value) in _ORIGINS:
        yield PluginPart(path, _ORIGINS[type(value)][0], value, _ORIGINS[type(value)][1])
    inner: dict[Any, Any]
    if isinstance(value, Options):
        inner = {name: getattr(value, name) for name in type(value).model_fields}
    else:
        inner = dict(enumerate(value)) if isinstance(value, list) else {}
    for name, part in inner.items():
        yield from parts_from_files(part, f"{path}.{name}" if path else str(name))


def plugin_types() -> list[tuple[str, type[Options], Path]]:
    """What the plugins have added: (slot, class of options, file)."""
    return [(slot, options, file) for options, (slot, file) in _ORIGINS.items()]


def needed_plugins(recorded: Any) -> str:
    """What to say about an unknown type; `recorded` are the plugin files that the spec needs."""
    names = (
        [name for name in recorded if isinstance(name, str)] if isinstance(recorded, list) else []
    )
    options = " ".join(f"--plugin {name}" for name in names)
    return (
        f"this spec was made with {options}: give it"
        if names
        else "a part of your own needs --plugin FILE"
    )


def missing_plugins(recorded: Any) -> list[str]:
    """The plugin files that a spec needs and that are not given."""
    given = {visible(file.name) for _, _, file in plugin_types()}
    return (
        [name for name in recorded if isinstance(name, str) and name not in given]
        if isinstance(recorded, list)
        else []
    )


def name_plugins(paths: list[Path], option: str = "--plugin ") -> None:
    """Remember the files for `join`; messages name each after `option`.

    Raises `SpecError` where one is missing, or the tables are joined already.
    """
    for path in paths:
        if path.suffix != ".py" and os.path.exists(path):
            raise SpecError(f"{option}{path}: a plugin is a Python file, whose name ends in .py")
        if not os.path.isfile(path):
            what = "this is not a file" if os.path.exists(path) else refusal(path) or "no such file"
            raise SpecError(f"{option}{path}: {what}")
    value = json.dumps([[str(path), str(path.resolve())] for path in paths])
    if not paths or os.environ.get(VARIABLE) == value:
        return
    if "bigmodel_cli.tables" in sys.modules:
        raise SpecError("--plugin: too late, the tables are joined already")
    os.environ[VARIABLE] = value


def join(tables: Iterable[Table[Any]]) -> None:
    """Add what every named file has to the tables.

    Raises `SpecError` naming the file, and the line where there is one.
    """
    kinds = {table.kind: table for table in tables}
    for text, absolute in json.loads(os.environ.get(VARIABLE) or "[]"):
        for kind, found in _load(text, Path(absolute)).items():
            if kind not in kinds:
                raise SpecError(f"{text}: PARTS: no slot {kind!r}{did_you_mean(kind, kinds)}")
            for options in found:
                name = _name(text, options, kinds[kind].base)
                if name in kinds[kind]:
                    raise SpecError(
                        f"{text}: {kind} {name!r} is there already; choose another name"
                    )
                kinds[kind][name] = options
                _ORIGINS[options] = (kind, Path(text))


def _load(name: str, path: Path) -> dict[str, list[Any]]:
    """The file's table; `name` stands for the path in messages.

    Raises `SpecError` for a file that does not run or has no table.
    """
    spec = importlib.util.spec_from_file_location(f"bigmodel_plugin_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        text = error.msg if isinstance(error, SyntaxError) else error
        raise SpecError(f"{name}{line_of(path, error)}: {type(error).__name__}: {text}") from error
    parts: Any = getattr(module, "PARTS", None)
    if (
        not isinstance(parts, dict)
        or not parts
        or not all(isinstance(found, list) for found in parts.values())
    ):
        raise SpecError(
            f'{name}: has no table PARTS of lists; write PARTS = {{"mixer": [MyOptions]}}'
        )
    return parts


def line_of(path: Path, error: BaseException) -> str:
    """':12', the last line of the file in the error's traceback; '' where it is not in it."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return f":{error.lineno}"
    lines = [
        line
        for frame, line in traceback.walk_tb(error.__traceback__)
        if frame.f_code.co_filename == str(path)
    ]
    return f":{lines[-1]}" if lines else ""


def _name(path: str, options: Any, base: type[Options]) -> str:
    """The `type` of a class of options.

    Raises `SpecError` where it lacks what its table's base class requires.
    """
    if not (
        isinstance(options, type)
        and issubclass(options, Options)
        and "type" in options.model_fields
    ):
        shown = options.__name__ if isinstance(options, type) else repr(options)
        raise SpecError(f"{path}: PARTS: {shown} is not a subclass of Options with a field `type`")
    place = f"{path}{_line_of_class(options)}: PARTS: {options.__name__}"
    asked = [name for name in (*vars(base), *base.__class_vars__) if not name.startswith("_")]
    lacking = [
        name for name in asked if name not in options.model_fields and not hasattr(options, name)
    ]
    if lacking and not issubclass(options, base):
        raise SpecError(
            f"{place} is not a subclass of {base.__module__}.{base.__name__}: it lacks"
            f" {', '.join(lacking)}"
        )
    if lacking := sorted({*lacking, *options.__abstractmethods__}):
        raise SpecError(
            f"{place} lacks {', '.join(lacking)}, as {base.__module__}.{base.__name__} says"
        )
    field = options.model_fields["type"]
    names = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    if names != (field.default,) or not isinstance(field.default, str):
        raise SpecError(f'{place}: write its name as type: Literal["my_name"] = "my_name"')
    return field.default


def _line_of_class(options: type[Options]) -> str:
    """':12', the line of its file where a class begins; '' where that is not known."""
    try:
        return f":{inspect.getsourcelines(options)[1]}"
    except (OSError, TypeError):
        return ""
