"""Promises of parts over sequences: causality, caches, separate documents, offsets."""

from __future__ import annotations

from itertools import pairwise

from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.models.init import Cache
from bigmodel_cli.parts.context import SINGLE_DOCUMENT, SequenceInfo
from bigmodel_cli.parts.contract import looks_ahead
from bigmodel_cli.promises.forms import slope
from bigmodel_cli.promises.trial import LENGTH, ROWS, Broken, Trial, differ, expect_equal


def causal(trial: Trial) -> None:
    """Later positions change nothing, nor does their presence."""
    x = trial.input()
    want = trial.run(x)
    for cut in (1, 6, LENGTH - 1):
        other = torch.cat((x[:, :cut], 5 * trial.input(seed=4)[:, cut:]), 1)
        if differ(trial.run(other)[:, :cut], want[:, :cut]):
            raise Broken(f"the first {cut} positions change where later ones do: it looks ahead")
        expect_equal(
            trial.run(x[:, :cut]),
            want[:, :cut],
            f"{cut} positions alone give another output than with others after them",
        )
    if bool((slope(trial, x, 0, 6)[:, 6:] != 0).any()):
        raise Broken("in training the first 6 positions depend on later ones: it looks ahead")


def _empty(trial: Trial, rows: int) -> Cache:
    if not callable(getattr(trial.part, "new_cache", None)):
        raise Broken("it has no method new_cache(batch, max_len)")
    return Cache([{"mixer": trial.part.new_cache(rows, trial.layer.max_len)}])


def _pieces(
    trial: Trial, x: Tensor, cuts: tuple[int, ...], segments: Tensor | None = None
) -> Tensor:
    """x piece by piece over a cache."""
    cache, found, first = _empty(trial, len(x)), [], 0
    for end in (*cuts, x.shape[1]):
        sequence = SequenceInfo(first, None if segments is None else segments[:, :end])
        found.append(trial.run(x[:, first:end], sequence, cache.blocks[0]["mixer"]))
        first = end
    return torch.cat(found, 1)


def cache(trial: Trial) -> None:
    """Piece by piece with a cache equals the whole; a cache's rows can be selected."""
    x = trial.input()
    want = trial.run(x)
    expect_equal(
        _pieces(trial, x, tuple(range(1, LENGTH))),
        want,
        "step by step with a cache gives another output than the whole",
    )
    expect_equal(
        _pieces(trial, x, (5, 6, 9)),
        want,
        "in pieces with a cache it gives another output than the whole",
    )
    kept = _empty(trial, ROWS)
    trial.run(x[:, :6], SINGLE_DOCUMENT, kept.blocks[0]["mixer"])
    order = torch.tensor([2, 0, 0])
    kept.select(order)
    after = trial.run(x[order, 6:], SequenceInfo(6), kept.blocks[0]["mixer"])
    expect_equal(
        after,
        want[order, 6:],
        "after the rows of its cache are put in another order it gives another output",
    )


def _alone(trial: Trial, x: Tensor, segments: Tensor) -> Tensor:
    """Each document of each row by itself."""
    y = torch.zeros_like(x)
    for row in range(len(x)):
        own = segments[row]
        begins = [0, *[t for t in range(1, len(own)) if own[t] != own[t - 1]], len(own)]
        for first, end in pairwise(begins):
            y[row, first:end] = trial.run(x[row : row + 1, first:end])[0]
    return y


def documents(trial: Trial) -> None:
    """Packed documents equal each alone, with a cache too; padding changes nothing."""
    x = trial.input()
    packed = torch.tensor([[0] * 4 + [1] * 5 + [2] * 4, [0] * 13, [0] + [1] * 12])
    want = _alone(trial, x, packed)
    expect_equal(
        trial.run(x, SequenceInfo(0, packed)), want, "documents packed in one row see one another"
    )
    padded = torch.tensor([[0] * 4 + [1] * 9, [1] * 13, [1] * 6 + [0] * 7])
    real = padded[..., None].bool()
    want = torch.where(real, _alone(trial, x, padded), 0.0)
    found = trial.run(torch.where(real, x, 9.0), SequenceInfo(0, padded, real=padded.bool()))
    expect_equal(torch.where(real, found, 0.0), want, "padding changes what is beside it")
    if trial.slot == "mixer" and _one_sided(trial):
        left = torch.tensor([[0] * 4 + [1] * 9, [1] * 13, [0] + [1] * 12])
        want = _alone(trial, x, left)
        expect_equal(
            _pieces(trial, x, (6, 7, 8), left),
            want,
            "with a cache, prompts of different lengths see their padding",
        )


def _one_sided(trial: Trial) -> bool:
    return (
        trial.layer.causal
        and not looks_ahead(trial.options)
        and "cache" not in trial.options.not_promised
    )


def offset(trial: Trial) -> None:
    """Positions count on from those in the cache."""
    x = trial.input()
    want = trial.run(x)
    found = [
        trial.run(x[:, first:end], SequenceInfo(first))
        for first, end in ((0, 1), (1, 6), (6, LENGTH))
    ]
    expect_equal(
        torch.cat(found, 1),
        want,
        "positions that follow others (sequence.offset) are not numbered after them",
    )
