"""Colours until attend/colours.py is there."""

from __future__ import annotations

import math

RGB = tuple[int, int, int]
CLASSES: dict[str, RGB] = {
    "s": (0x00, 0x50, 0xB6),
    "p": (0xE5, 0x79, 0x1B),
    "i": (0xA3, 0x50, 0x23),
    "l": (0x7B, 0xD6, 0xFF),
    "c": (0x90, 0x76, 0x98),
    "u": (0xFF, 0xDE, 0x3A),
    "x": (0xAD, 0xAD, 0xAD),
}
LEGEND = {
    "s": ("sink", "first key >= 0.5"),
    "p": ("previous", "token before >= 0.5"),
    "i": ("induction", "after a match >= 0.4"),
    "l": ("local", "mean distance <= 4"),
    "c": ("column", "one key >= 0.3"),
    "u": ("uniform", "entropy >= 0.9 of even"),
    "x": ("other", "none of these"),
}


def _mixed(low: RGB, high: RGB, x: float) -> RGB:
    red, green, blue = (round(a + (b - a) * x) for a, b in zip(low, high, strict=True))
    return red, green, blue


def level(weight: float, keys: int) -> float:
    """As in colours."""
    return math.log1p(min(max(0.0, weight), 1.0) * keys) / math.log1p(keys)


def ink_on(colour: RGB) -> RGB:
    """Black or white."""
    return (0, 0, 0) if sum(colour) > 330 else (255, 255, 255)


def sequential(x: float, dark: bool = False) -> RGB:
    """From dark to light."""
    return _mixed((16, 24, 48), (255, 224, 96), x)


def diverging(x: float, dark: bool = False) -> RGB:
    """Blue below zero, red above."""
    return _mixed((20, 20, 20), (178, 24, 43) if x > 0 else (33, 102, 172), abs(x))
