"""Random numbers per row: functions of a row's key alone, the same on every device, in every batch,
at every padding.

A batch carries under `KEY` one 64-bit number for each of its rows, made of (seed, epoch, sample).
What a task draws for a row (which tokens or patches are hidden) it draws from that key, number by
number: each is independent of how many are drawn. So neighbours, micro-batches, order and padding
change nothing. What layers draw in training (dropout, stochastic depth) is keyed too, by row, by
which draw of the pass it is, and by position: see `drawing`.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from bigmodel_cli.lazy import Tensor, torch

KEY = "key"
"""The name under which a batch carries its rows' keys, (B,) int64."""
GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: the increment of SplitMix64
LAYERS = 0x6C61796572
"""The stream of what layers draw; tasks have small numbers."""
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


class Drawing:
    """The rows that pass through a network in training, and how often layers have drawn for them.

    `keys` (R,) int64 are of the rows of what passes through, one each. `runs` are the positions of
    rows of which others have the rest; None: all.
    """

    def __init__(self, keys: Tensor, calls: int = 0, runs: tuple[range, ...] | None = None) -> None:
        self.keys, self.calls, self.runs = keys, calls, runs

    def next_keys(self, each: int) -> Tensor:
        """(R * each,) int64   of the next draw, of `each` items a row, which lie side by side."""
        self.calls += 1
        keys = _mixed(self.keys ^ _signed(int(key_of(LAYERS, self.calls))))
        if each == 1:
            return keys
        own = torch.arange(each, device=keys.device) * _signed(SECOND)
        return _mixed(keys[:, None] + own).flatten()


_DRAWING: list[Drawing | None] = [None]


@contextlib.contextmanager
def drawing(keys: Tensor | None) -> Iterator[None]:
    """Inside, layers draw by these keys of the rows (R,); None: from torch's own generator.

    The first draw after each entry is number 1, so that the same batch draws the same again.
    """
    _DRAWING.append(None if keys is None else Drawing(keys))
    try:
        yield
    finally:
        _DRAWING.pop()


@contextlib.contextmanager
def doubled() -> Iterator[None]:
    """Inside, what passes through are all rows, and then all rows once more, with other draws."""
    now = _DRAWING[-1]
    other = _signed(int(key_of(LAYERS)))
    with drawing(None if now is None else torch.cat((now.keys, now.keys ^ other))):
        own = _DRAWING[-1]
        if own is not None and now is not None:
            own.calls, own.runs = now.calls, now.runs
        yield
        if own is not None and now is not None:
            now.calls = own.calls


def again() -> Callable[[], contextlib.AbstractContextManager[None]]:
    """What makes a context in which layers draw what they draw from now on, once more."""
    now = _DRAWING[-1]
    if now is None:
        return contextlib.nullcontext
    keys, calls, runs = now.keys, now.calls, now.runs

    @contextlib.contextmanager
    def repeated() -> Iterator[None]:
        _DRAWING.append(Drawing(keys, calls, runs))
        try:
            yield
        finally:
            _DRAWING.pop()

    return repeated


def draws_so_far() -> int:
    """How often layers have drawn for the rows that pass through; 0 where no rows are told."""
    now = _DRAWING[-1]
    return 0 if now is None else now.calls


@contextlib.contextmanager
def placed(runs: tuple[range, ...]) -> Iterator[None]:
    """Inside, what passes through are these positions of each row, along the axis before the last:
    layers draw what they draw there where whole rows pass.
    """
    now = _DRAWING[-1]
    before = None if now is None else now.runs
    if now is not None:
        now.runs = runs
    try:
        yield
    finally:
        if now is not None:
            now.runs = before


def draws_by_row(items: int) -> bool:
    """Whether so many items are those of rows that are told, as many each."""
    now = _DRAWING[-1]
    return now is not None and len(now.keys) > 0 and items % len(now.keys) == 0


def kept_by_row(shape: tuple[int, ...], dropped: int, device: torch.device) -> Tensor | None:
    """shape (N, ...) -> bool   False with probability dropped / 65,536, drawn by row and position;
    None where no rows are told, or N items are not those of the rows, as many each.

    Positions are counted so that the length of an axis changes no draw before its end. Each 64 bits
    decide four items of the last axis.
    """
    now = _DRAWING[-1]
    if now is None or not draws_by_row(shape[0]):
        return None
    inner = (math.prod(shape[1:-2]), *shape[-2:]) if len(shape) > 3 else shape[1:] or (1,)
    each = shape[0] // len(now.keys)
    if now.runs is not None and (
        each > 1 or (len(inner) > 1 and inner[-2] != sum(map(len, now.runs)))
    ):
        raise ValueError(
            f"drawing for {shape}: of each row there are {sum(map(len, now.runs))} positions here,"
            " along the axis before the last"
        )
    keys = now.next_keys(each).to(device)
    if device.type == "cpu":
        return _on_cpu(keys.numpy().view(np.uint64), inner, dropped, now.runs).reshape(shape)
    return _on_device(keys, inner, dropped, now.runs).reshape(shape)


def _on_device(
    keys: Tensor, inner: tuple[int, ...], dropped: int, runs: tuple[range, ...] | None = None
) -> Tensor:
    """(N,) -> (N, *inner) bool"""
    steps = _steps_on(inner, runs, keys.device)
    bits = _mixed(keys.view(-1, *[1] * steps.dim()) + steps)
    lanes = torch.stack([(bits >> places) & 0xFFFF for places in (0, 16, 32, 48)], -1)
    return (lanes.flatten(-2) >= dropped)[..., : inner[-1]]


BLOCK = 1 << 14
"""64-bit numbers that are mixed at once on a CPU: they stay in its cache."""


def _on_cpu(
    keys: Any, inner: tuple[int, ...], dropped: int, runs: tuple[range, ...] | None
) -> Tensor:
    """(N,) uint64 -> (N, *inner) bool"""
    steps = _steps(inner, runs)
    with np.errstate(over="ignore"):
        flat = (keys.reshape(-1, *[1] * steps.ndim) + steps).reshape(-1)
        kept, spare = np.empty(4 * len(flat), bool), np.empty(min(BLOCK, len(flat)), np.uint64)
        for first in range(0, len(flat), BLOCK):
            x = flat[first : first + BLOCK]
            shifted = spare[: len(x)]
            for places, factor in ((30, FIRST), (27, SECOND), (31, 0)):
                np.right_shift(x, np.uint64(places), out=shifted)
                np.bitwise_xor(x, shifted, out=x)
                if factor:
                    np.multiply(x, np.uint64(factor), out=x)
            lanes = x.view(np.uint16)
            np.greater_equal(lanes, dropped, out=kept[4 * first : 4 * first + len(lanes)])
    found = torch.from_numpy(kept.reshape(*keys.shape, *steps.shape[:-1], -1))
    return found if inner[-1] % 4 == 0 else found[..., : inner[-1]].contiguous()


@functools.lru_cache(maxsize=16)
def _steps(inner: tuple[int, ...], runs: tuple[range, ...] | None) -> Any:
    """(*inner without the last axis, ceil of a quarter of it) uint64   what positions add to a
    row's key: their numbers, in which each of the last two axes has 24 bits; of the axis before the
    last those of the `runs`, where they are given.
    """
    number = np.ones((), np.uint64)
    sizes = (*inner[:-1], -(-inner[-1] // 4))
    for axis, size in enumerate(sizes):
        places = np.uint64(24 * (len(sizes) - 1 - axis))
        along = np.arange(size, dtype=np.uint64)
        if runs is not None and axis == len(sizes) - 2:
            along = np.concatenate([np.arange(r.start, r.stop, dtype=np.uint64) for r in runs])
        number = number[..., None] + (along << places)
    with np.errstate(over="ignore"):
        return number * GOLDEN


@functools.lru_cache(maxsize=16)
def _steps_on(
    inner: tuple[int, ...], runs: tuple[range, ...] | None, device: torch.device
) -> Tensor:
    """The same on a device."""
    return torch.from_numpy(_steps(inner, runs).view(np.int64)).to(device)
