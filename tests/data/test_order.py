"""The order of samples is a permutation, and what is drawn for a sample depends on its own numbers
alone.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bigmodel_cli.data.base import Split
from bigmodel_cli.data.order import draw, permute
from bigmodel_cli.train.batches import BySamples, ByTokens, cuts


@given(n=st.integers(1, 5000), seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_every_epoch_is_a_permutation(n: int, seed: int, epoch: int) -> None:
    assert np.array_equal(np.sort(permute(np.arange(n), n, (seed, epoch))), np.arange(n))


def test_any_entry_of_the_order_is_computed_alone() -> None:
    whole = permute(np.arange(1000), 1000, (3, 4))
    some = np.array([7, 999, 0, 500])
    assert np.array_equal(permute(some, 1000, (3, 4)), whole[some])
    assert not np.array_equal(whole, permute(np.arange(1000), 1000, (3, 5)))
    assert not np.array_equal(whole, permute(np.arange(1000), 1000, (4, 4)))


def test_the_order_is_statistically_random() -> None:
    n = 2000
    counts = np.zeros((20, 20))
    for epoch in range(200):
        entries = permute(np.arange(n), n, (0, epoch))
        np.add.at(counts, (np.arange(n) * 20 // n, entries * 20 // n), 1)
    expected = 200 * n / 400
    statistic = float(((counts - expected) ** 2 / expected).sum())
    # chi-squared with 19 x 19 degrees of freedom, five deviations
    assert statistic < 361 + 5 * (2 * 361) ** 0.5


def test_draws_are_uniform_and_belong_to_the_sample() -> None:
    samples = np.arange(100_000)
    u = draw(1, 2, samples, 3, 2)
    assert u.dtype == np.float32
    assert u.min() >= 0
    assert u.max() < 1
    assert abs(u.mean() - 0.5) < 0.005
    assert abs(np.corrcoef(u[:-1, 0], u[1:, 0])[0, 1]) < 0.02
    assert abs(np.corrcoef(u[:, 0], u[:, 1])[0, 1]) < 0.02
    assert np.array_equal(draw(1, 2, samples[[5, 77]], 3, 2), u[[5, 77]])
    assert not np.array_equal(draw(1, 3, samples, 3, 2), u)
    assert not np.array_equal(draw(1, 2, samples, 4, 2), u)


class Counting(Split):
    """A split that gives its sample's number and epoch back."""

    resident = True

    def __init__(self, n: int, lengths: np.ndarray | None = None) -> None:
        self.n, self.lengths = n, lengths

    def __len__(self) -> int:
        return self.n

    def to(self, device: torch.device) -> None:
        """Nothing to move."""

    def batch(
        self, samples: np.ndarray, epoch: int, seed: int, augment: bool
    ) -> dict[str, torch.Tensor]:
        """The numbers themselves."""
        return {"sample": torch.from_numpy(samples), "epoch": torch.full((len(samples),), epoch)}


@given(n=st.integers(1, 60), size=st.integers(1, 25), seed=st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_micro_batches_go_through_every_sample_once_an_epoch(n: int, size: int, seed: int) -> None:
    stream = BySamples(Counting(n), size, seed)
    batches = [stream[k] for k in range(-(-3 * n // size))]
    samples = torch.cat([b["sample"] for b in batches])[: 3 * n].reshape(3, n)
    epochs = torch.cat([b["epoch"] for b in batches])[: 3 * n].reshape(3, n)
    for epoch in range(3):
        assert torch.equal(samples[epoch].sort().values, torch.arange(n))
        assert bool((epochs[epoch] == epoch).all())
    later = BySamples(Counting(n), size, seed)[len(batches) - 1]  # a seek gives the same
    assert torch.equal(later["sample"], batches[-1]["sample"])


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=80),
    budget=st.integers(30, 100),
    seed=st.integers(0, 9),
)
@settings(max_examples=60, deadline=None)
def test_batches_by_tokens_hold_every_sample_once_an_epoch(
    lengths: list[int], budget: int, seed: int
) -> None:
    known = np.array(lengths)
    split = Counting(len(lengths), known)
    stream = ByTokens(split, known, budget, seed)
    count = int(stream.per_epoch)
    for epoch in range(3):
        batches = [stream[epoch * count + k]["sample"].numpy() for k in range(count)]
        assert np.array_equal(np.sort(np.concatenate(batches)), np.arange(len(lengths)))
        assert all(len(b) * known[b].max() <= budget for b in batches)
        # a seek gives the same
        again = ByTokens(split, known, budget, seed)[epoch * count + count - 1]["sample"]
        assert np.array_equal(again.numpy(), batches[-1])
    ascending = np.sort(known)
    places = cuts(ascending, budget)
    for start, end in pairwise(places):  # one more row would not have fitted
        assert end == len(ascending) or (end + 1 - start) * ascending[end] > budget
    other = [
        ByTokens(split, known, budget, seed)[count + k]["sample"].numpy() for k in range(count)
    ]
    assert len(lengths) < 30 or not all(
        np.array_equal(a, b) for a, b in zip(other, stream_of(stream, 0), strict=True)
    )


def stream_of(stream: ByTokens, epoch: int) -> list[np.ndarray]:
    count = int(stream.per_epoch)
    return [stream[epoch * count + k]["sample"].numpy() for k in range(count)]
