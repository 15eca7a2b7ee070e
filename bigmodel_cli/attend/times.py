"""When each word of a recording is said: by cross-attention, or by the best path of CTC."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bigmodel_cli.attend.words import Word
from bigmodel_cli.data import Ticks
from bigmodel_cli.lazy import F, Tensor, torch

SMOOTHED = 0.14
"""Seconds over which weights are smoothed by a median: Whisper's 7 positions of 20 ms."""
NEAR_BEST = 0.75
"""Heads as monotone as this part of the most monotone one are used."""
MOST_HEADS = 10


@dataclass(frozen=True)
class Timed:
    """A word, and when it begins and ends, in seconds."""

    text: str
    start: float
    end: float

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {"word": self.text, "start": round(self.start, 3), "end": round(self.end, 3)}


@dataclass(frozen=True)
class Times:
    """When words are said; `heads` are the (layer, head) of cross-attention that told it, counted
    in the decoder, and `rule` how they were chosen. `seconds` is how long a position lasts.
    """

    words: list[Timed]
    rule: str
    seconds: float
    heads: list[tuple[int, int]]

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "rule": self.rule,
            "seconds_per_position": self.seconds,
            "heads": [f"{layer}.{head}" for layer, head in self.heads],
            "words": [word.to_json() for word in self.words],
        }


@dataclass(frozen=True)
class Heard:
    """frames (mels, T) that a model was given of a recording, each `seconds` long; `ticks` are
    round frequencies along the bands, from below, and times along the frames.
    """

    frames: Tensor
    seconds: float
    ticks: tuple[Ticks, Ticks]


def monotone_share(weights: Tensor) -> Tensor:
    """weights (H, T, S) -> (H)   how far the queries of a head read the keys in order: 0 to 1.

    It is the mean weight of a query on its keys, where each key is given to one query, in the
    order of both, as is best for the head (by dynamic programming over keys). Heads that read one
    key all the time, or all keys evenly, have 1 / T; 1 is a reading of pieces one after the other.
    """
    heads, queries, keys = weights.shape
    best = weights.new_zeros(heads, queries)  # keys so far, the last one given to each query
    for key in range(keys):
        best = best.cummax(-1).values + weights[:, :, key]
    return best.amax(-1) / queries


def aligning_heads(shares: Sequence[tuple[tuple[int, int], float]]) -> list[tuple[int, int]]:
    """((layer, head), its monotone share) of all heads -> those that tell the times.

    They are the most monotone ones: at most ten, none below three quarters of the best share.
    """
    ranked = sorted(shares, key=lambda each: -each[1])[:MOST_HEADS]
    return sorted(head for head, share in ranked if share >= NEAR_BEST * ranked[0][1])


def standing_out(weights: Tensor, seconds: float) -> Tensor:
    """(N, T, S) -> (T, S)   how far each weight stands out, as Whisper's word times have it.

    Of the heads chosen, weights less their mean over queries, in standard deviations, are smoothed
    over keys by a median, and averaged (Radford et al. 2022; the `timing.py` of its code).
    `seconds` is how long a key lasts.
    """
    spread, mean = torch.std_mean(weights.float(), dim=-2, keepdim=True, correction=0)
    found = (weights - mean) / spread.clamp(min=1e-9)
    width = 2 * round((SMOOTHED / seconds - 1) / 2) + 1
    half = width // 2
    if 0 < half < found.shape[-1]:
        padded = F.pad(found, (half, half), mode="reflect")
        found = padded.unfold(-1, width, 1).median(-1).values
    return found.mean(0)


def warped(gains: Tensor) -> list[int]:
    """gains (T, S) -> the first key of each query on the path of the largest sum.

    Dynamic time warping: the path goes from the first of both to the last of both, one further in
    queries, keys or both at each step (Sakoe and Chiba 1978).
    """
    costs = -gains.double().cpu().numpy()
    rows, columns = costs.shape
    total = np.full((rows + 1, columns + 1), np.inf)
    step = np.zeros((rows + 1, columns + 1), np.int8)
    total[0, 0] = 0.0
    for diagonal in range(2, rows + columns + 1):  # cells whose predecessors are all known
        i = np.arange(max(1, diagonal - columns), min(rows, diagonal - 1) + 1)
        j = diagonal - i
        before = np.stack((total[i - 1, j - 1], total[i - 1, j], total[i, j - 1]))
        choice = before.argmin(0)
        step[i, j] = choice
        total[i, j] = costs[i - 1, j - 1] + before[choice, np.arange(len(i))]
    first, i, j = [0] * rows, rows, columns
    while i > 0:
        first[i - 1] = j - 1
        chosen = int(step[i, j])
        i, j = i - (chosen != 2), j - (chosen != 1)
    return first


def said_aloud(words: Sequence[Word], visible: Sequence[bool]) -> tuple[list[Word], list[int]]:
    """Words of tokens, of which some are `visible` -> the words of these alone, and their places.

    Blanks and special tokens are left out, and so is the end of the text: nothing is heard of them,
    so that what they read is anywhere.
    """
    places = [place for place, shown in enumerate(visible) if shown]
    before = [0]
    for shown in visible:
        before.append(before[-1] + shown)
    kept = [
        Word(w.text, before[w.first], before[w.stop])
        for w in words
        if not w.special and before[w.first] < before[w.stop]
    ]
    return kept, places


def word_times(gains: Tensor, words: Sequence[Word], seconds: float) -> list[Timed]:
    """gains (T, S) of the queries that write T tokens -> the times of their words.

    A word begins where its first token does, and ends where the token after it begins; the last
    one ends with the sound.
    """
    first = [*warped(gains), gains.shape[1]]
    return [Timed(w.text, first[w.first] * seconds, first[w.stop] * seconds) for w in words]


def path_times(
    best: Sequence[int], blank: int, units: Sequence[str], spelling: str, seconds: float
) -> list[Timed]:
    """The likeliest unit of each position (T') of a CTC model -> the times of words, exact to a
    position of so many `seconds`.

    A word begins where its first unit does, and ends after the last position of its last one. A
    trained model gives most positions to the blank, so that this is when it decides for a word,
    which is a part of the time that the word takes.
    """
    spoken: list[Timed] = []
    for place, unit in enumerate(best):
        start, end = place * seconds, (place + 1) * seconds
        if unit == blank:
            continue
        if place and best[place - 1] == unit:
            last = spoken.pop()
            spoken.append(Timed(last.text, last.start, end))
        else:
            spoken.append(Timed(units[unit], start, end))
    if spelling == "words":
        return spoken
    words: list[Timed] = []
    open_word = False
    for each in spoken:
        if each.text.isspace():
            open_word = False
        elif open_word:
            last = words.pop()
            words.append(Timed(last.text + each.text, last.start, each.end))
        else:
            words.append(each)
            open_word = True
    return words
