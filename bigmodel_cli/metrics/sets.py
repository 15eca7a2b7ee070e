"""Metrics of sets of labels: average precision of the scores, and F1 of the sets."""

from __future__ import annotations

from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.metrics import SHARE, Measure


def average_precision(scores: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """scores (N,) float64, truth (N,) bool -> average precision (), and leave-one-out values (N,).

    As scikit-learn's `average_precision_score`: the mean over the positives of the precision at
    their score; NaN without positives.
    """
    order = scores.argsort(descending=True, stable=True)
    sorted_scores, positive = scores[order], truth[order].double()
    # The last item that scores as high.
    last = torch.searchsorted(-sorted_scores, -sorted_scores, right=True) - 1
    first = torch.searchsorted(-sorted_scores, -sorted_scores)
    # Items that score as high, and positives among them.
    above, hits = (
        last.double() + 1,
        positive.cumsum(0)[last],
    )
    less = (above - 1).clamp(min=1)
    whole, no_miss, no_hit = (
        positive * ratio for ratio in (hits / above, hits / less, (hits - 1) / less)
    )
    before, tail_miss, tail_hit = _before(whole, first), _from(no_miss, first), _from(no_hit, first)
    count = positive.sum()
    total = whole.sum() / torch.where(count > 0, count, torch.nan)
    fewer = torch.where(count > 1, count - 1, torch.nan)
    of_hit = (before + tail_hit - no_hit) / fewer
    of_miss = (before + tail_miss) / torch.where(count > 0, count, torch.nan)
    without = torch.empty_like(scores)
    without[order] = torch.where(positive > 0, of_hit, of_miss)
    return total, without


def _before(values: Tensor, first: Tensor) -> Tensor:
    """(N,)   the sum of the values before the first of each item's ties."""
    return torch.cat((values.new_zeros(1), values.cumsum(0)))[first]


def _from(values: Tensor, first: Tensor) -> Tensor:
    """(N,)   the sum from there on."""
    return values.sum() - _before(values, first)


def mean_average_precision(scores: Tensor, truth: Tensor) -> Measure:
    """(N, C) float64, (N, C) bool: the mean over the labels that have positives."""
    found = [average_precision(scores[:, c], truth[:, c]) for c in range(scores.shape[1])]
    value = torch.stack([total for total, _ in found]).nanmean()
    without = torch.stack([own for _, own in found]).nanmean(0)
    count = len(scores)

    def of_all(sums: Tensor) -> Tensor:
        return torch.where(sums[..., 0] == count, value, torch.nan)

    pseudo = count * value - (count - 1) * without
    return Measure(torch.ones(count, 1, dtype=torch.float64), of_all, count, *SHARE, pseudo=pseudo)


def f1_of_sets(truth: Tensor, said: Tensor) -> dict[str, Measure]:
    """(N, C) bool twice: micro-F1 and macro-F1, F1 = 2 TP / (2 TP + FP + FN).

    Macro is over the labels that occur or are predicted, as scikit-learn's `f1_score` with
    `zero_division=nan`.
    """
    columns = torch.cat((truth & said, truth, said), 1)
    places = columns.nonzero().T
    ones = torch.ones(places.shape[1], dtype=torch.float64)
    counts = torch.sparse_coo_tensor(places, ones, columns.shape, check_invariants=False).coalesce()

    def parts(sums: Tensor) -> tuple[Tensor, Tensor]:
        hits, true, found = sums.unflatten(-1, (3, truth.shape[1])).unbind(-2)
        return 2 * hits, true + found

    def micro(sums: Tensor) -> Tensor:
        hits, both = (part.sum(-1) for part in parts(sums))
        return hits / torch.where(both > 0, both, torch.nan)

    def macro(sums: Tensor) -> Tensor:
        hits, both = parts(sums)
        return (hits / torch.where(both > 0, both, torch.nan)).nanmean(-1)

    return {
        name: Measure(counts, value, len(truth), *SHARE)
        for name, value in (("micro_f1", micro), ("macro_f1", macro))
    }


def best_threshold(scores: Tensor, truth: Tensor) -> float | None:
    """The threshold of scores (N,) float64 with the highest F1; None without positives.

    It lies halfway between two scores.
    """
    if not bool(truth.any()):
        return None
    order = scores.argsort(descending=True, stable=True)
    sorted_scores, hits = scores[order], truth[order].double().cumsum(0)
    said = torch.arange(1, len(scores) + 1)
    # Never between equal scores.
    ends = torch.cat((sorted_scores[:-1] > sorted_scores[1:], torch.ones(1, dtype=torch.bool)))
    f1 = torch.where(ends, 2 * hits / (hits[-1] + said), -1.0)
    best = int(f1.argmax())
    ordered: list[float] = [*sorted_scores.tolist(), 0.0]
    value, lower = ordered[best : best + 2]
    middle = (value + lower) / 2
    if lower < round(middle, 6) <= value:
        return round(middle, 6)
    return middle if middle > lower else value
