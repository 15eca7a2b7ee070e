"""Quantiles of Student's t, and the exact interval of a proportion."""

from __future__ import annotations

import functools
import math
import statistics

from bigmodel_cli.lazy import torch

CONFIDENCE = 0.95
TAIL = (1 - CONFIDENCE) / 2
NORMAL = 1.959963984540054
"""The 0.975 quantile of the normal distribution."""


@functools.cache
def t_quantile(degrees: int, confidence: float = CONFIDENCE) -> float:
    """What Student's t does not exceed in absolute value with that probability (Abramowitz and
    Stegun 1964: 26.7.3 to 26.7.5); by default its 0.975 quantile.
    """
    if degrees >= 100:
        x, n = statistics.NormalDist().inv_cdf((1 + confidence) / 2), float(degrees)
        terms = (
            (x**3 + x) / 4,
            (5 * x**5 + 16 * x**3 + 3 * x) / 96,
            (3 * x**7 + 19 * x**5 + 17 * x**3 - 15 * x) / 384,
            (79 * x**9 + 776 * x**7 + 1482 * x**5 - 1920 * x**3 - 945 * x) / 92160,
        )
        return x + sum(term / n ** (k + 1) for k, term in enumerate(terms))
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_inside(middle, degrees) < confidence else (low, middle)
    return math.sqrt(degrees) * math.tan((low + high) / 2)


def _t_inside(angle: float, degrees: int) -> float:
    """P(|T| <= t) for t = sqrt(degrees) tan(angle)."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2
    term, total = (cosine if odd else 1.0), 0.0
    for k in range((2 if odd else 1), degrees, 2):
        total += term
        term *= cosine**2 * k / (k + 1)
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


def exact_interval(successes: int, trials: int) -> tuple[float, float]:
    """The 95 % interval of a proportion (Clopper and Pearson 1934), by bisection."""
    low = 0.0 if successes == 0 else _found(successes, trials, TAIL)
    high = 1.0 if successes == trials else _found(successes + 1, trials, 1 - TAIL)
    return low, high


def _found(k: int, n: int, tail: float) -> float:
    """The probability p of which P(X >= k) is `tail`, for X binomial with n trials."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if _upper_tail(k, n, middle) > tail else (middle, high)
    return (low + high) / 2


def _upper_tail(k: int, n: int, p: float) -> float:
    """P(X >= k) for X binomial with n trials of probability p."""
    x = torch.arange(k, n + 1, dtype=torch.float64)
    logs = (
        math.lgamma(n + 1)
        - torch.lgamma(x + 1)
        - torch.lgamma(n - x + 1)
        + x * math.log(max(p, 1e-300))
        + (n - x) * math.log(max(1 - p, 1e-300))
    )
    return float(logs.exp().sum())
