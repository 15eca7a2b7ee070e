"""The times of words in a recording, of a model's own reading of it."""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping
from typing import Any

from bigmodel_cli.attend.pairs import Pair, crossings
from bigmodel_cli.attend.times import (
    MOST_HEADS,
    Heard,
    Times,
    aligning_heads,
    monotone_share,
    path_times,
    said_aloud,
    standing_out,
    word_times,
)
from bigmodel_cli.attend.words import pieces_of
from bigmodel_cli.console import columns_of, counted, cut, one_line
from bigmodel_cli.convert.generation import alignment_heads
from bigmodel_cli.data import input_of
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.loaded import Loaded


def seconds_of(loaded: Loaded, frames: int, positions: int) -> float:
    """How long a position of the encoder lasts, where a recording of so many frames has so many."""
    sound = loaded.info.sound
    assert sound is not None
    return sound.hop / sound.rate * max(1, round(frames / positions))


def heard_of(loaded: Loaded, frames: Tensor, seconds: float | None = None) -> Heard:
    """frames (1, T, mels) that a model was given, up to so many seconds -> what it heard."""
    sound = loaded.info.sound
    assert sound is not None
    each = sound.hop / sound.rate
    count = frames.shape[1] if seconds is None else max(1, math.ceil(seconds / each))
    ticks = input_of(loaded.info).ticks(count)
    assert ticks is not None
    return Heard(frames[0, :count].T.float().cpu(), each, ticks)


def times_of(pair: Pair) -> Times | None:
    """The times of the words that an encoder-decoder wrote down; None where it wrote nothing.

    Cross-attention of the heads that read the sound in order is warped to the frames (as in the
    code of Whisper, Radford et al. 2022; unlike there, of the queries that write something audible
    alone: what blanks and the end read is anywhere in small models). Heads are those that the model
    was published with, else the most monotone ones.
    """
    pieces = pieces_of(pair.tokenizer, pair.tokens)
    special = pair.tokenizer.special
    visible = [
        token not in special and not piece.isspace()
        for token, piece in zip(pair.tokens, pieces, strict=True)
    ]
    words, places = said_aloud(pair.words(), visible)
    if not words:
        return None
    queries = torch.tensor(places) + pair.begins - 1
    named = set(alignment_heads(pair.loaded.assets) or ())
    best: list[tuple[float, tuple[int, int], Tensor]] = []
    published: list[tuple[float, tuple[int, int], Tensor]] = []
    frames, seconds = pair.batch["frames"].shape[1], 1.0
    for layer, (_, weights, _) in enumerate(crossings(pair)):
        seconds = seconds_of(pair.loaded, frames, weights.shape[-1])
        real = max(1, math.ceil((pair.heard or 0.0) / seconds))  # without silence behind it
        rows = weights[:, queries, :real]
        own = [((layer, head), share) for head, share in enumerate(monotone_share(rows).tolist())]
        new = [(share, head, rows[head[1]]) for head, share in own]
        published += [each for each in new if each[1] in named]
        best = heapq.nlargest(MOST_HEADS, [*best, *new], key=lambda each: each[0])
    rule, used = "the model's published alignment heads", published
    if not named or len(published) < len(named):  # none, or of another network
        near = aligning_heads([(head, share) for share, head, _ in best])
        rule, used = (
            "the heads that read the sound most in order",
            [e for e in best if e[1] in near],
        )
    heads, chosen = sorted(head for _, head, _ in used), torch.stack([rows for *_, rows in used])
    return Times(word_times(standing_out(chosen, seconds), words, seconds), rule, seconds, heads)


def ctc_times(loaded: Loaded, logits: Tensor, lengths: Tensor, frames: int) -> Times:
    """logits (1, T', V) of a CTC model -> the times of the words of the best path."""
    best = logits[0, : int(lengths[0])].argmax(-1).tolist()
    seconds = seconds_of(loaded, frames, logits.shape[1])
    info, blank = loaded.info, logits.shape[-1] - 1
    words = path_times(best, blank, info.classes, info.spelling, seconds)
    return Times(words, "the likeliest unit of each position", seconds, [])


def shown(table: Mapping[str, Any], width: int = 100, most: int = 12) -> list[str]:
    """Lines for a terminal of what `Times.to_json` gives: `0.42-0.80 word`, many to a line, at most
    so many lines of words.
    """
    rows, row, placed = list[str](), "", 0
    for word in table["words"]:
        part = f"{word['start']:.2f}-{word['end']:.2f} {one_line(word['word'])}"
        if row and columns_of(f"{row}   {part}") > width:
            rows.append(row)
            row = ""
            if len(rows) == most:
                break
        row = f"{row}   {part}" if row else cut(part, width)
        placed += 1
    rows += [row] if row else []
    left_out = len(table["words"]) - placed
    more = [f"({counted(left_out, 'more word')}: --json)"] if left_out else []
    return [f"words and their seconds, by {table['rule']}", *rows, *more]
