"""Colours of all views: even to the eye, in order without colour vision and in grey.

A scale is a path through OKLCh (Ottosson 2020), walked in equal steps of CIEDE2000 (Sharma et al.
2005), so that equal differences look equal; its CIELAB lightness only rises or only falls, for
people with protanopia, deuteranopia and tritanopia too. tests/attend/test_colours.py proves it by
formulas of its own.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from itertools import accumulate, pairwise

from bigmodel_cli.attend.perceived import delta_e, lab_of, rgb_of

RGB = tuple[int, int, int]
"""sRGB, 0 to 255 each."""
Point = tuple[float, float, float]

STEPS = 256
FINE = 512  # pieces of a path that are measured

PATHS: dict[str, list[Point]] = {  # OKLCh: lightness 0..1, chroma, hue in degrees
    "sequential": [  # on white: nearly white, green, blue, nearly black
        (0.97, 0.012, 95), (0.90, 0.055, 150), (0.78, 0.095, 195), (0.62, 0.115, 235),
        (0.47, 0.125, 262), (0.34, 0.11, 285), (0.22, 0.06, 300),
    ],
    "sequential dark": [  # on black: nearly black, blue, green, pale yellow
        (0.20, 0.035, 290), (0.33, 0.10, 280), (0.46, 0.125, 262), (0.61, 0.115, 235),
        (0.76, 0.10, 195), (0.88, 0.10, 145), (0.97, 0.07, 105),
    ],
    "below": [  # from zero down, on white: blue
        (0.965, 0, 245), (0.86, 0.05, 245), (0.72, 0.10, 245), (0.55, 0.13, 252),
        (0.40, 0.11, 260), (0.28, 0.07, 265),
    ],
    "above": [  # from zero up, on white: orange to brown
        (0.965, 0, 70), (0.86, 0.055, 70), (0.73, 0.115, 62), (0.57, 0.14, 50),
        (0.42, 0.115, 40), (0.28, 0.07, 35),
    ],
    "below dark": [
        (0.21, 0, 255), (0.36, 0.075, 258), (0.52, 0.125, 252), (0.68, 0.11, 242),
        (0.82, 0.07, 235), (0.94, 0.03, 230),
    ],
    "above dark": [
        (0.21, 0, 45), (0.36, 0.08, 45), (0.52, 0.125, 50), (0.68, 0.135, 60),
        (0.82, 0.10, 75), (0.94, 0.05, 90),
    ],
}  # fmt: skip

CLASSES: dict[str, RGB] = {
    "s": (0x00, 0x50, 0xB6),
    "p": (0xE5, 0x79, 0x1B),
    "i": (0xA3, 0x50, 0x23),
    "l": (0x7B, 0xD6, 0xFF),
    "c": (0x90, 0x76, 0x98),
    "u": (0xFF, 0xDE, 0x3A),
    "x": (0xAD, 0xAD, 0xAD),
}
"""Of the classes of heads by letter: found by moving Okabe and Ito's colours (2008) apart until
any two differ for every kind of colour vision, and in grey."""


def level(weight: float, keys: int) -> float:
    """Where on a scale a weight is: 0 for 0, 1 for 1, logarithmic above the 1/T of even weights.

    It is log(1 + w T) / log(1 + T) for T `keys`; a weight below 0 (or NaN) is 0, one above 1 is 1.
    """
    return math.log1p(min(max(0.0, weight), 1.0) * keys) / math.log1p(keys)


def sequential(place: float, dark: bool = False) -> RGB:
    """The colour of 0 to 1 on a white ground, or on a black one."""
    return _at(table("sequential", dark), place)


def diverging(place: float, dark: bool = False) -> RGB:
    """The colour of -1 to 1: blue below zero, orange above; zero is the ground's own shade."""
    return _at(table("diverging", dark), (place + 1) / 2)


@functools.cache
def table(name: str, dark: bool = False) -> tuple[Point, ...]:
    """A scale as colours of sRGB, 0 to 1 each: 256 of "sequential", 511 of "diverging" (zero is
    the one in the middle).
    """
    kind = " dark" if dark else ""
    if name == "sequential":
        return _even(PATHS[name + kind])
    below, above = _even(PATHS["below" + kind]), _even(PATHS["above" + kind])
    return (*below[:0:-1], *above)


def ink_on(colour: RGB) -> RGB:
    """Black or white, whichever is read better on a colour: its contrast is at least 4.5 : 1."""
    black = (0, 0, 0)
    light = luminance(colour)
    return black if (light + 0.05) / 0.05 >= 1.05 / (light + 0.05) else (255, 255, 255)


def luminance(colour: RGB) -> float:
    """Relative luminance (WCAG 2.2), 0 to 1."""
    parts = [value / 255 for value in colour]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def hexadecimal(colour: RGB) -> str:
    """As CSS and matplotlib write it: #0050b6."""
    return "#" + "".join(f"{value:02x}" for value in colour)


def _at(colours: Sequence[Point], place: float) -> RGB:
    place = min(max(0.0, place), 1.0)  # NaN becomes 0
    red, green, blue = colours[round(place * (len(colours) - 1))]
    return round(255 * red), round(255 * green), round(255 * blue)


def _even(points: Sequence[Point]) -> tuple[Point, ...]:
    """`STEPS` colours along the curve through the points, equally far from one another."""
    fine = [rgb_of(point) for point in _curve(points)]
    gone = list(accumulate((delta_e(lab_of(a), lab_of(b)) for a, b in pairwise(fine)), initial=0.0))
    chosen, place = [], 0
    for step in range(STEPS):
        wanted = gone[-1] * step / (STEPS - 1)
        while place < FINE - 1 and gone[place + 1] < wanted:
            place += 1
        part = (wanted - gone[place]) / (gone[place + 1] - gone[place])
        red, green, blue = (
            a + (b - a) * part for a, b in zip(fine[place], fine[place + 1], strict=True)
        )
        chosen.append((red, green, blue))
    return tuple(chosen)


def _curve(points: Sequence[Point]) -> list[Point]:
    """Points of OKLab on a Catmull-Rom spline through points of OKLCh."""
    turned = [
        (light, chroma * math.cos(math.radians(hue)), chroma * math.sin(math.radians(hue)))
        for light, chroma, hue in points
    ]
    padded = [turned[0], *turned, turned[-1]]
    curve: list[Point] = []
    for step in range(FINE + 1):
        whole, u = divmod(step * (len(turned) - 1) / FINE, 1.0)
        if whole == len(turned) - 1:
            whole, u = whole - 1, 1.0
        light, green_red, blue_yellow = (
            b + (c - a) * u / 2 + (2 * a - 5 * b + 4 * c - d) * u**2 / 2
            + (3 * b - a - 3 * c + d) * u**3 / 2
            for a, b, c, d in zip(*padded[int(whole) : int(whole) + 4], strict=True)
        )  # fmt: skip
        curve.append((light, green_red, blue_yellow))
    return curve
