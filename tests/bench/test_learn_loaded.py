"""`bench --learn` beside other work: what that took from a training does not count as its time."""

from __future__ import annotations

import io
import json
import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bigmodel_cli.bench.learn import Request, judge, to_text
from bigmodel_cli.bench.learn.budget import Cost
from bigmodel_cli.bench.learn.gate import Gate
from bigmodel_cli.bench.learn.ladder import Ladder
from bigmodel_cli.bench.learn.others import Others, own_seconds
from bigmodel_cli.bench.learn.outcome import Outcome, Point, outcome_of
from bigmodel_cli.bench.learn.ranking import Spread
from bigmodel_cli.bench.learn.result import Learning, Learnt
from bigmodel_cli.bench.mood import Reading
from bigmodel_cli.runs import Metric
from bigmodel_cli.spec import load
from bigmodel_cli.train.request import Request as TrainRequest
from bigmodel_cli.train.session import train
from bigmodel_cli.train.signals import Signals

TICKS = os.sysconf("SC_CLK_TCK")


def played(own: float, others: float, stolen: float, processors: int = 4) -> Others:
    """Each look is 2 s after the one before, in which so many processors were busy with each."""
    at = iter(range(10**6))
    used = iter(range(10**6))

    def reading() -> Reading:
        ticks = 2.0 * TICKS * next(at)
        return Reading(processors * ticks, stolen * ticks, (own + others) * ticks, None)

    return Others(reading, lambda: 2.0 * own * next(used), lambda: processors)


@pytest.mark.parametrize(
    ("threads", "own", "others", "stolen", "lost"),
    [
        (4, 3.9, 0.0, 0.0, 0.0),
        (4, 3.9, 0.1, 0.0, 0.0),  # 2.5 %: no more than every machine has
        (4, 2.0, 2.0, 0.0, 0.5),
        (4, 1.0, 2.0, 0.0, 0.5),  # its threads wait for one another
        (4, 2.0, 0.0, 1.0, 0.25),
        (1, 1.0, 3.0, 0.0, 0.0),  # one thread lacks nothing while a processor is left
        (1, 0.4, 3.6, 0.0, 0.6),
        (2, 1.5, 2.0, 0.5, 0.25),
        (9, 3.0, 1.0, 0.0, 0.25),  # more threads than processors
    ],
)
def test_a_training_lacks_what_others_left_less_than_its_threads_want(
    threads: int, own: float, others: float, stolen: float, lost: float
) -> None:
    looks = played(own, others, stolen)
    looks.begin()
    assert [looks.share(threads) for _ in range(2)] == [pytest.approx(lost)] * 2


def test_nothing_is_lost_where_the_system_does_not_tell() -> None:
    looks = Others(lambda: None, lambda: 0.0, lambda: 2)
    looks.begin()
    assert looks.share(2) == 0


def test_a_process_counts_its_own_time(tmp_path: Path) -> None:
    before = own_seconds(tmp_path)
    assert sum(range(300_000)) > 0
    assert own_seconds(tmp_path) > before


def trained(spec: Path, out: Path, others: Others) -> list[dict[str, float]]:
    """The records of a training that takes turns of three steps, with a clock that is played."""
    times = iter(range(10**6))
    turns, answers = io.StringIO("3\n" * 100), io.StringIO()
    gate = Gate(turns, answers, lambda: float(next(times)), lambda: None, others)
    request = TrainRequest(name="a", out=out, device="cpu", watching=(gate,))
    with Signals() as signals:
        train(load(spec), request, signals)
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_seconds_that_others_took_do_not_count(decoder_spec: Path, tmp_path: Path) -> None:
    threads = min(torch.get_num_threads(), 4)
    quiet = trained(decoder_spec, tmp_path / "quiet", played(float(threads), 0.0, 0.0))
    assert not [r for r in quiet if "lost" in r]
    others = 4 - 0.2 * threads  # a fifth of what it wants is left
    records = trained(decoder_spec, tmp_path / "loaded", played(0.2 * threads, others, 0.0))
    lost = math.fsum(r["lost"] for r in records if "lost" in r)
    last = [r for r in records if "elapsed" in r][-1]
    state = json.loads(next((tmp_path / "loaded").rglob("state.json")).read_text())
    # of all steps but the last, after which nobody looks, four fifths were lost
    assert 0 < 0.2 * lost <= 0.8 * last["elapsed"] * (1 + 1e-6)
    assert state["elapsed"] <= last["elapsed"]
    found = outcome_of(tmp_path / "loaded", "a", 0, 0.1, 0)
    assert found is not None
    assert found.lost == pytest.approx(lost)
    assert found.share_lost == pytest.approx(lost / (lost + found.curve[-1].seconds))


def learnt(name: str, lost: float) -> Learnt:
    curve = [Point(4, 10.0, 1.0)]
    runs = [Outcome(name, 0, 0.1, seed, "x", "done", 1.0, Metric(), curve) for seed in (0, 1)]
    ladder = Ladder(0.1, False, 1, {0: 1.0})
    runs[1] = replace(runs[1], lost=lost)
    return Learnt(name, 10, Cost(1.0, 1.0, None, 1), 1.0, "samples", ladder, runs, (0, 1))


def test_what_was_lost_is_said_and_recorded() -> None:
    structures = [learnt("a", 0.3), learnt("b", 30.0)]
    found = Learning(structures, [], None, None, Metric(), (0, 1), "out", {}, (), "today")
    asked = Request(("a", "b"), "3min")
    judged = judge(found, asked, lambda *_: lambda one, other: Spread(0.0, 9))
    assert "b: other work took up to 75 % of a run's time" in judged.note
    assert "a: other work" not in judged.note
    lines = [line.split() for line in to_text(judged).splitlines()]
    assert [line[-2:] for line in lines if line[:1] in (["a"], ["b"])] == [["3", "%"], ["75", "%"]]
    run = next(s for s in judged.to_json()["structures"] if s["name"] == "b")["runs"][1]
    assert (run["lost"], run["share_lost"]) == (30.0, 0.75)
