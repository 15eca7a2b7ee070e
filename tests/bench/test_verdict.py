"""Verdicts on simulated timings: what is the same program is not told apart, and what is slower is
found, whatever else the machine does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from bigmodel_cli.bench.result import Block
from bigmodel_cli.bench.verdict import LOOKS, judge, mean_of


def rounds(
    rng: np.random.Generator, slower: float, count: int, *, noise: float, lasting: float
) -> list[list[Block]]:
    """Blocks of three processes of each of two programs, in turns: noise of each block, a part that
    lasts as long as a process, bursts of other work, and a machine of two speeds.
    """
    processes = rng.normal(0, lasting, 6) + np.repeat([0, math.log1p(slower)], 3)
    blocks: list[list[Block]] = [[] for _ in processes]
    order, speed = list(range(6)), 0.0
    for _ in range(count):
        for number in order:
            speed = math.log(1.33) - speed if rng.random() < 0.005 else speed
            burst = rng.exponential(0.3) if rng.random() < 0.03 else 0.0
            logarithm = processes[number] + speed + rng.normal(0, noise) + burst
            blocks[number].append(Block((0.02 * math.exp(logarithm),)))
        order.reverse()
    return blocks


def said(rng: np.random.Generator, slower: float, noise: float, lasting: float) -> str:
    """The first verdict at one of the looks."""
    blocks = rounds(rng, slower, LOOKS[-1], noise=noise, lasting=lasting)
    for look in LOOKS:
        now = [own[:look] for own in blocks]
        verdict = judge(now[:3], now[3:])
        if verdict.says != "undecided":
            return verdict.says
    return "undecided"


@pytest.mark.parametrize(("noise", "lasting"), [(0.005, 0.002), (0.01, 0.003)])
def test_a_hundred_comparisons_of_a_program_with_itself_and_with_a_slower_one(
    noise: float, lasting: float
) -> None:
    rng = np.random.default_rng(17)
    same = [said(rng, 0.0, noise, lasting) for _ in range(100)]
    assert sum(word in ("slower", "faster") for word in same) <= 2
    assert [said(rng, 0.1, noise, lasting) for _ in range(100)] == ["slower"] * 100
    assert [said(rng, 0.03, noise, lasting) for _ in range(100)].count("slower") >= 95
    assert [said(rng, -0.05, noise, lasting) for _ in range(40)].count("faster") >= 38


def test_the_interval_holds_what_was_planted() -> None:
    rng = np.random.default_rng(3)
    held = 0
    for _ in range(100):
        blocks = rounds(rng, 0.02, 32, noise=0.01, lasting=0.0)
        verdict = judge(blocks[:3], blocks[3:])
        held += verdict.low <= 0.02 <= verdict.high
    assert held >= 97


def test_rounds_with_a_rejected_block_do_not_count() -> None:
    fine = [[Block((0.01,))] * 14 for _ in range(2)]
    slow = [[Block((0.02,), rejected="busy"), *own[1:]] for own in fine]
    verdict = judge(fine[:1], slow[1:])
    assert (verdict.rounds, verdict.rejected, verdict.change) == (13, 1, 0.0)
    assert judge(fine[:1], [[Block((0.02,))] * 14], 0.5).change == pytest.approx(0.0)
    assert judge([[Block((1.0,))]], [[Block((1.0,))]]).says == "undecided"


def textbook(values: Sequence[float]) -> tuple[float, float]:
    """Yuen's interval of 99 % by SciPy."""
    scipy_stats = pytest.importorskip("scipy.stats")
    x = np.asarray(values)
    winsorised = np.asarray(scipy_stats.mstats.winsorize(x, limits=(0.2, 0.2)))
    g = int(0.2 * len(x))
    h = len(x) - 2 * g
    error = winsorised.std(ddof=1) / ((h / len(x)) * math.sqrt(len(x)))
    error *= math.sqrt((len(x) - 1) / (h - 1) * h / len(x))
    mean = float(scipy_stats.trim_mean(x, 0.2))
    return mean, float(scipy_stats.t.ppf(0.995, h - 1)) * error


@pytest.mark.parametrize("count", [10, 23, 40])
def test_the_trimmed_mean_and_its_interval(count: int) -> None:
    values = np.random.default_rng(count).standard_t(2, count).tolist()
    found = mean_of(values)
    assert (found.value, found.half) == pytest.approx(textbook(values), rel=1e-6)
