"""Intervals and p-values against scipy, brute force and formulas written anew."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
import sacrebleu
import torch
from scipy import stats

from bigmodel_cli.console import table
from bigmodel_cli.metrics import (
    LOSS,
    SHARE,
    Measure,
    MetricInfo,
    mean,
    ratio,
    shown,
    shown_difference,
    shown_p,
)
from bigmodel_cli.metrics.intervals import (
    Difference,
    compare,
    degrees_of_freedom,
    estimate,
    pseudo_values,
    swap_patterns,
    t_quantile,
)
from bigmodel_cli.metrics.labels import f1_measure
from bigmodel_cli.metrics.text import ERROR_RATE, text_measures


def test_small_values_keep_their_digits_and_very_large_ones_have_an_exponent() -> None:
    assert [shown_p(p) for p in (0.0004, 0.001, 0.05)] == ["< 0.001", "0.001", "0.050"]
    assert shown(-16366.1282, False) == "-16,366.1"
    assert [shown(x, False) for x in (0.0, 4.893e-7, -6e-5, 0.00061, 2.0, -3.5e98)] == [
        "0.0000",
        "4.89e-07",
        "-6e-05",
        "0.0006",
        "2.0000",
        "-3.5e+98",
    ]
    assert [shown(x, False) for x in (-0.0, -0.04e-3)] == ["0.0000", "-4e-05"]
    assert [shown(x, True) for x in (-0.0, -4e-5, -6e-5)] == ["0.00 %", "0.00 %", "-0.01 %"]


def test_differences_of_percentages_are_points_and_none_is_minus_zero() -> None:
    cells = [shown_difference(x, True) for x in (-0.041, -1e-6, 0.5, math.nan)]
    assert cells == ["-4.10 points", "0.00 points", "50.00 points", "not known"]
    assert shown_difference(-0.041, False) == "-0.0410"
    found = Difference(0.9, 0.859, -0.041, -0.0819, -1e-7, 0.0002)
    assert found.cells(True) == [
        *("90.00 %", "85.90 %", "-4.10 points", "-8.19 points", "0.00 points", "< 0.001")
    ]
    assert found.cells(False)[2:5] == ["-0.0410", "-0.0819", "-1e-07"]
    rows = [["loss", *found.cells(False)[:5]], ["accuracy", *found.cells(True)[:5]]]
    lines = table(["", "first", "second", "difference", "from", "to"], rows).splitlines()
    assert {len(line) for line in lines} == {len(lines[0])}  # all numbers end at the right


def test_quantiles_of_t_are_scipys() -> None:
    for degrees in (1, 2, 3, 4, 7, 8, 29, 30, 98, 99, 100, 101, 1000, 10**6):
        assert t_quantile(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=2e-9)


def test_pseudo_values_of_a_mean_are_its_items() -> None:
    values = torch.tensor([0.5, 2.0, 7.5, 1.0], dtype=torch.float64)
    torch.testing.assert_close(pseudo_values(mean(values, torch.ones(4), MetricInfo())), values)


def test_pseudo_values_are_the_jackknifes_dense_and_sparse() -> None:
    rng = np.random.default_rng(3)
    sums, counts = rng.gamma(2, 1, 13), rng.integers(0, 9, 13)
    sums[counts == 0] = 0
    own = counts > 0
    n = int(own.sum())
    whole = sums.sum() / counts.sum()
    wanted = [
        n * whole - (n - 1) * (sums.sum() - s) / (counts.sum() - c)
        for s, c in zip(sums[own], counts[own], strict=True)
    ]
    measure = mean(torch.from_numpy(sums), torch.from_numpy(counts), MetricInfo())
    assert pseudo_values(measure).tolist() == pytest.approx(wanted)
    sparse = Measure(measure.statistics.to_sparse(), ratio, measure.count)
    assert pseudo_values(sparse).tolist() == pytest.approx(wanted)


def test_an_interval_without_skewness_is_students() -> None:
    values = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0])
    found = estimate(mean(values, torch.ones(7), MetricInfo()))
    wanted = stats.ttest_1samp(values.numpy(), 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high))
    assert found.method == "jackknife t"


def test_a_skewed_interval_is_where_halls_statistic_is_students_quantile() -> None:
    """Each end, put into Hall's cubic as it stands in his paper, gives the quantile back."""
    values = np.random.default_rng(0).exponential(1, 9)
    found = estimate(mean(torch.from_numpy(values), torch.ones(9), LOSS))
    n, skewness = 9, stats.skew(values)
    for end, quantile in ((found.low, stats.t.ppf(0.975, 8)), (found.high, stats.t.ppf(0.025, 8))):
        t = (values.mean() - end) / values.std(ddof=1)
        g = t + skewness * t**2 / 3 + skewness**2 * t**3 / 27 + skewness / (6 * n)
        assert math.sqrt(n) * g == pytest.approx(quantile)
    assert found.high - found.value > found.value - found.low


def test_a_large_corpus_has_the_width_of_sacrebleus_bootstrap() -> None:
    rng = np.random.default_rng(2)
    words = [
        "a",
        "man",
        "in",
        "the",
        "red",
        "hat",
        "rides",
        "his",
        "old",
        "bicycle",
        "down",
        "one",
        "long",
        "street",
    ]
    references = [" ".join(rng.choice(words, rng.integers(4, 14))) for _ in range(150)]
    predictions = [
        " ".join(w if rng.random() < 0.8 else rng.choice(words) for w in r.split())
        for r in references
    ]
    found = estimate(text_measures(["bleu"], predictions, references)["bleu"])
    theirs = sacrebleu.BLEU().corpus_score(predictions, [references], n_bootstrap=1000)
    assert (found.high - found.low) / 2 == pytest.approx(theirs._ci, rel=0.15)
    assert found.low < found.value < found.high


def test_items_without_an_error_have_the_exact_binomial_bound() -> None:
    """Of n items without an error, a share of 1 - 0.025^(1/n) may have one (Clopper and Pearson's
    bound for 0 of n).
    """
    bound = stats.binomtest(0, 6).proportion_ci(0.95, "exact").high
    ten = torch.full((6,), 10)
    accuracy = estimate(mean(ten, ten, SHARE))
    assert (accuracy.low, accuracy.high, accuracy.method) == (pytest.approx(1 - bound), 1, "unseen")
    errors = estimate(mean(torch.zeros(6), ten, ERROR_RATE))
    assert (errors.low, errors.high) == (0, pytest.approx(bound))
    f1 = estimate(f1_measure(torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([0, 0, 0, 1, 1, 1]), 2))
    assert (f1.low, f1.high) == (pytest.approx(1 - bound), 1)
    loss = estimate(mean(torch.full((6,), 2.5), torch.ones(6), LOSS))
    assert (loss.low, loss.high) == (2.5, 2.5)


def test_texts_without_a_right_word_have_the_exact_binomial_bound() -> None:
    """Of seven recordings none of which was understood, a share of 1 - 0.025^(1/7) may be."""
    words = torch.tensor([3, 4, 1, 9, 2, 6, 5])
    found = estimate(mean(words, words, ERROR_RATE))
    bound = stats.binomtest(0, 7).proportion_ci(0.95, "exact").high
    assert found.low == pytest.approx(1 - bound)
    assert found.high > 1
    same = compare(*(mean(torch.zeros(7), words, ERROR_RATE) for _ in "ab"))
    assert (same.low, same.high) == (pytest.approx(-bound), pytest.approx(bound))


def test_differences_of_right_answers_are_bonetts_and_prices() -> None:
    """3 of 100 items are right in the second model alone: the exact test says p = 0.25, so that 0
    stays within.
    """
    first, second = torch.zeros(100), torch.zeros(100)
    first[:60], second[:63] = 1, 1
    found = compare(*(mean(x, torch.ones(100), SHARE) for x in (first, second)))
    p12, p21 = 4 / 102, 1 / 102
    reach = stats.norm.ppf(0.975) * math.sqrt((p12 + p21 - (p12 - p21) ** 2) / 102)
    assert (found.low, found.high) == (
        pytest.approx(p12 - p21 - reach),
        pytest.approx(p12 - p21 + reach),
    )
    assert found.low < 0 < found.high
    assert found.p == pytest.approx(0.25)


def test_an_interval_leaves_out_0_only_where_the_test_does() -> None:
    """Few items with errors of unlike sizes, the same otherwise, and differences within what the
    metric can have.
    """
    rng = np.random.default_rng(3)
    for _ in range(150):
        n = int(rng.integers(5, 40))
        counts = torch.from_numpy(rng.poisson(8, n) + 2)
        pair = [
            mean(
                torch.from_numpy(np.where(rng.random(n) < 0.1, 1 + rng.poisson(1, n), 0)),
                counts,
                LOSS,
            )
            for _ in "ab"
        ]
        found = compare(*pair)
        assert found.low <= 0 <= found.high or found.p < 0.05


def test_items_that_count_unevenly_are_as_many_as_even_ones_would_be() -> None:
    """Kish (1965): an item of 900 tokens beside 29 of 10 is hardly more than one item."""
    counts = torch.tensor([900.0] + [10.0] * 29, dtype=torch.float64)
    assert (
        degrees_of_freedom(mean(counts, counts, LOSS))
        == round(1190**2 / (900**2 + 29 * 100)) - 1
        == 1
    )
    assert degrees_of_freedom(mean(counts, torch.ones(30), LOSS)) == 29


def test_many_classes_are_compared_in_bounded_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    labels, predictions = torch.arange(40) % 23, torch.arange(40) % 19
    measure = f1_measure(labels, predictions, 50)
    whole = measure.each()
    monkeypatch.setattr("bigmodel_cli.metrics.CHUNK", 160)
    assert measure.each() == whole
    assert max(len(swaps) for swaps in swap_patterns(40, 1 << 21)) == 2
    assert sum(len(swaps) for swaps in swap_patterns(5, 1 << 20)) == 32


def test_a_single_item_has_no_interval() -> None:
    found = estimate(mean(torch.tensor([3.0]), torch.tensor([2]), LOSS))
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["low"] is None
    nothing = estimate(mean(torch.zeros(3), torch.zeros(3), LOSS))
    assert nothing.to_json()["value"] is None


def test_a_class_with_one_item_is_unknown() -> None:
    """Nine items of class 0, one of class 1 that was found: class 1's F1 may be anything."""
    labels = torch.tensor([0] * 9 + [1])
    found = estimate(f1_measure(labels, labels, 2))
    assert found.value == 1
    assert found.low < 0.5
    bounds = f1_measure(labels, labels, 3).bounds
    assert bounds is not None
    assert bounds(torch.tensor([9.0, 1, 0, 9, 1, 0, 9, 1, 0])) == pytest.approx((1 / 3, 1))


@pytest.mark.parametrize("n", [1, 4, 7])
def test_p_is_that_of_all_swaps(n: int) -> None:
    rng = np.random.default_rng(n)
    counts = rng.integers(1, 6, (2, n))
    sums = rng.integers(0, 9, (2, n)).astype(float)
    first, second = (
        mean(torch.from_numpy(s), torch.from_numpy(c), MetricInfo())
        for s, c in zip(sums, counts, strict=True)
    )
    seen = sums[1].sum() / counts[1].sum() - sums[0].sum() / counts[0].sum()
    larger = 0
    for swap in itertools.product((0, 1), repeat=n):
        s, c = np.array(swap), np.arange(n)
        rate = [sums[k, c].sum() / counts[k, c].sum() for k in (s, 1 - s)]
        larger += abs(rate[1] - rate[0]) >= abs(seen) - 1e-12
    assert compare(first, second).p == pytest.approx(larger / 2**n)
    assert compare(first, second).difference == pytest.approx(seen)


def test_p_of_right_and_wrong_answers_is_the_sign_tests() -> None:
    """Of 40 items the second model has 14 right that the first has wrong, and the first 4."""
    first = torch.tensor([0.0] * 14 + [1.0] * 4 + [1.0] * 22)
    second = torch.tensor([1.0] * 14 + [0.0] * 4 + [1.0] * 22)
    ones = torch.ones(40)
    found = compare(*(mean(x, ones, SHARE) for x in (first, second)))
    assert found.p == pytest.approx(stats.binomtest(4, 18).pvalue, abs=0.01)
    assert found.difference == pytest.approx(0.25)
    assert 0 < found.low < 0.25 < found.high


def test_the_difference_of_a_model_and_itself() -> None:
    measure = mean(torch.rand(30), torch.ones(30), LOSS)
    found = compare(measure, measure)
    assert (found.difference, found.low, found.high, found.p) == (0, 0, 0, 1)
    right = mean((torch.rand(30) < 0.5).double(), torch.ones(30), SHARE)
    found = compare(right, right)
    assert -0.2 < found.low < 0 < found.high < 0.2  # 30 items may all have missed what differs


def test_swaps_are_the_same_each_time_and_fair() -> None:
    patterns = torch.cat(list(swap_patterns(40)))
    assert torch.equal(patterns, torch.cat(list(swap_patterns(40))))
    assert abs(float(patterns.mean()) - 0.5) < 0.01
    assert len(torch.cat(list(swap_patterns(5))).unique(dim=0)) == 32
