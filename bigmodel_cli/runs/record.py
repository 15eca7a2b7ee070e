"""Reads a run's directory, without torch and whatever state its files are in."""

from __future__ import annotations

import errno
import fcntl
import functools
import json
import math
import os
import re
import socket
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from bigmodel_cli.console import counted
from bigmodel_cli.differences import leaves
from bigmodel_cli.errors import SpecError
from bigmodel_cli.metrics import shown, shown_difference
from bigmodel_cli.old_names import with_present_names
from bigmodel_cli.rundir import LOCK, METRICS, SPEC, STATUS
from bigmodel_cli.yaml_source import MAX_RESOLVED, MAX_RESOLVED_NODES, parse_yaml

T = TypeVar("T")
STATES = {"done": "finished", "stopped": "stopped", "failed": "failed", "running": "killed"}
"""A state in status.json -> its name when the run's process has gone."""
MOST_STATUS = 1_000_000
MOST_METRICS = 1 << 30
"""Most bytes of a status.json and a metrics.jsonl that are read."""


class Metric(NamedTuple):
    """The metric by which a run's checkpoints are compared, and those in percent.

    The loss, where an older run does not record it.
    """

    name: str = "loss"
    higher_is_better: bool = False
    percent: frozenset[str] = frozenset()

    def shown(self, name: str, value: float) -> str:
        """A value of the metric of this name, for people."""
        return shown(value, name in self.percent)

    def shown_difference(self, name: str, value: float) -> str:
        """The same for a difference of two, or a deviation."""
        return shown_difference(value, name in self.percent)


@dataclass(frozen=True)
class Validation:
    """The metrics of a validation, without those that are not finite; `averaged`: of the mean of
    several checkpoints.
    """

    step: int
    values: Mapping[str, float]
    averaged: bool = False


@dataclass(frozen=True)
class RunRecord:
    """A run, as far as its files can be read; `warnings` says what could not be."""

    path: Path
    state: str
    process: int | None  # that holds its lock; 0: unknown
    step: int
    total: int | None
    parameters: int | None
    metric: Metric
    options: Mapping[str, Any]  # dotted path -> value
    validations: list[Validation]
    elapsed: float | None  # seconds of training
    warnings: list[str]

    def best(self) -> tuple[int, float] | None:
        """(step, value) of the best validation by the run's metric; None where there was none."""
        values = [
            (v.step, v.values[self.metric.name])
            for v in self.validations
            if self.metric.name in v.values
        ]
        sign = -1 if self.metric.higher_is_better else 1
        return min(values, key=lambda pair: sign * pair[1], default=None)

    def last(self) -> Validation | None:
        """The last validation."""
        return self.validations[-1] if self.validations else None


def is_run(path: Path) -> bool:
    """Whether a run has recorded more in this directory than a spec, which may be anywhere."""
    if any(os.path.isfile(path / name) for name in (STATUS, METRICS, LOCK)):
        return True
    try:
        return any(name.startswith("step-") for name in os.listdir(path / "checkpoints"))
    except OSError:
        return False


def read_run(path: Path) -> RunRecord:
    """Read a run's directory; nothing in it is trusted, and nothing is changed."""
    warnings: list[str] = []
    status = _read(path / STATUS, MOST_STATUS, warnings, _status) or {}
    validations, step, elapsed = _read(
        path / METRICS, MOST_METRICS, warnings, _figures(warnings, path)
    ) or (
        [],
        0,
        None,
    )
    options = _read(path / SPEC, MAX_RESOLVED, warnings, _options) or {}
    process, stated = owner(path), status.get("state")
    total = _count(status.get("total_steps")) or _count(options.get("train.steps"))
    return RunRecord(
        path,
        "running" if process is not None else STATES.get(str(stated), "not known"),
        process,
        max(_count(status.get("last_step")) or 0, step),
        total,
        _count(status.get("parameters")),
        _metric(status.get("metric")),
        options,
        validations,
        elapsed,
        warnings,
    )


def owner(path: Path) -> int | None:
    """The process that holds the lock of the run in this directory; None where there is none, 0
    where its number is unknown.

    The lock is tried only where its process may be alive, so that a run that starts meanwhile finds
    it free.
    """
    try:
        descriptor = os.open(
            path / LOCK, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW
        )
    except OSError:
        return None
    process = 0
    try:
        match = re.match(
            r"process ([0-9]{1,9}) on (.*)", os.read(descriptor, 200).decode("utf-8", "replace")
        )
        if match is not None and match[2] == socket.gethostname():
            process = int(match[1])
            os.kill(process, 0)
    except ProcessLookupError:
        os.close(descriptor)
        return None
    except OSError:  # another user's
        pass
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except OSError as error:
        return process if error.errno in (errno.EAGAIN, errno.EACCES) else None
    finally:
        os.close(descriptor)


def _read(path: Path, most: int, warnings: list[str], take: Callable[[bytes], T]) -> T | None:
    """The result of `take` on a regular file's content; None where there is no such file, or, with
    a warning, where it is damaged.
    """
    try:
        with open(
            path, "rb", opener=lambda p, flags: os.open(p, flags | os.O_NONBLOCK)
        ) as file:  # a FIFO may stand there
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ValueError("not a file")
            if status.st_size > most:
                raise ValueError(f"{status.st_size:,} bytes, and at most {most:,} are read")
            return take(file.read(most))
    except FileNotFoundError:
        return None
    except OSError as error:
        warnings.append(f"{path}: cannot be read: {error.strerror}")
    except (ValueError, RecursionError, SpecError) as error:
        warnings.append(f"{path}: damaged: {_first_line(error)}")
    return None


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].lstrip(":0123456789 ") or "nested too deep"


def _status(content: bytes) -> dict[str, Any]:
    try:
        values = json.loads(content)
    except ValueError:
        raise ValueError("not JSON") from None
    if not isinstance(values, dict):
        raise ValueError("not an object of JSON")
    return values


def _count(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value < 1 << 62 else None


def _metric(values: Any) -> Metric:
    if not isinstance(values, dict) or not isinstance(values.get("name"), str):
        return Metric()
    percent = values.get("percent")
    names = frozenset(map(str, percent)) if isinstance(percent, list) else frozenset()
    return Metric(values["name"], values.get("higher_is_better") is True, names)


def _figures(
    warnings: list[str], path: Path
) -> Callable[[bytes], tuple[list[Validation], int, float | None]]:
    """The validations, the last step and the seconds of training; the other lines, which are many,
    are not parsed.
    """

    def read(content: bytes) -> tuple[list[Validation], int, float | None]:
        validations, damaged = [], 0
        for line in _lines_with(content, b'"val"'):
            record = _record(line)
            values = record.get("val")
            if isinstance(values, dict):
                finite = {str(k): float(v) for k, v in values.items() if _is_finite(v)}
                validations.append(Validation(record["step"], finite, "averaged" in record))
            damaged += not isinstance(values, dict)
        if damaged:
            warnings.append(f"{path / METRICS}: left out {counted(damaged, 'damaged line')}")
        last = _record(
            content[content.rfind(b"\n", 0, content.rfind(b'"elapsed"')) + 1 :].partition(b"\n")[0]
        )
        elapsed = last["elapsed"] if _is_finite(last.get("elapsed")) else None
        return validations, max([last.get("step", 0), *(v.step for v in validations[-1:])]), elapsed

    return read


def training_figures(path: Path, name: str = "loss") -> list[tuple[int, float]]:
    """(step, figure) of each record of the training of the run in this directory: its loss,
    "elapsed" seconds, or another; damaged lines are left out.
    """
    content, key = _read(path / METRICS, MOST_METRICS, [], bytes) or b"", f'"{name}"'.encode()
    records = (_record(line) for line in _lines_with(content, key) if b'"val"' not in line)
    return [(r["step"], r[name]) for r in records if _is_finite(r.get(name))]


def _lines_with(content: bytes, key: bytes) -> Iterator[bytes]:
    """The whole lines that contain the key."""
    end = 0
    while (found := content.find(key, end)) >= 0:
        start, end = content.rfind(b"\n", 0, found) + 1, content.find(b"\n", found)
        if end < 0:  # torn, or just being written
            return
        yield content[start:end]


def _record(line: bytes) -> dict[str, Any]:
    """A line of metrics.jsonl; empty where it is not a record."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) and _count(values.get("step")) is not None else {}


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e300 and math.isfinite(value)


def _options(content: bytes) -> dict[str, Any]:
    """The leaves of a resolved spec.

    Its sections are parsed one by one, and cached, since many runs share them.
    """
    sections = re.split(rb"^(?=[A-Za-z])", content, flags=re.MULTILINE)
    values = {
        name: value for section in sections if section.strip() for name, value in _section(section)
    }
    return {name: value for name, value in values.items() if not name.startswith("x-")}


@functools.cache
def _section(section: bytes) -> tuple[tuple[str, Any], ...]:
    values = parse_yaml(section, "", MAX_RESOLVED, MAX_RESOLVED_NODES).plain()
    if not isinstance(values, dict):
        raise ValueError("not a mapping")
    return tuple(leaf for leaf in leaves(with_present_names(values)) if leaf[1] not in ([], {}))
