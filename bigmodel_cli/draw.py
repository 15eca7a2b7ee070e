"""Random numbers per row: functions of a row's key alone, the same on every device, in every batch,
at every padding.

A batch carries under `KEY` one 64-bit number for each of its rows, made of (seed, epoch, sample).
What a task draws for a row (which tokens or patches are hidden) it draws from that key, number by
number: each is independent of how many are drawn. So neighbours, micro-batches, order and padding
change nothing. (Dropout and stochastic depth are noise of layers, not of rows: they come from
torch's own generator, in the order in which the layers run.)
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bigmodel_cli.lazy import Tensor, torch

KEY = "key"
"""The name under which a batch carries its rows' keys, (B,) int64."""
GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: the increment of SplitMix64
FIRST, SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def mix(x: Any) -> Any:
    """The finaliser of SplitMix64 (Steele et al. 2014): a bijection of 64-bit integers that
    scatters every bit.
    """
    x = (x ^ (x >> np.uint64(30))) * np.uint64(FIRST)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(SECOND)
    return x ^ (x >> np.uint64(31))


def key_of(*numbers: int) -> Any:
    """One 64-bit key made of several integers."""
    key = GOLDEN
    with np.errstate(over="ignore"):
        for number in numbers:
            key = mix(key ^ np.uint64(number & 0xFFFFFFFFFFFFFFFF)) + GOLDEN
    return key


def several(batch: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    """Each row of a batch `count` times, each time with another key."""
    rows = {name: values.repeat_interleave(count, 0) for name, values in batch.items()}
    first = next(iter(rows.values()))
    return {**rows, KEY: torch.arange(len(first), device=first.device)}


def draw(keys: Tensor, stream: int, count: int) -> Tensor:
    """keys (B,) -> (B, count) float32   uniform in [0, 1); number i of a row is a function of (its
    key, stream, i) alone.
    """
    return _shifted(_bits(keys, stream, count), 40).to(torch.float32) / (1 << 24)


def draw_below(keys: Tensor, stream: int, count: int, below: int) -> Tensor:
    """keys (B,) -> (B, count) int64   uniform in 0 .. below - 1, for a `below` under 2^31, as
    `draw` draws.
    """
    return (_shifted(_bits(keys, stream, count), 32) * below) >> 32


def _bits(keys: Tensor, stream: int, count: int) -> Tensor:
    """(B, count) int64   64 random bits each."""
    row_keys = _mixed(keys ^ _signed(int(key_of(stream))))[:, None]  # (B, 1)
    steps = torch.arange(1, count + 1, device=keys.device) * _signed(int(GOLDEN))
    return _mixed(row_keys + steps)


def _mixed(x: Tensor) -> Tensor:
    """`mix` of int64, whose products wrap as those of uint64 do."""
    x = (x ^ _shifted(x, 30)) * _signed(FIRST)
    x = (x ^ _shifted(x, 27)) * _signed(SECOND)
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, places: int) -> Tensor:
    """Logical right shift of int64; torch's own shift repeats the sign."""
    return (x >> places) & ((1 << (64 - places)) - 1)


def _signed(number: int) -> int:
    """The int64 of the same 64 bits."""
    return number - (1 << 64) if number >> 63 else number
