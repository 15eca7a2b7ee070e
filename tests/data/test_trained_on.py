"""The record of what was trained on: against plain sets, and every fault of its bytes."""

from __future__ import annotations

import hashlib
import json
import random
from typing import Any

import numpy as np
import pytest

from bigmodel_cli.data import trained_on
from bigmodel_cli.data.trained_on import Seen, as_hashes, blocks, dump, hash_of, joined, load
from bigmodel_cli.errors import CheckpointError


def numbers(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**64, count, np.uint64)


def test_a_hash_is_the_first_64_bits_of_sha_256() -> None:
    assert hash_of(b"an item") == int.from_bytes(hashlib.sha256(b"an item").digest()[:8], "little")
    assert hash_of(b"a", b"b") != hash_of(b"ab")
    assert hash_of(b"a", b"b") != hash_of(b"a", b"", b"b")
    assert as_hashes([2**64 - 1, 0]).tolist() == [2**64 - 1, 0]


def test_sets_are_kept_and_joined_as_plain_sets_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trained_on, "MOST", 50)
    first, second = numbers(40, 0), numbers(300, 1)
    small, large = (
        Seen.of("classification", np.concatenate((first, first[:9]))),
        Seen.of("classification", second),
    )
    assert (small.whole, large.whole) == (True, False)
    assert small.hashes.tolist() == sorted(first.tolist())
    assert large.hashes.tolist() == sorted(second.tolist())[:50]
    items = np.concatenate((first[:7], second[:100], numbers(200, 2)))
    assert small.known(items).all()
    assert int(small.holds(items).sum()) == 7
    known = items[large.known(items)]
    assert {int(i) for i in items[large.holds(items)]} == {int(i) for i in known} & {
        int(i) for i in second
    }
    other = Seen.of("masked_lm", numbers(3, 3))
    both = {s.task: s for s in joined([small, other, large, small])}
    union = sorted({*first.tolist(), *second.tolist()})
    assert (
        both["classification"].hashes.tolist()
        == [h for h in union if h <= sorted(second.tolist())[49]][:50]
    )
    assert not both["classification"].whole
    again = load(dump([small, other, large]))
    assert [(s.task, s.hashes.tolist(), s.whole) for s in again] == [
        (s.task, s.hashes.tolist(), s.whole) for s in (small, other, large)
    ]
    assert load(None) == []


def test_a_sample_gives_the_share_of_the_whole() -> None:
    trained, others = numbers(400_000, 4), numbers(100_000, 5)
    items = np.concatenate((trained[:25_000], others[:75_000]))
    kept = Seen.of("causal_lm", trained)
    assert len(kept.hashes) == trained_on.MOST
    known = int(kept.known(items).sum())
    assert abs(int(kept.holds(items).sum()) / known - 0.25) < 0.015
    assert len(dump([kept])) < 8 * trained_on.MOST + 200


GOOD = (
    json.dumps([{"task": "a", "count": 2, "whole": True}]).encode()
    + b"\n"
    + bytes(8)
    + b"\x01"
    + bytes(7)
)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"{}\n",
        GOOD[:-1],
        GOOD + b"x",
        GOOD.replace(b"true", b"1"),
        GOOD.replace(b": 2", b": -2"),
        GOOD.replace(b": 2", b": 1e400"),
        GOOD.replace(b": 2", b": " + b"9" * 4000),
        GOOD.replace(b'"a"', b"[]"),
        GOOD[:-16] + GOOD[-8:] + bytes(8),
        b"[" * 100_000,
    ],
)
def test_a_damaged_trained_on_record_is_reported(content: bytes) -> None:
    assert load(GOOD)[0].hashes.tolist() == [0, 1]
    with pytest.raises(
        CheckpointError, match=r"trained_on.bin: damaged .*; use another checkpoint"
    ):
        load(content)


def test_blocks_of_lines_are_the_same_wherever_they_stand() -> None:
    rng = random.Random(0)
    lines = [
        " ".join(rng.choices(["to", "be", "or", "not", "that", "is"], k=9)) + f" {i}\n"
        for i in range(4000)
    ]
    whole = list(blocks(lines))
    assert 250 < len(whole) < 550  # of 8 lines and some more, so that they have 256 bytes
    assert len(set(whole)) == len(whole)
    for first, last in ((0, 2000), (1111, 1999), (3000, 4000)):
        part = list(blocks(["".join(lines[first:last])]))
        assert set(part[1:-1]) <= set(whole)  # all but the two that are cut
    text = "".join(lines)
    for size in (7, 1000):  # pieces are as they come, but end with a line
        pieces = ["".join(lines[i : i + size]) for i in range(0, len(lines), size)]
        assert list(blocks(pieces)) == whole == list(blocks([text]))
    assert len(list(blocks(["x" * 1000] * 1000))) > 10  # a line without an end


@pytest.mark.parametrize("alphabet", ["ACGT", ["foo ", "bar ", "bz "]])
def test_a_text_without_newlines_is_in_blocks_too(alphabet: Any) -> None:
    """What is cut off at any place has the blocks of the whole, from its first that is whole on:
    but one at each end.
    """
    text = "".join(random.Random(1).choices(alphabet, k=60_000))
    whole = list(blocks([text]))
    assert len(set(whole)) == len(whole) > 30
    for first in (1, len(text) // 3 + 5, len(text) * 3 // 4):
        tail = list(blocks([text[first:]]))
        assert len(tail) > 3
        assert sum(block not in whole for block in tail) <= 2
    assert not set(whole) & set(blocks(["".join(random.Random(2).choices(alphabet, k=60_000))]))


def test_short_blocks_of_common_lines_are_not_an_overlap() -> None:
    lines = [f"import {name}\n" for name in ("os", "re", "sys", "json", "math")]
    first, second = ("".join(random.Random(seed).choices(lines, k=12)) for seed in (0, 1))
    assert not set(blocks([first + "x = 1\n" * 99])) & set(blocks([second + "y = 2\n" * 99]))
