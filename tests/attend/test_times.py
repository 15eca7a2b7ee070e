"""Times of words: warping and monotone shares against formulas written anew, hand-made paths."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
from torch import Tensor

from bigmodel_cli.attend.times import (
    MOST_HEADS,
    NEAR_BEST,
    Timed,
    aligning_heads,
    monotone_share,
    path_times,
    said_aloud,
    standing_out,
    warped,
    word_times,
)
from bigmodel_cli.attend.words import Word


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def best_path(gains: Tensor) -> tuple[float, list[int]]:
    """All paths by recursion: the largest sum, and the first key of each query on it."""
    values = gains.tolist()

    @functools.cache
    def to(i: int, j: int) -> tuple[float, tuple[tuple[int, int], ...]]:
        before = [(i - 1, j - 1), (i - 1, j), (i, j - 1)]
        known = [to(*cell) for cell in before if min(cell) >= 0]
        total, path = max(known, default=(0.0, ()))
        return total + values[i][j], (*path, (i, j))

    total, path = to(len(values) - 1, len(values[0]) - 1)
    return total, [min(j for i, j in path if i == row) for row in range(len(values))]


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1), (4, 9), (7, 7), (6, 3)])
def test_warping_finds_the_best_path(shape: tuple[int, int]) -> None:
    for seed in range(4):
        gains = drawn(*shape, seed=seed) - 0.5  # costs too, so that a path is not just long
        assert warped(gains) == best_path(gains)[1]


@pytest.mark.parametrize(("queries", "keys"), [(1, 4), (3, 5), (4, 3), (3, 6)])
def test_monotone_share_is_the_best_of_all_ways(queries: int, keys: int) -> None:
    weights = drawn(2, queries, keys).softmax(-1)
    ways = list(itertools.combinations_with_replacement(range(queries), keys))
    for head in range(2):
        best = max(sum(float(weights[head, q, k]) for k, q in enumerate(way)) for way in ways)
        assert float(monotone_share(weights)[head]) == pytest.approx(best / queries, abs=1e-6)


def test_only_reading_in_order_has_a_large_share() -> None:
    steps = torch.eye(5).repeat_interleave(3, 1) / 3  # (5, 15)   each query its own three keys
    sink = torch.zeros(5, 15).index_fill_(1, torch.tensor([7]), 1.0)
    kinds = torch.stack([steps, sink, torch.full((5, 15), 1 / 15), steps.flip(0)])
    assert monotone_share(kinds).tolist() == pytest.approx([1, 0.2, 0.2, 0.2], abs=1e-6)


def test_heads_near_the_best_are_used() -> None:
    found = [((0, h), 0.1) for h in range(5)] + [((2, 1), 0.8), ((1, 3), 0.8 * NEAR_BEST)]
    assert aligning_heads(found) == [(1, 3), (2, 1)]
    assert len(aligning_heads([((0, h), 0.5) for h in range(30)])) == MOST_HEADS


def test_what_stands_out_is_smoothed_by_a_median() -> None:
    weights = drawn(2, 4, 20).softmax(-1)
    found = standing_out(weights, 0.02)  # 7 positions
    mean = weights.mean(1, keepdim=True)
    z = (weights - mean) / (weights - mean).square().mean(1, keepdim=True).sqrt()
    for row, place in itertools.product(range(4), range(20)):
        near = [abs(j) if j < 20 else 38 - j for j in range(place - 3, place + 4)]  # reflected
        middle = z[:, row, near].sort(-1).values[:, 3].mean()
        assert float(found[row, place]) == pytest.approx(float(middle), abs=1e-5)
    assert torch.allclose(standing_out(weights, 0.2), z.mean(0), atol=1e-5)  # too coarse for it
    assert standing_out(weights[:, :1], 0.02).isfinite().all()  # one query: nothing stands out


def test_words_begin_where_their_first_token_does() -> None:
    rows = torch.full((4, 12), -1.0)
    for token, (first, stop) in enumerate([(0, 3), (3, 5), (5, 8), (8, 12)]):
        rows[token, first:stop] = 1.0
    words = [Word("one", 0, 2), Word("two", 2, 3), Word(".", 3, 4)]
    found = [Timed("one", 0.0, 2.5), Timed("two", 2.5, 4.0), Timed(".", 4.0, 6.0)]
    assert word_times(rows, words, 0.5) == found
    assert Timed("one", 0.0, 2.51239).to_json() == {"word": "one", "start": 0.0, "end": 2.512}


def test_blanks_and_marks_are_not_said() -> None:
    words = [Word("ab", 0, 3), Word("<x>", 3, 4, special=True), Word("c", 4, 6), Word(" ", 6, 7)]
    visible = [False, True, True, False, False, True, False]
    kept, places = said_aloud(words, visible)
    assert places == [1, 2, 5]
    assert kept == [Word("ab", 0, 2), Word("c", 2, 3)]


def test_times_of_a_ctc_path() -> None:
    units = ["no", "yes"]
    best = [2, 0, 0, 2, 0, 1, 1, 2]  # a blank between equal words, none between others
    assert path_times(best, 2, units, "words", 0.1) == [
        Timed("no", pytest.approx(0.1), pytest.approx(0.3)),
        Timed("no", pytest.approx(0.4), pytest.approx(0.5)),
        Timed("yes", pytest.approx(0.5), pytest.approx(0.7)),
    ]
    letters = ["a", "b", " "]
    best = [0, 3, 1, 1, 3, 2, 3, 3, 1, 3]
    assert path_times(best, 3, letters, "characters", 1.0) == [
        Timed("ab", 0.0, 4.0), Timed("b", 8.0, 9.0),
    ]  # fmt: skip
    assert path_times([3, 2, 3], 3, letters, "characters", 1.0) == []
