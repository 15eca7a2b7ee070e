"""Schedules begin at the peak and reach `final` at the last step, as PyTorch's and transformers' do
over as many steps.
"""

from __future__ import annotations

import math

import pytest
import torch
import transformers

from bigmodel_cli.schedules import SCHEDULES
from bigmodel_cli.schedules.base import AnyScheduleOptions

SHAPES = ("linear", "cosine", "wsd")


def schedule(type: str, **given: float) -> AnyScheduleOptions:
    """The schedule of a spec; `decay` is wsd's alone."""
    options = SCHEDULES[type]
    return options.model_validate(
        {name: value for name, value in given.items() if name in options.model_fields}
    )


def theirs(scheduler: torch.optim.lr_scheduler.LRScheduler, steps: int) -> list[float]:
    """The factors of a scheduler whose optimizer has a learning rate of 1."""
    factors = []
    for _ in range(steps):
        factors.append(float(scheduler.get_last_lr()[0]))
        scheduler.optimizer.step()
        scheduler.step()
    return factors


def optimizer() -> torch.optim.Optimizer:
    p = torch.nn.Parameter(torch.zeros(1))
    p.grad = torch.zeros(1)
    return torch.optim.SGD([p], lr=1.0)


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("final", [0.0, 0.1, 1.0])
@pytest.mark.parametrize(
    ("warmup", "total"), [(0, 2), (0, 3), (0, 10), (1, 3), (4, 11), (7, 9), (130, 977)]
)
@pytest.mark.parametrize("decay", [0.0, 0.2, 1.0])
def test_the_first_step_after_the_warm_up_has_the_peak_and_the_last_has_final(
    kind: str, final: float, warmup: int, total: int, decay: float
) -> None:
    tried = schedule(kind, warmup=warmup, final=final, decay=decay)
    factors = [tried.factor(step, total) for step in range(total)]
    assert factors[warmup] == 1.0
    assert factors[-1] == final
    assert factors[:warmup] == pytest.approx([(i + 1) / (warmup + 1) for i in range(warmup)])
    assert factors[warmup:] == sorted(factors[warmup:], reverse=True)


@pytest.mark.parametrize("kind", SHAPES)
def test_a_run_whose_only_step_after_the_warm_up_is_its_last_has_the_peak_there(kind: str) -> None:
    assert schedule(kind).factor(0, 1) == 1.0
    assert schedule(kind, warmup=4).factor(4, 5) == 1.0


def test_cosine_equals_pytorchs() -> None:
    expected = theirs(
        torch.optim.lr_scheduler.CosineAnnealingLR(optimizer(), T_max=9, eta_min=0.1), 10
    )
    ours = [schedule("cosine", final=0.1).factor(step, 10) for step in range(10)]
    assert ours == pytest.approx(expected, abs=1e-9)


def test_linear_equals_pytorchs() -> None:
    expected = theirs(torch.optim.lr_scheduler.LinearLR(optimizer(), 1.0, 0.25, total_iters=12), 13)
    ours = [schedule("linear", final=0.25, warmup=3).factor(step, 16) for step in range(3, 16)]
    assert ours == pytest.approx(expected, abs=1e-9)


def test_wsd_equals_that_of_transformers() -> None:
    scheduler = transformers.get_wsd_schedule(
        optimizer(),
        num_warmup_steps=0,
        num_decay_steps=10,
        num_stable_steps=39,
        decay_type="linear",
        min_lr_ratio=0.1,
    )
    ours = [schedule("wsd", final=0.1, decay=0.2).factor(step, 50) for step in range(50)]
    assert ours == pytest.approx(theirs(scheduler, 50), abs=1e-9)
    assert sum(f < 1 for f in ours) == 10  # a fifth of the run


def test_constant_and_inverse_square_root_have_no_end() -> None:
    constant = schedule("constant", warmup=4, final=0.1)
    assert [round(constant.factor(s, 100), 3) for s in range(6)] == [0.2, 0.4, 0.6, 0.8, 1.0, 1.0]
    assert constant.factor(99, 100) == 1.0
    noam = schedule("inverse_sqrt", warmup=100, final=0.1)
    assert noam.factor(49, 1000) == pytest.approx(50 / 101)
    assert noam.factor(100, 1000) == 1.0
    assert noam.factor(400, 401) == pytest.approx(0.5)
    assert schedule("inverse_sqrt").factor(9, 10) == pytest.approx(1 / math.sqrt(9))


def test_a_warm_up_longer_than_the_run_is_reported() -> None:
    assert schedule("cosine", warmup=9).remarks(10) == []
    (remark,) = schedule("cosine", warmup=19).remarks(10)
    assert "19 steps of warm-up are not fewer than the run's 10" in remark
    assert "to 50 % of its peak" in remark
    assert schedule("constant", warmup=10).remarks(10) != []
    assert schedule("wsd", warmup=39, decay=0.2).remarks(50) == []
    (remark,) = schedule("wsd", warmup=45, decay=0.2).remarks(50)
    assert "45 steps of warm-up reach into the last 20 % of the run's 50 steps" in remark
    assert "in 4 steps" in remark
