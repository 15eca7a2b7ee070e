"""The runs of a call, in rounds: all that go on side by side."""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bigmodel_cli.bench.learn.budget import Budget, changes_of
from bigmodel_cli.bench.learn.ladder import Ladder
from bigmodel_cli.bench.learn.outcome import Outcome, outcome_of
from bigmodel_cli.bench.learn.result import Learning, Learnt
from bigmodel_cli.bench.learn.runner import RunAsked, Turning, Turns
from bigmodel_cli.bench.learn.structures import Structure
from bigmodel_cli.bench.machine import machine
from bigmodel_cli.console import say, strict_json
from bigmodel_cli.errors import DataError
from bigmodel_cli.outputs import write_output
from bigmodel_cli.overrides import Override
from bigmodel_cli.progress import progress
from bigmodel_cli.runs import Metric

RESULT = "result.json"
"""The file of what was found so far."""
MOST = 8
"""Runs side by side, unless there are more structures: each holds its memory."""
Group = list[tuple[Structure, int, int]]
"""Runs: of a structure, at a power of its ladder, with a seed."""


def side_by_side(groups: Sequence[Group]) -> Group:
    """The first groups together, so many that their runs are not too many; at least one.

    So that what the machine does meanwhile meets rates and seeds alike, too.
    """
    together = list(groups[0])
    for group in groups[1:]:
        if len(together) + len(group) > MOST:
            break
        together += group
    return together


@dataclass(frozen=True)
class Plan:
    """How the runs are chosen: seeds, of which the first tries the rates, `rates` at first."""

    seeds: Sequence[int]
    rates: int
    device: str
    command: Sequence[str]


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Raises `ResourceError`."""
    write_output(path, [strict_json(values).encode(), b"\n"])


@dataclass
class Course:
    """The runs of a call, round by round: one of each structure side by side."""

    asked: Plan
    structures: Sequence[Structure]
    length: Budget | None
    size: Budget | None
    out: Path
    start: Callable[[RunAsked], Turning]
    outcomes: list[Outcome] = field(default_factory=list)
    ladders: dict[str, Ladder] = field(default_factory=dict)

    def run(self) -> None:
        """The first seed at the rates of each ladder, then the other seeds at the best rate."""
        first, *others = self.asked.seeds
        while wanted := self._rates(first):
            self._round(side_by_side(wanted))
        best = [(s, self.ladders[s.name].best()) for s in self.structures]
        wanted = [[(s, power, seed) for s, power in best if power is not None] for seed in others]
        while wanted := [own for own in wanted if own]:
            group = side_by_side(wanted)
            self._round(group)
            wanted = [own for own in wanted if own[0] not in group]

    def _rates(self, seed: int) -> list[Group]:
        """The next rates, a group for each; ladders know what has ended."""
        due = [(structure, self._ladder(structure).due()) for structure in self.structures]
        most = max(len(powers) for _, powers in due)
        return [
            [(s, powers[number], seed) for s, powers in due if number < len(powers)]
            for number in range(most)
        ]

    def _ladder(self, structure: Structure) -> Ladder:
        if structure.name not in self.ladders:
            # which direction is better, its first run tells
            self.ladders[structure.name] = Ladder(structure.rate, False, self.asked.rates)
        return self.ladders[structure.name]

    def _round(self, wanted: Group) -> None:
        """Train what has not ended already, in turns."""
        missing = [one for one in wanted if self._outcome(*one) is None]
        if missing:
            what = "learning"
            with progress(what, len(missing), "runs") as shown:
                Turns(self.start, shown.to).take([self._asked(*one) for one in missing])
        for structure, power, seed in wanted:
            found = self._outcome(structure, power, seed)
            if found is None:
                raise DataError(
                    f"{self._folder(structure, power, seed)}: has ended without a result"
                )
            self._note(structure, found, new=(structure, power, seed) in missing)
        write_json(self.out / RESULT, self.result(finished=False).to_json())

    def _note(self, structure: Structure, found: Outcome, *, new: bool) -> None:
        self.outcomes.append(found)
        ladder = self._ladder(structure)
        ladder.higher_is_better = found.metric.higher_is_better
        if found.seed == self.asked.seeds[0]:
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
            self.asked.device,
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
                self.asked.seeds,
            )
            for s in self.structures
        ]
        return Learning(
            structures,
            [],
            self.length,
            self.size,
            self.outcomes[0].metric if self.outcomes else Metric(),
            self.asked.seeds,
            str(self.out),
            machine(),
            self.asked.command,
            datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            finished=finished,
        )
