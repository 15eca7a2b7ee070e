"""How often a 95 % interval holds the truth, and how often a difference is found that is not there:
simulated.

The truth of each kind of data is known, or that of a very large sample. Counts and small rates are
discrete, so that their intervals may only err on the safe side.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from bigmodel_cli.metrics import Measure, MetricInfo, mean
from bigmodel_cli.metrics.intervals import compare, estimate
from bigmodel_cli.metrics.labels import f1_measure

Draw = Callable[[Any, int], Measure]


def _mean(sums: Any, counts: Any, limits: tuple[float, float] = (0.0, math.inf)) -> Measure:
    return mean(
        torch.from_numpy(np.asarray(sums)),
        torch.from_numpy(np.asarray(counts)),
        MetricInfo(limits=limits),
    )


def normal(rng: Any, n: int) -> Measure:
    """Losses of items, symmetric."""
    return _mean(rng.normal(5, 1, n), np.ones(n))


def skewed(rng: Any, n: int) -> Measure:
    """Losses of items, with a long tail."""
    return _mean(rng.gamma(2, 1, n), np.ones(n))


def tokens(rng: Any, n: int) -> Measure:
    """Losses per token of texts that differ in length and in difficulty."""
    counts = rng.poisson(20, n) + 3
    return _mean(rng.gamma(counts, rng.gamma(8, 0.25, n)), counts)


def right_tokens(rng: Any, n: int) -> Measure:
    """Right guesses among the tokens of texts of different difficulty."""
    counts = rng.poisson(20, n) + 3
    return _mean(rng.binomial(counts, rng.beta(6, 4, n)), counts, (0, 1))


def shares(rng: Any, n: int) -> Measure:
    """F-measures of texts, as ROUGE has them."""
    return _mean(rng.beta(1.5, 3, n), np.ones(n), (0, 1))


def errors(rng: Any, n: int) -> Measure:
    """Word errors, of which three texts in ten have some."""
    counts = rng.poisson(5, n) + 1
    return _mean(
        np.where(rng.random(n) < 0.3, np.minimum(counts, 1 + rng.poisson(0.3, n)), 0), counts
    )


def classes(rng: Any, n: int) -> Measure:
    """macro-F1 of three classes, one of them rare."""
    labels = rng.choice(3, n, p=[0.8, 0.15, 0.05])
    wrong = rng.random(n) > 0.7
    predictions = np.where(wrong, (labels + rng.integers(1, 3, n)) % 3, labels)
    return f1_measure(torch.from_numpy(labels), torch.from_numpy(predictions), 3)


def corpus(rng: Any, n: int) -> Measure:
    """The geometric mean of two precisions over a corpus, as BLEU has it."""
    counts = rng.poisson(12, n) + 4
    share = rng.beta(6, 4, n)
    rows = np.stack(
        [rng.binomial(counts, share), counts, rng.binomial(counts - 1, share**2), counts - 1], 1
    )

    def value(sums: torch.Tensor) -> torch.Tensor:
        return 100 * ((sums[..., 0] / sums[..., 1]) * (sums[..., 2] / sums[..., 3])).sqrt()

    return Measure(torch.from_numpy(rows).double(), value, n, limits=(0.0, 100.0))


CONTINUOUS: list[Draw] = [normal, skewed, tokens, right_tokens, shares, corpus]
DISCRETE: list[Draw] = [errors, classes]


def covered(draw: Draw, n: int, cases: int) -> float:
    rng = np.random.default_rng(n)
    truth = draw(rng, 400_000).total()
    found = [estimate(draw(rng, n)) for _ in range(cases)]
    return sum(e.low <= truth <= e.high for e in found) / cases


def found_in_vain(draw: Draw, n: int, cases: int) -> tuple[float, float]:
    """(share of p < 0.05, share of intervals without 0) for two models of one quality."""
    rng = np.random.default_rng(n)
    found = [compare(draw(rng, n), draw(rng, n)) for _ in range(cases)]
    return (
        sum(d.p < 0.05 for d in found) / cases,
        sum(not d.low <= 0 <= d.high for d in found) / cases,
    )


@pytest.mark.parametrize("draw", [skewed, tokens, classes])
def test_intervals_of_ten_items_cover_the_truth(draw: Draw) -> None:
    assert covered(draw, 10, 200) >= 0.88  # binomial noise of 200 cases around 93 to 97 %


def test_false_positives_of_compare_with_ten_items() -> None:
    by_p, by_interval = found_in_vain(tokens, 10, 120)
    assert by_p <= 0.11
    assert by_interval <= 0.12


@pytest.mark.slow
@pytest.mark.parametrize("n", [5, 10, 20, 50])
@pytest.mark.parametrize("draw", [*CONTINUOUS, *DISCRETE])
def test_intervals_cover_the_truth_for_every_distribution(draw: Draw, n: int) -> None:
    share = covered(draw, n, 4000)
    print(f"{draw.__name__:13} n = {n:3}: {100 * share:.1f} %")
    assert share >= 0.925
    assert draw in DISCRETE or share <= 0.975


@pytest.mark.slow
@pytest.mark.parametrize("n", [5, 10, 20, 50])
@pytest.mark.parametrize("draw", [*CONTINUOUS, *DISCRETE])
def test_compare_has_the_nominal_rate_of_false_positives(draw: Draw, n: int) -> None:
    by_p, by_interval = found_in_vain(draw, n, 2000 if n < 20 else 500)
    print(
        f"{draw.__name__:13} n = {n:3}: p < 0.05 in {100 * by_p:.1f} %, interval without 0 in"
        f" {100 * by_interval:.1f} %"
    )
    assert by_p <= (0.062 if n < 20 else 0.075)
    assert by_interval <= 0.075
