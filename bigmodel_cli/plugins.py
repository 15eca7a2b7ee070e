"""Parts from a user's own files, named on the command line with --plugin (never from YAML: reading a spec runs no code).

A plugin is a Python file with options classes, each a subclass of `bigmodel_cli.config.Options` with a `type` of its own and a
`build` method, and a table `PARTS = {"mixer": [...], "ffn": [...], "norm": [...], "position": [...]}` of those it adds.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any, get_args

from bigmodel_cli.config import Options
from bigmodel_cli.errors import SpecError, did_you_mean

VARIABLE = "BIGMODEL_PLUGINS"
"""Where the command line leaves the paths, so that loader workers and the processes of a launcher find them too.

It is a list in JSON: a path may hold any character.
"""


def name_plugins(paths: list[Path]) -> None:
    """Remember the files for `extend`. Raises `SpecError` where one is missing, or where parts are imported already."""
    for path in paths:
        if not path.is_file():
            raise SpecError(f"--plugin {path}: no such file")
    if paths and "bigmodel_cli.parts" in sys.modules:
        raise SpecError("--plugin: too late, the parts are joined already")
    if paths:
        os.environ[VARIABLE] = json.dumps([str(path.resolve()) for path in paths])


def extend(tables: dict[str, dict[str, type[Options]]]) -> None:
    """Add the parts of every named file to the tables."""
    for text in json.loads(os.environ.get(VARIABLE) or "[]"):
        for slot, found in _load(Path(text)).items():
            if slot not in tables:
                raise SpecError(f"{text}: PARTS: no slot {slot!r}{did_you_mean(slot, tables)}")
            for options in found:
                name = _name(text, options)
                if name in tables[slot]:
                    raise SpecError(f"{text}: a {slot} of type {name!r} is there already; choose another name")
                tables[slot][name] = options


def _load(path: Path) -> dict[str, list[Any]]:
    """The file's table. Raises `SpecError` for a file that does not run or has none."""
    spec = importlib.util.spec_from_file_location(f"bigmodel_plugin_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise SpecError(f"{path}: {type(error).__name__}: {error}") from error
    parts: dict[str, list[Any]] | None = getattr(module, "PARTS", None)
    if not isinstance(parts, dict) or not parts:
        raise SpecError(f'{path}: has no table PARTS; write PARTS = {{"mixer": [MyOptions]}}')
    return parts


def _name(path: str, options: Any) -> str:
    if not (isinstance(options, type) and issubclass(options, Options) and "type" in options.model_fields):
        raise SpecError(f"{path}: PARTS: {options!r} is no subclass of Options with a field `type`")
    if not hasattr(options, "build"):
        raise SpecError(f"{path}: PARTS: {options.__name__} has no method build(self, place)")
    return str(get_args(options.model_fields["type"].annotation)[0])
