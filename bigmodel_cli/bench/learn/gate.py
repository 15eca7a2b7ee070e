"""A training that takes turns: in a process of its own, it waits between steps until it may go on.

The parent writes one line for each turn (its seconds); this process answers each with one, when
the turn is over or the training is. Where the parent is gone, it saves a checkpoint and ends.

Seconds that other work took are given back: they do not count as seconds of training.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from bigmodel_cli.bench.learn.others import LOST, Others
from bigmodel_cli.bench.pipes import answering, faulty
from bigmodel_cli.errors import BigmodelError
from bigmodel_cli.lazy import torch
from bigmodel_cli.overrides import from_plain
from bigmodel_cli.rundir import has_begun
from bigmodel_cli.spec import from_dict
from bigmodel_cli.train.observers import Observer
from bigmodel_cli.train.request import Request
from bigmodel_cli.train.run import Run
from bigmodel_cli.train.session import train
from bigmodel_cli.train.signals import Signals

LOOK = 1.0
"""Seconds between two looks at what other work took."""


def _leave() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


class Gate(Observer):
    """Waits for a turn before the first step, and whenever one is over.

    `turns` gives a line for each turn, "" where there will be none; `leave` is called then.
    """

    def __init__(
        self,
        turns: TextIO,
        answers: TextIO,
        clock: Callable[[], float] = time.perf_counter,
        leave: Callable[[], None] = _leave,
        others: Others | None = None,
    ) -> None:
        self.turns, self.answers, self.clock, self.leave = turns, answers, clock, leave
        self.others = others or Others()
        self.until = self.looked = 0.0
        self.counted = 0.0  # seconds of training up to the last look
        self.waiting = True  # for the first turn

    def between_steps(self, run: Run) -> None:
        now = self.clock()
        over = self.waiting or now >= self.until
        if not self.waiting and (over or now >= self.looked + LOOK):
            self._give_back(run)
            self.looked = now
        if not over:
            return
        self.waiting = False
        answer = {"step": run.state.step, "total": run.total, "seconds": run.state.elapsed}
        print(json.dumps(answer), file=self.answers, flush=True)
        line = self.turns.readline()
        if not line:
            self.leave()
            return
        self.looked = self.clock()
        self.until = self.looked + float(json.loads(line))
        self.counted = run.state.elapsed
        self.others.begin()

    def _give_back(self, run: Run) -> None:
        """Of the seconds since the last look, count those alone that the training had."""
        threads = torch.get_num_threads() if run.device.type == "cpu" else 1
        lost = self.others.share(threads) * (run.state.elapsed - self.counted)
        if lost > 0:
            run.state.elapsed -= lost
            run.observers.write({"step": run.state.step, LOST: lost})
        self.counted = run.state.elapsed


def serve() -> None:
    """Train what the first line of stdin says, in turns."""
    answers = answering()
    asked = json.loads(sys.stdin.readline())
    answer: dict[str, Any]
    try:
        with Signals() as signals:
            answer = {"done": str(_train(asked, Gate(sys.stdin, answers), signals))}
    except BigmodelError as error:
        answer = faulty(error)
    print(json.dumps(answer), file=answers, flush=True)


def _train(asked: dict[str, Any], gate: Gate, signals: Signals) -> Path:
    """Begin the run, or go on with it."""
    out = Path(asked["out"])
    begun = has_begun(out)
    request = Request(
        name=out.name, out=out, resume=begun, device=asked["device"], watching=(gate,)
    )
    changes = [from_plain(change) for change in asked["changes"]]
    spec = None if begun else from_dict(asked["spec"], changes, asked["name"])
    return train(spec, request, signals)
