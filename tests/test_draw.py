"""Numbers drawn from rows' keys: what they are, that they are even, and that nothing but the key
decides them.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bigmodel_cli.data.order import keys_of
from bigmodel_cli.draw import draw, draw_below

WORD = (1 << 64) - 1


def scattered(x: int) -> int:
    """SplitMix64's finaliser in plain integers."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & WORD
    return x ^ (x >> 31)


def by_hand(key: int, stream: int, index: int) -> int:
    """The 64 bits of one number: key, stream and place mixed one after the other."""
    golden = 0x9E3779B97F4A7C15
    named = (scattered(golden ^ stream) + golden) & WORD
    return scattered((scattered((key & WORD) ^ named) + (index + 1) * golden) & WORD)


KEYS = torch.tensor([0, -1, 1, 2**63 - 1, -(2**63), 123456789, -987654321987654321])


def test_drawn_numbers_equal_plain_integer_arithmetic() -> None:
    drawn, below = draw(KEYS, 7, 9), draw_below(KEYS, 7, 9, 1000)
    assert drawn.dtype == torch.float32
    for row, key in enumerate(KEYS.tolist()):
        for index in range(9):
            bits = by_hand(key, 7, index)
            assert float(drawn[row, index]) == (bits >> 40) / 2**24
            assert int(below[row, index]) == ((bits >> 32) * 1000) >> 32


def test_keys_are_made_of_seed_epoch_and_sample() -> None:
    samples = np.array([0, 3, 10**12, 17])
    golden = 0x9E3779B97F4A7C15
    for seed, epoch in ((0, 0), (2**63 - 1, 5)):
        key = golden
        for number in (seed, epoch):
            key = (scattered(key ^ number) + golden) & WORD
        expected = [scattered(sample ^ key) for sample in samples.tolist()]
        assert [k & WORD for k in keys_of(seed, epoch, samples).tolist()] == expected
    first = draw(keys_of(1, 0, samples), 1, 5)
    for other in (keys_of(2, 0, samples), keys_of(1, 1, samples), keys_of(1, 0, samples + 1)):
        assert not torch.equal(draw(other, 1, 5), first)


def test_drawn_numbers_depend_on_key_stream_and_index_only() -> None:
    whole = draw(KEYS, 3, 20)
    assert torch.equal(draw(KEYS, 3, 7), whole[:, :7])  # however many are drawn
    order = torch.tensor([4, 0, 6])
    assert torch.equal(draw(KEYS[order], 3, 20), whole[order])  # whatever stands beside
    assert not torch.equal(draw(KEYS, 4, 20), whole)
    assert torch.equal(draw_below(KEYS, 3, 7, 50), draw_below(KEYS, 3, 20, 50)[:, :7])


def test_drawn_numbers_are_uniform_and_independent() -> None:
    keys = keys_of(0, 0, np.arange(3000))
    drawn = draw(keys, 1, 40).double()
    assert float(drawn.min()) >= 0
    assert float(drawn.max()) < 1
    count = drawn.numel()
    assert abs(float(drawn.mean()) - 0.5) < 5 * (1 / 12 / count) ** 0.5
    correlation = torch.corrcoef(drawn.T) - torch.eye(40)
    assert float(correlation.abs().max()) < 6 / 3000**0.5  # places
    assert float((torch.corrcoef(drawn[:300]) - torch.eye(300)).abs().max()) < 6 / 40**0.5  # rows
    again = draw(keys, 2, 40).double()
    assert (
        abs(float(torch.corrcoef(torch.stack((drawn.flatten(), again.flatten())))[0, 1]))
        < 5 / count**0.5
    )
    for below in (1, 7, 50_257):
        values = draw_below(keys, 1, 40, below)
        assert int(values.min()) >= 0
        assert int(values.max()) < below
        groups = torch.bincount(
            values.flatten() * min(below, 7) // below, minlength=min(below, 7)
        ).double()
        expected = (
            count * torch.bincount(torch.arange(below) * min(below, 7) // below).double() / below
        )
        # chi square of at most 6 degrees: 1 in 25,000
        assert float(((groups - expected) ** 2 / expected).sum()) < 30


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_drawn_numbers_are_the_same_on_a_gpu() -> None:
    assert torch.equal(draw(KEYS.cuda(), 7, 50).cpu(), draw(KEYS, 7, 50))
    assert torch.equal(draw_below(KEYS.cuda(), 7, 50, 999).cpu(), draw_below(KEYS, 7, 50, 999))
