"""The time left follows what the steps take now: a pause is forgotten at once, a slower machine is
noticed.
"""

from __future__ import annotations

import pytest

from bigmodel_cli.train.observers import progress
from bigmodel_cli.train.observers.progress import Pace


class Clock:
    """A clock that a test moves."""

    now = 50.0

    def perf_counter(self) -> float:
        """Seconds."""
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def walk(pace: Pace, clock: Clock, steps: range, seconds: float) -> None:
    for step in steps:
        clock.now += seconds * steps.step
        pace.add(step)


def test_nothing_is_foreseen_before_the_first_step(clock: Clock) -> None:
    assert Pace(7).left(10) is None


def test_a_suspended_machine_does_not_change_the_time_left(clock: Clock) -> None:
    pace = Pace(0)
    walk(pace, clock, range(10, 110, 10), 0.2)
    clock.now += 8 * 3600
    walk(pace, clock, range(110, 130, 10), 0.2)
    assert pace.left(1000) == pytest.approx(200)


def test_a_run_that_goes_on_counts_from_where_it_does(clock: Clock) -> None:
    pace = Pace(5000)
    walk(pace, clock, range(5001, 5004), 1.0)
    assert pace.left(7) == pytest.approx(7)


def test_a_machine_that_becomes_slower_is_noticed(clock: Clock) -> None:
    pace = Pace(0)
    walk(pace, clock, range(1, 200), 1.0)
    walk(pace, clock, range(200, 220), 3.0)
    assert pace.left(100) == pytest.approx(300)


def test_steps_too_short_to_time_are_sampled_together(clock: Clock) -> None:
    pace = Pace(0)
    walk(pace, clock, range(1, 2001), 0.001)
    assert len(pace.paces) < 6
    assert pace.left(3000) == pytest.approx(3, rel=0.01)


@pytest.mark.parametrize("every", [40, 10], ids=["between records", "at each record"])
def test_validations_count_as_often_as_they_come(every: int, clock: Clock) -> None:
    pace = Pace(0)
    for step in range(10, 410, 10):
        walk(pace, clock, range(step, step + 10, 10), 0.1)
        if step % every == 0:
            clock.now += 6.0
            pace.interrupt()
    assert pace.left(400) == pytest.approx(40 + 400 / every * 6, rel=0.04)


def test_a_run_that_went_back_goes_on_from_there(clock: Clock) -> None:
    pace = Pace(0)
    walk(pace, clock, range(10, 60, 10), 0.1)
    pace.add(20)
    walk(pace, clock, range(30, 60, 10), 0.1)
    assert pace.left(50) == pytest.approx(5)
