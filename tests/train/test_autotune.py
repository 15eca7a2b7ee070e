"""How to compute is chosen by rounds that agree, not by noise; with clocks of the test's own."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import nn

from bigmodel_cli.train import autotune as room
from bigmodel_cli.train.autotune import ComputeMode, decide, measure

PLAIN, HALF, LAST, BOTH = (
    ComputeMode(),
    ComputeMode("bf16"),
    ComputeMode("fp32", "channels_last"),
    ComputeMode("bf16", "channels_last"),
)

CASES: list[tuple[dict[ComputeMode, list[float]], ComputeMode, bool]] = [
    ({PLAIN: [10, 10, 10], HALF: [6, 7, 9]}, HALF, False),
    ({PLAIN: [10, 10, 10], HALF: [6, 7, 10]}, PLAIN, True),  # one round does not agree
    ({PLAIN: [10, 10, 10], HALF: [9.6, 9.7, 9.9]}, PLAIN, True),  # all agree, by less than 5 %
    ({PLAIN: [10, 10, 10], HALF: [11, 12]}, PLAIN, False),
    ({PLAIN: [10, 10, 10], HALF: [5, 11]}, PLAIN, True),
    ({PLAIN: [10, 11, 30], HALF: [9, 9, 9]}, HALF, False),
    (
        {PLAIN: [10, 10, 10], LAST: [8, 8, 8], HALF: [7.9, 7.9, 8.1]},
        LAST,
        True,
    ),  # no better than the plainer winner
    ({PLAIN: [10, 10, 10], LAST: [8, 8, 8], HALF: [6, 6, 6], BOTH: [5, 5, 5]}, BOTH, False),
    ({PLAIN: [10, 10, 10], LAST: [11], HALF: [6, 6, 6], BOTH: [5, 7, 5]}, HALF, True),
]


@pytest.mark.parametrize(("times", "best", "close"), CASES)
def test_a_candidate_must_win_every_round(
    times: dict[ComputeMode, list[float]], best: ComputeMode, close: bool
) -> None:
    assert decide(times) == (best, close)


def run(
    seconds: dict[ComputeMode, list[float]], tick: float
) -> tuple[dict[ComputeMode, list[float]], list[ComputeMode]]:
    """Measure with passes that take so long (the first of each to warm up), and a clock that goes
    on by `tick` a look.
    """
    feeds, order = {c: iter(t) for c, t in seconds.items()}, []
    clock = itertools.count()

    def one_pass(candidate: ComputeMode) -> float:
        order.append(candidate)
        return next(feeds[candidate])

    return measure(one_pass, nn.Linear(2, 2), list(seconds), lambda: tick * next(clock)), order


def test_candidates_take_turns_and_the_first_round_does_not_count() -> None:
    times, order = run({PLAIN: [99, 4, 4, 4, 4], HALF: [0.1, 3, 2, 3, 3]}, tick=10.0)
    # the time is over at once: the least rounds
    assert times == {
        PLAIN: [4, 4, 4],
        HALF: [3, 2, 3],
    }
    assert order == [PLAIN, HALF] * 4


def test_rounds_fill_the_time_and_the_slower_candidate_is_dropped() -> None:
    times, order = run({PLAIN: [9] * 14, LAST: [1, 8, 10, 11], HALF: [1] + [5] * 13}, tick=0.0)
    assert times == {PLAIN: [9] * 13, LAST: [8, 10, 11], HALF: [5] * 13}
    assert order.count(LAST) == 4
    times, _ = run({PLAIN: [9] * 8, HALF: [1, 10, 11]}, tick=0.0)
    assert times == {PLAIN: [9, 9], HALF: [10, 11]}  # nothing is left to decide


def test_one_delay_among_many_rounds_does_not_decide() -> None:
    delayed = [5, 99, 5, 5, 5, 5, 5]
    times, _ = run({PLAIN: [9] * 20, HALF: [1, *delayed]}, tick=0.4)  # 0.3 s are over: 2 s are not
    assert times[HALF] == delayed[: len(times[HALF])]
    assert len(times[HALF]) > room.LEAST_ROUNDS
    assert decide({PLAIN: [9.0] * 7, HALF: delayed}) == (HALF, False)
    assert decide({PLAIN: [9.0] * 6, HALF: delayed[:6]}) == (PLAIN, True)
    assert decide({PLAIN: [9.0] * 7, HALF: [*delayed[:6], 9]}) == (PLAIN, True)


def test_the_least_must_be_less_too() -> None:
    assert decide({PLAIN: [8, 20, 20, 20], HALF: [7.9, 9, 9, 9]}) == (PLAIN, True)


def test_noise_alone_picks_the_plain_one() -> None:
    import random

    rng = random.Random(0)
    picked = [
        decide({c: [rng.gauss(1.0, 0.1) for _ in range(5)] for c in (PLAIN, HALF)})[0]
        for _ in range(2000)
    ]
    assert picked.count(HALF) < 0.04 * len(picked)  # 1 of 32 by chance


def test_a_close_choice_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    from bigmodel_cli.recipe import TrainOptions

    said: list[str] = []
    options = TrainOptions(steps=1, memory_format="contiguous", compile="off")

    def chosen(times: dict[ComputeMode, list[float]]) -> Any:
        monkeypatch.setattr(room, "measure", lambda *a: times)
        return room.choose(nn.Linear(2, 2), Any, {}, options, said.append)  # type: ignore[arg-type]

    assert chosen({PLAIN: [0.010, 0.010, 0.010], HALF: [0.009, 0.008, 0.011]}).precision == "fp32"
    assert (
        "computing in fp32 (median of 3 passes: fp32 10.0 ms; bf16 9.0 ms; it was close" in said[0]
    )
    assert chosen({PLAIN: [0.010, 0.010, 0.010], HALF: [0.005, 0.005, 0.006]}).precision == "bf16"
    assert "close" not in said[1]


@pytest.mark.parametrize(("seconds", "rows"), [(0.03, 40), (0.4, 3), (2.0, 2)])
def test_long_passes_are_measured_on_fewer_rows(
    seconds: float, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bigmodel_cli.recipe import TrainOptions

    seen: list[tuple[int, str]] = []

    def one_pass(model: Any, task: Any, batch: Any, candidate: ComputeMode, *rest: Any) -> float:
        assert rest[-1] == options.loss_chunk
        seen.append((len(batch["x"]), candidate.precision))
        return seconds * len(batch["x"]) / 12 * (0.5 if candidate.precision == "bf16" else 1)

    monkeypatch.setattr(room, "_one_pass", one_pass)
    options = TrainOptions(steps=1, memory_format="contiguous", compile="off", loss_chunk=7)
    batch = {"x": torch.zeros(40, 3), "y": torch.zeros(40)}
    chosen = room.choose(nn.Linear(2, 2), Any, batch, options, lambda text: None)  # type: ignore[arg-type]
    assert seen[:2] == [(2, "fp32")] * 2  # how long a pass is, is told by the fewest rows
    assert {rows for rows, _ in seen[4 if rows > 2 else 2 :]} == {rows}
    assert chosen.precision == "bf16"
