"""`bigmodel bench --learn`: what a second of training, a FLOP or a byte buys each structure."""

from __future__ import annotations

import datetime
import json
import os
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bigmodel_cli.bench.learn.budget import BYTES, Budget, budgets_of, changes_of
from bigmodel_cli.bench.learn.judging import Folders, item_errors
from bigmodel_cli.bench.learn.ladder import Ladder
from bigmodel_cli.bench.learn.outcome import Outcome, outcome_of
from bigmodel_cli.bench.learn.ranking import ItemError, half_of_mean, pairs
from bigmodel_cli.bench.learn.report import to_text
from bigmodel_cli.bench.learn.result import Learning, Learnt
from bigmodel_cli.bench.learn.runner import RunAsked, RunProcess, Turning, Turns
from bigmodel_cli.bench.learn.structures import (
    Look,
    Probe,
    Structure,
    bytes_of,
    checked,
    probed,
    sized,
)
from bigmodel_cli.bench.machine import machine
from bigmodel_cli.console import counted, say, strict_json
from bigmodel_cli.errors import BigmodelError, DataError, SpecError, Stopped
from bigmodel_cli.lazy import load_torch
from bigmodel_cli.outputs import write_output
from bigmodel_cli.overrides import Change, Override, to_plain
from bigmodel_cli.progress import progress
from bigmodel_cli.runs import Metric
from bigmodel_cli.train.signals import Interrupted

ASKED, RESULT = "learn.json", "result.json"
"""The files of a call's folder: what was asked for, and what was found so far."""
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
        _write(out / ASKED, {**asked, "probes": [vars(s.probe) for s in structures]})
        course = Course(request, structures, length, size, out, tools)
        course.run()
        return course.judged()
    except Interrupted as stop:
        again = shlex.join(["bigmodel", *request.command])
        again += "" if request.out is not None else f" --out {shlex.quote(str(out))}"
        message = f"stopped; what is done is in {out}; to go on: {again}"
        raise Stopped(message, stop.number) from None


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


def _write(path: Path, values: dict[str, Any]) -> None:
    write_output(path, [strict_json(values).encode(), b"\n"])


@dataclass
class Course:
    """The runs of a call, round by round: one of each structure side by side."""

    request: Request
    structures: Sequence[Structure]
    length: Budget | None
    size: Budget | None
    out: Path
    tools: Tools
    outcomes: list[Outcome] = field(default_factory=list)
    ladders: dict[str, Ladder] = field(default_factory=dict)

    def run(self) -> None:
        """The first seed at the rates of each ladder, then the other seeds at the best rate."""
        first, *others = self.request.seeds
        while wanted := self._rates(first):
            self._round(wanted)
        for seed in others:
            best = [(s, self.ladders[s.name].best()) for s in self.structures]
            self._round([(s, power, seed) for s, power in best if power is not None])

    def _rates(self, seed: int) -> list[tuple[Structure, int, int]]:
        """The next rate of each structure whose ladder goes on; ladders know what has ended."""
        wanted = []
        for structure in self.structures:
            ladder = self._ladder(structure)
            power = ladder.next()
            if power is not None:
                wanted.append((structure, power, seed))
        return wanted

    def _ladder(self, structure: Structure) -> Ladder:
        if structure.name not in self.ladders:
            # which direction is better, its first run tells
            self.ladders[structure.name] = Ladder(structure.rate, False, self.request.rates)
        return self.ladders[structure.name]

    def _round(self, wanted: Sequence[tuple[Structure, int, int]]) -> None:
        """Train what has not ended already, in turns."""
        missing = [one for one in wanted if self._outcome(*one) is None]
        if missing:
            what = f"learning: {counted(len(missing), 'run')}"
            with progress(what, len(missing), "runs") as shown:
                Turns(self.tools.start, shown.to).take([self._asked(*one) for one in missing])
        for structure, power, seed in wanted:
            found = self._outcome(structure, power, seed)
            if found is None:
                raise DataError(
                    f"{self._folder(structure, power, seed)}: has ended without a result"
                )
            self._note(structure, found, new=(structure, power, seed) in missing)
        _write(self.out / RESULT, self.result(finished=False).to_json())

    def _note(self, structure: Structure, found: Outcome, *, new: bool) -> None:
        self.outcomes.append(found)
        ladder = self._ladder(structure)
        ladder.higher_is_better = found.metric.higher_is_better
        if found.seed == self.request.seeds[0]:
            ladder.found[found.power] = found.quality
        name = found.metric.name
        value = "not finite" if found.quality is None else found.metric.shown(name, found.quality)
        where = "" if new else ", from before"
        say(f"{structure.name}: rate {found.rate:.3g}, seed {found.seed}: {name} {value}{where}")

    def _outcome(self, structure: Structure, power: int, seed: int) -> Outcome | None:
        folder = self._folder(structure, power, seed)
        return outcome_of(folder, structure.name, power, self._ladder(structure).at(power), seed)

    def _folder(self, structure: Structure, power: int, seed: int) -> Path:
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", structure.name)
        number = self.structures.index(structure) + 1
        rate = self._ladder(structure).at(power)
        return self.out / f"{number}-{name}" / f"rate-{rate:.6g}-seed-{seed}"

    def _asked(self, structure: Structure, power: int, seed: int) -> RunAsked:
        rate = self._ladder(structure).at(power)
        changes = [
            Override("train.optimizer.lr", rate, "--learn"),
            Override("train.seed", seed, "--seeds"),
            *changes_of(self.length, structure.cost, structure.name),
        ]
        return RunAsked(
            structure.name,
            structure.spec.recorded(),
            changes,
            self._folder(structure, power, seed),
            self.request.device,
        )

    def result(self, *, finished: bool = True) -> Learning:
        """What there is so far, without verdicts."""
        structures = [
            Learnt(
                s.name,
                s.probe.parameters,
                s.cost,
                s.probe.size,
                s.probe.unit,
                self._ladder(s),
                [o for o in self.outcomes if o.structure == s.name],
                self.request.seeds,
            )
            for s in self.structures
        ]
        return Learning(
            structures,
            [],
            self.length,
            self.size,
            self.outcomes[0].metric if self.outcomes else Metric(),
            self.request.seeds,
            str(self.out),
            machine(),
            self.request.command,
            datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            finished=finished,
        )

    def judged(self) -> Learning:
        """What there is, with an interval for each structure and a verdict for each pair."""
        found = judge(self.result(), self.request, self.tools.judge)
        _write(self.out / RESULT, found.to_json())
        return found


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
