"""The order of samples and the randomness of augmentation, as functions of integers: a resume is a
seek.

Both are counter-based: nothing is drawn in advance and nothing is remembered, so any entry of any
epoch can be had at once, in constant memory, by any process.
"""

from __future__ import annotations

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
    walking; Black and Rogaway 2002).
    """
    a = max(1, int(np.ceil(np.sqrt(n))))
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


def draw(seed: int, epoch: int, samples: Ints, stream: int, count: int) -> Floats:
    """(B, count) uniform numbers in [0, 1), those of each sample depending only on (seed, epoch,
    sample, stream).
    """
    with np.errstate(over="ignore"):
        own = mix(samples.astype(np.uint64) ^ key_of(seed, epoch, stream))[:, None]  # (B, 1)
        bits = mix(own + np.arange(1, count + 1, dtype=np.uint64) * GOLDEN)  # (B, count)
    numbers: Floats = (bits >> np.uint64(40)).astype(np.float32) / np.float32(1 << 24)
    return numbers


def keys_of(seed: int, epoch: int, samples: Ints) -> Tensor:
    """(B,) -> (B,) int64   the keys of rows, from which a task draws what it hides of them (see
    draw.py).
    """
    with np.errstate(over="ignore"):
        keys = mix(samples.astype(np.uint64) ^ key_of(seed, epoch))
    return torch.from_numpy(keys.view(np.int64))
