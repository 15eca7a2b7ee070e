"""A rate that goes down by a factor at milestones."""

from __future__ import annotations

import pydantic
import pytest

from bigmodel_cli.recipe import TrainOptions
from bigmodel_cli.schedules.multistep import MultistepOptions


@pytest.mark.parametrize(
    ("milestones", "total"),
    [([0.5, 0.75], 8), ([0.7, 0.1, 0.3], 10), ([0.5, 0.5], 7), ([0.29], 100)],
)
def test_each_milestone_multiplies_the_rate_once(milestones: list[float], total: int) -> None:
    """As torch's MultiStepLR, whose import takes as long as all other tests of schedules."""
    rate, expected = 1.0, []
    for step in range(total):
        for milestone in milestones:
            rate *= 0.2 if step == round(milestone * total) else 1.0
        expected.append(rate)
    ours = MultistepOptions(milestones=milestones, gamma=0.2)
    assert [ours.factor(step, total) for step in range(total)] == pytest.approx(expected)


def test_a_milestone_of_0_7_of_10_steps_is_step_7() -> None:
    """0.7 x 10 is a little more than 7 in floating point."""
    factors = [
        MultistepOptions(milestones=[0.7], gamma=0.5, warmup=2).factor(step, 10)
        for step in range(10)
    ]
    assert factors == pytest.approx([1 / 3, 2 / 3, 1, 1, 1, 1, 1, 0.5, 0.5, 0.5])


def test_a_milestone_in_the_warm_up_is_reported_and_one_outside_the_run_refused() -> None:
    schedule = {"type": "multistep", "milestones": [0.1, 0.5], "warmup": 30}
    options = TrainOptions.model_validate({"steps": 100, "schedule": schedule})
    (remark,) = options.remarks(100)
    assert "0.1 of the run's 100 steps lies in the warm-up of 30" in remark
    assert options.remarks(1000) == []
    for milestones in ([], [0.0], [1.0], [30], [0.5, float("nan")]):
        with pytest.raises(pydantic.ValidationError, match="milestones"):
            MultistepOptions(milestones=milestones)
