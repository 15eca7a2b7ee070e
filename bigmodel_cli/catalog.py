"""What a spec can contain: parts, models, tasks, data sources; its JSON Schema; and specs to start
from.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from bigmodel_cli.config import Options, classes_in, typed
from bigmodel_cli.console import table
from bigmodel_cli.errors import SpecError, did_you_mean
from bigmodel_cli.inherit import BASE
from bigmodel_cli.outputs import check_output, write_output
from bigmodel_cli.spec import Spec
from bigmodel_cli.tables import TABLES
from bigmodel_cli.tasks import TASKS


def catalog() -> dict[str, dict[str, str]]:
    """Every `type:` by kind, with one line about it."""
    tables: dict[str, dict[str, type[Options]]] = {table.kind: table for table in TABLES}
    for name, options in _typed_options(Spec, []):
        if not any(options.keys() <= table.keys() for table in tables.values()):
            tables[name] = {**options, **tables.get(name, {})}
    return {
        kind: {name: _line(entry) for name, entry in entries.items()}
        for kind, entries in tables.items()
    }


def _typed_options(
    options: type[Options], seen: list[type[Options]]
) -> Iterator[tuple[str, dict[str, type[Options]]]]:
    """Each option below these whose value has a `type`, with its classes; `seen` have been
    visited.
    """
    seen.append(options)
    for name, field in options.model_fields.items():
        if by_type := typed(field.annotation):
            yield name, by_type
        for inner in classes_in(field.annotation):
            if inner not in seen:
                yield from _typed_options(inner, seen)


def _line(options: type[Options]) -> str:
    """The docstring's first paragraph."""
    return " ".join((options.__doc__ or "").split("\n\n")[0].split())


def catalog_text() -> str:
    """The catalog as a table."""
    rows = [
        [kind, name, line] for kind, entries in catalog().items() for name, line in entries.items()
    ]
    return table(["kind", "name", "what it is"], rows)


def schema() -> dict[str, Any]:
    """The JSON Schema of a spec, for editors."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "bigmodel spec",
        **_open_top(Spec.model_json_schema()),
    }


def _open_top(values: dict[str, Any]) -> dict[str, Any]:
    """Allow keys that begin with x- at the top of a spec (for YAML anchors), and `base`."""
    what = (
        "another spec, from which this one takes what it does not say; its path from this file's"
        " folder"
    )
    base = {"description": what, "type": "string", "examples": ["other.yaml"]}
    properties = {BASE: base, **values["properties"]}
    return {**values, "properties": properties, "patternProperties": {"^x-": {}}}


def templates() -> dict[str, str]:
    """The commented templates of `bigmodel init`, by name."""
    return samples("templates")


def samples(folder: str = "sample_configs") -> dict[str, str]:
    """The text of the sample specs, or of those in another folder of the package, by name."""
    entries = (resources.files("bigmodel_cli") / folder).iterdir()
    texts = {
        f.name.removesuffix(".yaml"): f.read_text(encoding="utf-8")
        for f in entries
        if f.name.endswith(".yaml")
    }
    return dict(sorted(texts.items()))


def like_what(name: str) -> str:
    """The text of the sample spec of this name, or of the first that has the task of this name.

    Raises `SpecError` where there is neither.
    """
    known = {**samples(), **templates()}
    if name in known:
        return known[name].replace(f"sample_configs/{name}.yaml", "{path}")
    if name not in TASKS:
        choices = sorted({*known, *TASKS})
        raise SpecError(
            f"--like {name}: not one of {', '.join(choices)}{did_you_mean(name, choices)}"
        )
    task = re.compile(rf"^task: *({name}$|{{type: {name}\b|\n  type: {name}$)", re.MULTILINE)
    # Each task has a sample (kept by a test); those that need no checkpoint come first.
    fitting = [(sample, text) for sample, text in known.items() if task.search(text)]
    sample, text = min(fitting, key=lambda named: "finetune" in named[0])
    return text.replace(f"sample_configs/{sample}.yaml", "{path}")


def write_sample(name: str, like: str) -> Path:
    """Write `name`.yaml from a sample spec.

    Raises where the file exists or there is no such sample.
    """
    return write_spec(name, lambda path: like_what(like).replace("{path}", str(path)))


def write_spec(name: str, text: Callable[[Path], str]) -> Path:
    """Write a new spec into `name`.yaml; `text` gives it for that path.

    Raises where the file exists.
    """
    if not os.path.basename(name):
        raise SpecError(
            f"NAME: {name!r} is the name of no file; write for instance `bigmodel init mine`"
        )
    path = Path(name)
    # A device or a FIFO is written through.
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        write_output(path, [text(path).encode("utf-8")])
        return path
    path = Path(name if name.endswith((".yaml", ".yml")) else f"{name}.yaml")
    if os.path.lexists(path):
        raise SpecError(f"{path}: exists already; choose another name")
    check_output(path, "NAME")
    write_output(path, [text(path).encode("utf-8")])
    return path
