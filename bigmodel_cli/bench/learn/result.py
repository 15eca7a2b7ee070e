"""What `bench --learn` found, as plain values."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bigmodel_cli.bench.learn.budget import Budget, Cost
from bigmodel_cli.bench.learn.ladder import WITHIN, Ladder, Window
from bigmodel_cli.bench.learn.outcome import Outcome
from bigmodel_cli.bench.learn.ranking import Judged
from bigmodel_cli.runs import Metric

SCHEMA = 1
"""The version of the JSON's form."""


@dataclass(frozen=True)
class Learnt:
    """A structure: its ladder of rates with the first seed, and its runs with the best rate.

    `half` is half the 95 % interval of its mean over seeds; None with one seed.
    """

    name: str
    parameters: int
    cost: Cost
    size: float
    unit: str
    ladder: Ladder
    outcomes: Sequence[Outcome]
    seeds: Sequence[int]
    half: float | None = None

    @property
    def best(self) -> list[Outcome]:
        """The runs with the best rate, one of each seed, as far as they have ended."""
        power = self.ladder.best()
        found = {o.seed: o for o in self.outcomes if o.power == power}
        return [found[seed] for seed in self.seeds if seed in found]

    @property
    def complete(self) -> bool:
        """Whether the best rate has a quality with every seed."""
        best = self.best
        return len(best) == len(self.seeds) and all(o.quality is not None for o in best)

    @property
    def values(self) -> list[float]:
        """The best rate's quality with each seed."""
        return [o.quality for o in self.best if o.quality is not None]

    @property
    def mean(self) -> float | None:
        """Over seeds."""
        return statistics.fmean(self.values) if self.values else None

    @property
    def rate(self) -> float | None:
        """The best one."""
        power = self.ladder.best()
        return None if power is None else self.ladder.at(power)

    @property
    def share_lost(self) -> float:
        """The largest share of a run's time that other work took."""
        return max((o.share_lost for o in self.outcomes), default=0.0)

    @property
    def window(self) -> Window | None:
        """The good rates."""
        return self.ladder.window()

    def to_json(self) -> dict[str, Any]:
        """As plain values, every run's curve among them."""
        window = self.window
        return {
            "name": self.name,
            "parameters": self.parameters,
            "step": {**asdict(self.cost), "size": self.size, "unit": self.unit},
            "best_rate": self.rate,
            "window": None if window is None else {**asdict(window), "width": window.width},
            "values": self.values,
            "mean": self.mean,
            "half_of_interval": self.half,
            "complete": self.complete,
            "runs": [self._run(outcome) for outcome in self.outcomes],
        }

    def _run(self, outcome: Outcome) -> dict[str, Any]:
        """A run's curve by all that it cost."""
        cost = self.cost
        curve = [
            {**asdict(p), "flops": p.step * cost.flops, "samples": p.step * cost.samples}
            for p in outcome.curve
        ]
        fields = {n: v for n, v in vars(outcome).items() if n not in ("metric", "curve", "power")}
        fields["share_lost"] = outcome.share_lost
        return {**fields, "steps": outcome.steps, "curve": curve}


@dataclass(frozen=True)
class Learning:
    """All of one call.

    `note` says why there are no verdicts, where there are none; `finished` whether every run has
    ended.
    """

    structures: Sequence[Learnt]
    pairs: Sequence[Judged]
    length: Budget | None
    size: Budget | None
    metric: Metric
    seeds: Sequence[int]
    folder: str
    machine: Mapping[str, Any]
    command: Sequence[str]
    date: str
    note: str = ""
    finished: bool = True

    @property
    def ranked(self) -> list[Learnt]:
        """The best first; those without any quality last."""
        sign = -1 if self.metric.higher_is_better else 1
        known = [s for s in self.structures if s.mean is not None]
        return [
            *sorted(known, key=lambda s: sign * (s.mean or 0.0)),
            *(s for s in self.structures if s.mean is None),
        ]

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "schema_version": SCHEMA,
            "kind": "learning",
            "budget": [b.to_json() for b in (self.length, self.size) if b is not None],
            "metric": {
                "name": self.metric.name,
                "higher_is_better": self.metric.higher_is_better,
            },
            "seeds": list(self.seeds),
            "within": WITHIN,
            "ranking": [s.name for s in self.ranked],
            "structures": [s.to_json() for s in self.ranked],
            "pairs": [asdict(pair) for pair in self.pairs],
            "note": self.note,
            "finished": self.finished,
            "folder": self.folder,
            "machine": dict(self.machine),
            "command": list(self.command),
            "date": self.date,
        }
