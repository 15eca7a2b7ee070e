"""Results as files: written whole or not at all, read back, with a clear word about bad ones."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from bigmodel_cli.bench.result import SCHEMA, LeftOut, Measured, Result
from bigmodel_cli.console import strict_json
from bigmodel_cli.disk import refusal
from bigmodel_cli.errors import DataError
from bigmodel_cli.outputs import write_output

LARGEST = 1 << 28
"""Bytes of a file that is read."""
COLUMNS = ("name", "doing", "process", "block", "step", "seconds", "rejected")
JOULES = "joules"
"""Of a step, in the mean of its block: the last column, where the system tells them."""


def write(result: Result, path: Path) -> None:
    """As JSON, every sample among it. Raises `ResourceError`."""
    write_output(path, [strict_json(result.to_json()).encode(), b"\n"])


def write_csv(result: Result, path: Path) -> None:
    """A row for each step, with its parts. Raises `ResourceError`."""
    parts = list(dict.fromkeys(n for m in result.measured for b in m.blocks for n in b.parts))
    text = io.StringIO(newline="")
    rows = csv.writer(text)
    told = any(block.joules is not None for m in result.measured for block in m.blocks)
    rows.writerow([*COLUMNS, *parts, *([JOULES] if told else [])])
    for measured in result.measured:
        for block in measured.blocks:
            known = [measured.facts.name, measured.facts.doing, block.process, block.place]
            # of a GPU they are of other steps
            count = len(block.seconds)
            known_parts = {n: values for n, values in block.parts.items() if len(values) == count}
            for step, seconds in enumerate(block.seconds):
                own = [found[step] if (found := known_parts.get(part)) else "" for part in parts]
                used = [] if not told else [(block.joules or 0.0) / block.steps]
                rows.writerow([*known, step, seconds, block.rejected, *own, *used])
    write_output(path, [text.getvalue().encode()])


def read(path: Path) -> Result:
    """A result that `write` wrote. Raises `DataError`."""
    try:
        size = path.stat().st_size
        if size > LARGEST:
            raise DataError(f"{path}: {size:,} bytes are no result of bench")
        values = json.loads(path.read_bytes())
    except OSError as error:
        why = refusal(path) or error.strerror or str(error)
        raise DataError(f"{path}: cannot be read: {why}") from None
    except (ValueError, RecursionError):
        raise DataError(f"{path}: not JSON; name a file that bench --out wrote") from None
    version = values.get("schema_version") if isinstance(values, dict) else None
    if version != SCHEMA:
        other = f"of schema_version {version}" if isinstance(version, int) else "no result of bench"
        raise DataError(f"{path}: {other}; this bigmodel reads {SCHEMA}")
    try:
        return _of(values)
    except (ValidationError, KeyError, TypeError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else None
        where = ".".join(map(str, first["loc"])) if first else str(error)
        what = f": {first['msg']}" if first else ""
        raise DataError(f"{path}: {where}{what}; it is damaged, or was changed") from None


def _of(values: Mapping[str, Any]) -> Result:
    """The result of plain values."""
    fields = Measured.__dataclass_fields__
    rows = [{n: v for n, v in row.items() if n in fields} for row in values["benchmarks"]]
    found = TypeAdapter(list[Measured]).validate_python(rows)
    if not found or not all(m.blocks and all(b.seconds for b in m.blocks) for m in found):
        raise KeyError("benchmarks")
    left_out = TypeAdapter(list[LeftOut]).validate_python(values["left_out"])
    return Result(found, values["machine"], values["command"], values["date"], left_out)
