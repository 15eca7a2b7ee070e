"""`bigmodel bench --learn`: what a second of training, a FLOP or a byte buys each structure."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bigmodel_cli.bench.learn.budget import BYTES, Budget, budgets_of, changes_of
from bigmodel_cli.bench.learn.course import RESULT, Course, Plan, write_json
from bigmodel_cli.bench.learn.judging import Folders, item_errors
from bigmodel_cli.bench.learn.others import MOST
from bigmodel_cli.bench.learn.ranking import ItemError, half_of_mean, pairs
from bigmodel_cli.bench.learn.report import to_text
from bigmodel_cli.bench.learn.result import Learning
from bigmodel_cli.bench.learn.runner import RunAsked, RunProcess, Turning
from bigmodel_cli.bench.learn.structures import (
    Look,
    Probe,
    Structure,
    bytes_of,
    checked,
    probed,
    sized,
)
from bigmodel_cli.console import say, strict_json
from bigmodel_cli.errors import BigmodelError, DataError, SpecError, Stopped
from bigmodel_cli.lazy import load_torch
from bigmodel_cli.overrides import Change, to_plain
from bigmodel_cli.train.signals import Interrupted

ASKED = "learn.json"
"""The file of a call's folder that says what was asked for."""
ROOT = Path("runs")


@dataclass(frozen=True)
class Request:
    """What a call asks for.

    The first seed tries the rates, `rates` of them at first. Without `out` the folder is the first
    of runs/learn, runs/learn-2 ... that is free.
    """

    targets: Sequence[str]
    budget: str
    changes: Sequence[Change] = ()
    seeds: Sequence[int] = (0, 1)
    rates: int = 3
    device: str = "auto"
    out: Path | None = None
    command: Sequence[str] = ()


Judge = Callable[[Folders, str, str], ItemError]


@dataclass(frozen=True)
class Tools:
    """How the work is done: what measures a structure, starts a run, judges the best ones."""

    look: Look = probed
    start: Callable[[RunAsked], Turning] = RunProcess
    judge: Judge = item_errors


def learn(request: Request, tools: Tools | None = None) -> Learning:
    """Train every structure within the budget, at rates of its own, and compare them.

    Raises `SpecError`, what a training raises, and `Stopped` after a signal: what is done stays in
    the folder, and the same command with it goes on.
    """
    tools = tools or Tools()
    length, size = budgets_of(request.budget)
    load_torch()
    found = checked(request.targets, request.changes)
    out = request.out or _free()
    asked = _asked(request, [spec.to_dict() for _, spec in found])
    before = _before(out, asked)
    try:
        structures = _structures(request, found, length, size, tools.look, before)
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / ASKED, {**asked, "probes": [vars(s.probe) for s in structures]})
        plan = Plan(request.seeds, request.rates, request.device, request.command)
        course = Course(plan, structures, length, size, out, tools.start)
        course.run()
        judged = judge(course.result(), request, tools.judge)
        write_json(out / RESULT, judged.to_json())
        return judged
    except Interrupted as stop:
        raise Stopped(_how_to_go_on(request, out), stop.number) from None


def _how_to_go_on(request: Request, out: Path) -> str:
    """What is said after a signal."""
    again = shlex.join(["bigmodel", *request.command])
    if not os.path.isfile(out / ASKED):
        return f"stopped before the first run; to start again: {again}"
    again += "" if request.out is not None else f" --out {shlex.quote(str(out))}"
    return f"stopped; what is done is in {out}; to go on: {again}"


def _free() -> Path:
    """The first folder of its name that is not there."""
    number = 1
    while os.path.lexists(path := ROOT / ("learn" if number == 1 else f"learn-{number}")):
        number += 1
    return path


def _asked(request: Request, specs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What decides a run's course, and so must be the same when a call goes on."""
    return {
        "targets": list(request.targets),
        "budget": request.budget,
        "changes": [to_plain(change) for change in request.changes],
        "device": request.device,
        "specs": list(specs),
    }


def _before(out: Path, asked: dict[str, Any]) -> Sequence[Probe]:
    """What the folder knows of the structures; empty where it is new.

    Raises `SpecError` where it is of another comparison, and `DataError` for a damaged file.
    """
    path = out / ASKED
    if not os.path.isdir(out) or not os.listdir(out):
        return ()
    if not os.path.isfile(path):
        raise SpecError(f"--out {out}: holds other files already; choose another folder")
    try:
        values = json.loads(path.read_bytes())
        probes = [Probe(**probe) for probe in values.pop("probes")]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"{path}: damaged; choose another --out") from None
    wanted = json.loads(strict_json(asked))
    differ = [name for name in wanted if values.get(name) != wanted[name]]
    if differ:
        raise SpecError(
            f"--out {out}: holds a comparison with other {' and '.join(differ)}; choose another"
            " folder, or repeat its command"
        )
    return probes


def _structures(
    request: Request,
    found: Sequence[tuple[str, Any]],
    length: Budget | None,
    size: Budget | None,
    look: Look,
    before: Sequence[Probe],
) -> list[Structure]:
    """Each with what a step of it takes, measured one after the other."""
    structures = []
    for number, (target, (name, spec)) in enumerate(zip(request.targets, found, strict=True)):
        more = [] if size is None else sized(spec, name, size)
        if more:
            dim = more[0].value
            model = spec.model.model_validate({**spec.model.model_dump(mode="json"), "dim": dim})
            spec = spec.model_copy(update={"model": model})
        changes = [*request.changes, *more]
        if before:
            probe = before[number]
        else:
            say(f"{name}: measuring a step")
            probe = look(target, changes, request.device)
        known = bytes_of(spec) if length is not None and length.kind == BYTES else None
        structures.append(Structure(name, target, changes, spec, probe, known))
        changes_of(length, structures[-1].cost, name)  # refuses what cannot be
    return structures


def judge(found: Learning, request: Request, tool: Judge) -> Learning:
    """With intervals and verdicts, of the structures that have a quality with every seed."""
    known = [s for s in found.structures if s.complete]
    values = {s.name: s.values for s in known}
    structures = [
        replace(s, half=half_of_mean(values, s.name)) if s in known else s for s in found.structures
    ]
    notes = [
        f"{s.name}: no verdict: its loss was not finite with every seed"
        for s in found.structures
        if not s.complete
    ]
    notes += [
        f"{s.name}: other work took up to {100 * s.share_lost:.0f} % of a run's time; seconds of"
        " training are those that it left"
        for s in found.structures
        if s.share_lost > MOST
    ]
    judged = []
    if len(found.seeds) < 2:
        notes.append("one seed tells no difference between structures; give --seeds 2 or more")
    elif len(known) > 1:
        folders = {s.name: [o.folder for o in s.best] for s in known}
        try:
            error = tool(folders, found.metric.name, request.device)
            judged = pairs(values, error, found.metric.higher_is_better)
        except BigmodelError as fault:
            notes.append(f"no verdicts: {fault}")
    return replace(found, structures=structures, pairs=judged, note="\n".join(notes))


__all__ = ["Learning", "Request", "Tools", "learn", "to_text"]
