"""The order of samples and the randomness of augmentation, as functions of integers: a resume is a
seek.

Both are counter-based: nothing is drawn in advance and nothing is remembered, so any entry of any
epoch can be had at once, in constant memory, by any process.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from bigmodel_cli.draw import GOLDEN, key_of, mix
from bigmodel_cli.lazy import Tensor, torch

Ints = np.ndarray[Any, np.dtype[np.int64]]
Floats = np.ndarray[Any, np.dtype[np.float32]]

ROUNDS = 6


def permute(index: Ints, n: int, key: tuple[int, ...]) -> Ints:
    """Entries `index` of a pseudo-random permutation of range(n) that is chosen by `key`: (B,) ->
    (B,).

    An alternating Feistel network over pairs (left, right) of a x b >= n values with addition
    modulo a and b; what falls outside range(n) is sent through again until it falls inside (cycle
    walking; Black and Rogaway 2002). Exact for n up to 2^62.
    """
    a = max(1, math.isqrt(max(0, n - 1)) + 1)  # ceil(sqrt(n)), in integers
    b = -(-n // a)
    rounds = [key_of(*key, number) for number in range(ROUNDS)]
    out = _feistel(index.astype(np.uint64), np.uint64(a), np.uint64(b), rounds)
    outside = out >= n
    while outside.any():
        out[outside] = _feistel(out[outside], np.uint64(a), np.uint64(b), rounds)
        outside = out >= n
    entries: Ints = out.astype(np.int64)
    return entries


def _feistel(x: Any, a: Any, b: Any, rounds: list[Any]) -> Any:
    left, right = x // b, x % b
    with np.errstate(over="ignore"):
        for number, key in enumerate(rounds):
            if number % 2:
                right = (right + mix(left ^ key) % b) % b
            else:
                left = (left + mix(right ^ key) % a) % a
    return left * b + right


def permute_in_blocks(index: Ints, n: int, block: int, mixed: int, key: tuple[int, ...]) -> Ints:
    """Entries `index` of a permutation of range(n) that stays near: (B,) -> (B,), in O(1) memory.

    Blocks of `block` neighbours come in an order drawn by `key`; the entries of `mixed` blocks at
    a time are permuted together, so that a reader needs the files of those alone. What is left of
    whole groups of blocks is a smaller group, whose place among the others is drawn too. Where all
    is one group, it is `permute`.
    """
    size = block * mixed
    groups, odd = divmod(n, size)
    if not groups or (groups == 1 and not odd):
        return permute(index, n, key)
    blocks = n // block
    # where the smaller group stands
    place = int(key_of(*key, 1) % np.uint64(groups + 1)) if odd else groups
    before, inside = index < place * size, index < place * size + odd
    shifted = np.where(before, index, index - odd)
    group, within = np.divmod(shifted, size)
    out = np.empty_like(index)
    is_odd = ~before & inside
    if is_odd.any():
        own = permute(index[is_odd] - place * size, odd, (*key, 2))
        start = groups * mixed
        slots = np.minimum(start + own // block, blocks)
        out[is_odd] = _block(slots, blocks, key) * block + own % block
    for number in np.unique(group[~is_odd]).tolist():
        chosen = ~is_odd & (group == number)
        own = permute(within[chosen], size, (*key, 3, number))
        out[chosen] = _block(number * mixed + own // block, blocks, key) * block + own % block
    return out


def _block(slots: Ints, blocks: int, key: tuple[int, ...]) -> Ints:
    """The block in each place of the order of blocks; that behind the last whole one stays."""
    found = slots.copy()
    whole = slots < blocks
    found[whole] = permute(slots[whole], blocks, (*key, 4))
    return found


def draw(seed: int, epoch: int, samples: Ints, stream: int, count: int) -> Floats:
    """(B, count) uniform numbers in [0, 1), those of each sample depending only on (seed, epoch,
    sample, stream).
    """
    with np.errstate(over="ignore"):
        row_keys = mix(samples.astype(np.uint64) ^ key_of(seed, epoch, stream))[:, None]  # (B, 1)
        bits = mix(row_keys + np.arange(1, count + 1, dtype=np.uint64) * GOLDEN)  # (B, count)
    numbers: Floats = (bits >> np.uint64(40)).astype(np.float32) / np.float32(1 << 24)
    return numbers


def keys_of(seed: int, epoch: int, samples: Ints) -> Tensor:
    """(B,) -> (B,) int64   the keys of rows, from which a task draws what it hides of them (see
    draw.py).
    """
    with np.errstate(over="ignore"):
        keys = mix(samples.astype(np.uint64) ^ key_of(seed, epoch))
    return torch.from_numpy(keys.view(np.int64))
