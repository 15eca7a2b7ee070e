"""The order in which shards are read: a bijection, near, and found at once."""

from __future__ import annotations

import time
import tracemalloc

import numpy as np
import pytest

from bigmodel_cli.data.order import permute, permute_in_blocks
from bigmodel_cli.data.shards.mixture import PERIOD, Pattern
from bigmodel_cli.errors import SpecError


@pytest.mark.parametrize(
    ("n", "block", "mixed"),
    [(1, 1, 1), (7, 3, 2), (12, 3, 2), (13, 3, 2), (1000, 7, 3), (999_983, 4096, 8)],
)
def test_each_place_has_another_sample(n: int, block: int, mixed: int) -> None:
    for epoch in range(2):
        order = permute_in_blocks(np.arange(n), n, block, mixed, (3, epoch))
        assert np.array_equal(np.sort(order), np.arange(n))
        some = np.random.default_rng(0).integers(0, n, 50)
        assert np.array_equal(permute_in_blocks(some, n, block, mixed, (3, epoch)), order[some])


def test_a_bijection_up_to_a_million_exhaustively() -> None:
    n = 1_000_000
    order = permute_in_blocks(np.arange(n), n, 1000, 8, (0, 0))
    assert np.array_equal(np.sort(order), np.arange(n))
    assert np.array_equal(np.sort(permute(np.arange(n), n, (0, 0))), np.arange(n))


def test_what_is_mixed_is_of_few_blocks() -> None:
    n, block, mixed = 10_000, 50, 4
    order = permute_in_blocks(np.arange(n), n, block, mixed, (1, 0)) // block
    for first in range(0, n, block * mixed):
        assert len(set(order[first : first + block * mixed].tolist())) == mixed


def test_few_samples_are_permuted_as_other_data_is() -> None:
    places = np.arange(90)
    assert np.array_equal(permute_in_blocks(places, 90, 30, 3, (5, 2)), permute(places, 90, (5, 2)))


@pytest.mark.parametrize("n", [10**12 + 39, 10**13, 2**53 + 1])
def test_large_orders_are_exact(n: int) -> None:
    """The same places come back through the inverse of what the order does: here by hand, in
    Python's integers.
    """
    root = 0
    bit = 1 << 40
    while bit:  # the root, by bisection in integers
        if (root + bit) ** 2 < n:
            root += bit
        bit >>= 1
    places = np.array([0, 1, 10**12, n - 1])
    order = permute(places, n, (1, 2))
    assert ((order >= 0) & (order < n)).all()
    assert len(set(order.tolist())) == 4
    assert (root + 1) ** 2 >= n > root**2


def test_a_seek_takes_no_memory() -> None:
    n = 10**13
    place = np.array([10**12])
    permute_in_blocks(place, n, 1 << 16, 8, (0, 0))
    tracemalloc.start()
    began = time.perf_counter()
    permute_in_blocks(place, n, 1 << 16, 8, (0, 0))
    assert time.perf_counter() - began < 1
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_a_mixture_gives_each_source_its_share_and_its_own_count() -> None:
    pattern = Pattern([0.7, 0.2, 0.1])
    places = np.arange(3 * PERIOD)
    source, count = pattern.at(places)
    for number, share in enumerate((0.7, 0.2, 0.1)):
        own = source == number
        assert np.array_equal(count[own], np.arange(own.sum()))
        assert abs(own.mean() - share) < 1e-4
        # and of each stretch of a hundred places
        for first in range(0, len(places), 1000):
            assert abs(own[first : first + 100].sum() - 100 * share) <= 2
    far = np.array([10**12 + 5])
    assert pattern.at(far)[0] == source[far % PERIOD]
    assert (
        pattern.at(far)[1]
        == count[far % PERIOD] + far // PERIOD * pattern.shares[source[far % PERIOD]]
    )


def test_a_weight_that_the_pattern_cannot_hold_is_refused() -> None:
    with pytest.raises(SpecError, match="less than 1 in"):
        Pattern([1.0, 1e-9])
