"""When each word of a recording is said, over what the model heard."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from bigmodel_cli.attend.look import Look
from bigmodel_cli.attend.picture.frame import LEAST_WIDTH, draw_caption, draw_header, finish
from bigmodel_cli.attend.picture.labels import label, label_width
from bigmodel_cli.attend.picture.maps import Array, Scale
from bigmodel_cli.attend.picture.sheet import LINE, MARGIN, SANS, Pixels, Sheet, array_of
from bigmodel_cli.attend.times import Heard, Times
from bigmodel_cli.console import counted
from bigmodel_cli.pictures import plain_names

WIDE, MOST_WIDE, HIGH = 1500, 2600, 460
"""Pixels of the spectrogram."""
PITCH, SIZE, LABEL = 34, 7.0, 24
STRIP = 22
SPANS = ("#0072b2", "#e69f00")
"""Colours of words, which take turns."""


def draw_times(times: Times, heard: Heard, path: Path, look: Look) -> None:
    """The words above their spans, and the spectrogram below with lines where words begin.

    Of the look its model, title, answer and notes are said.
    """
    frames = array_of(heard.frames)
    length = frames.shape[1] * heard.seconds
    wide = max(WIDE, min(MOST_WIDE, PITCH * len(times.words)))
    sheet, x = Sheet(), MARGIN + 120.0
    width = max(LEAST_WIDTH, 120.0 + wide)
    facts = [f"{length:.2f} seconds", counted(len(times.words), "word")]
    y = draw_header(sheet, look, width, facts)
    names = plain_names([label(word.text.strip(), LABEL) for word in times.words])
    y += label_width(names, SIZE, SANS) + 40
    scale, taken, left_out = wide / length, -math.inf, 0
    boxes = []
    for name, word in zip(names, times.words, strict=True):
        start, stop = (x + scale * min(at, length) for at in (word.start, word.end))
        boxes.append((start, y, max(3.0, stop - start), STRIP))
        middle = (start + stop) / 2
        if middle - taken < PITCH - 4:
            left_out += 1
            continue
        taken = middle
        sheet.text(middle, y - 12, name, SIZE, upwards=True)
    sheet.boxes(boxes, [SPANS[n % 2] for n in range(len(boxes))])
    y += STRIP + 6
    by = math.ceil(frames.shape[1] / MOST_WIDE)
    pixels = _pixels(frames, by)
    sheet.image(x, y, pixels, wide * pixels.shape[1] * by / frames.shape[1], HIGH)
    sheet.lines([[(b[0], y - 6), (b[0], y + HIGH)] for b in boxes], "#ffffff", 0.5)
    bottom = _draw_axes(sheet, x, y, (wide, HIGH), heard)
    how = (
        f"Above, when each word is said, by {times.rule}; below, the sound as the network is given"
        " it: bright is loud."
    )
    if left_out:
        how += f" {counted(left_out, 'word has', 'words have')} no room for a name."
    finish(sheet, path, width, draw_caption(sheet, bottom, look, width, how, checked=False))


def _pixels(frames: Array, by: int) -> Pixels:
    """The frames (mels, T) in colours (mels, T / by, 4), low bands below, as means of `by`."""
    padded = np.pad(frames, [(0, 0), (0, -frames.shape[1] % by)], mode="edge")
    means = padded.reshape(len(frames), -1, by).mean(-1)
    low, high = np.quantile(means, (0.02, 0.998))
    table = Scale(1, dark=True).table
    places = np.clip((means - low) / max(float(high - low), 1e-9), 0, 1)
    return np.asarray(table[np.round(places * (len(table) - 1)).astype(int)][::-1])


def _draw_axes(sheet: Sheet, x: float, y: float, size: tuple[float, float], heard: Heard) -> float:
    """Ticks in Hz on the left and in seconds below; returns the lowest edge."""
    wide, high = size
    bands, frames = heard.frames.shape
    up, across = heard.ticks
    ticks = [[(x, y), (x, y + high), (x + wide, y + high)]]
    for place, name in up:
        at = y + high * (1 - place / bands)
        ticks.append([(x - 8, at), (x, at)])
        sheet.text(x - 14, at, name, 6, ha="right")
    for place, name in across:
        at = x + wide * place / frames
        ticks.append([(at, y + high), (at, y + high + 8)])
        sheet.text(at, y + high + 26, name, 6, ha="center")
    sheet.lines(ticks, LINE, 0.5)
    return y + high + 50
