"""Scales are even, in order and distinct for every kind of colour vision: by formulas written
anew.
"""

from __future__ import annotations

import math
from itertools import combinations, pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from bigmodel_cli.attend import colours

Array = NDArray[np.float64]

SEEN = {  # Machado, Oliveira and Fernandes 2009, severity 1.0: matrices of linear sRGB
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
    "all colours": np.eye(3).tolist(),
}


def linear(rgb: Array) -> Array:
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def lab(rgb: Array, vision: str = "all colours") -> Array:
    """CIELAB under D65 of sRGB (N, 3), as a kind of vision sees it."""
    light = np.clip(linear(rgb) @ np.array(SEEN[vision]).T, 0, 1)
    to_xyz = np.array(
        [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750],
         [0.0193339, 0.1191920, 0.9503041]]
    )  # fmt: skip
    ratio = (light @ to_xyz.T) / to_xyz.sum(1)
    bent = np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), ratio / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack(
        [116 * bent[:, 1] - 16, 500 * (bent[:, 0] - bent[:, 1]), 200 * (bent[:, 1] - bent[:, 2])], 1
    )


def ciede2000(one: Array, two: Array) -> Array:
    """In degrees, after Sharma, Wu and Dalal 2005, equations 2 to 22."""
    mean = (np.hypot(*one.T[1:]) + np.hypot(*two.T[1:])) / 2
    grown = 1 + 0.5 * (1 - np.sqrt(mean**7 / (mean**7 + 25.0**7)))
    c1, c2 = np.hypot(grown * one[:, 1], one[:, 2]), np.hypot(grown * two[:, 1], two[:, 2])
    h1 = np.degrees(np.arctan2(one[:, 2], grown * one[:, 1])) % 360
    h2 = np.degrees(np.arctan2(two[:, 2], grown * two[:, 1])) % 360
    both = c1 * c2 != 0
    dh = np.where(both, (h2 - h1 + 180) % 360 - 180, 0)
    hm = np.where(both, h1 + dh / 2, h1 + h2) % 360
    lm, cm = (one[:, 0] + two[:, 0]) / 2, (c1 + c2) / 2

    def cos(angle: Array) -> Array:
        return np.asarray(np.cos(np.radians(angle)))

    t = 1 - 0.17 * cos(hm - 30) + 0.24 * cos(2 * hm) + 0.32 * cos(3 * hm + 6)
    t -= 0.2 * cos(4 * hm - 63)
    sl = 1 + 0.015 * (lm - 50) ** 2 / np.sqrt(20 + (lm - 50) ** 2)
    sc, sh = 1 + 0.045 * cm, 1 + 0.015 * cm * t
    rt = -2 * np.sqrt(cm**7 / (cm**7 + 25.0**7))
    rt *= np.sin(np.radians(60 * np.exp(-(((hm - 275) / 25) ** 2))))
    dl, dc = (two[:, 0] - one[:, 0]) / sl, (c2 - c1) / sc
    turned = 2 * np.sqrt(c1 * c2) * np.sin(np.radians(dh / 2)) / sh
    return np.asarray(np.sqrt(dl**2 + dc**2 + turned**2 + rt * dc * turned))


def contrast(one: tuple[int, ...], two: tuple[int, ...]) -> float:
    """Of WCAG 2.2."""
    pair = np.array([one, two]) / 255
    dark, light = sorted((linear(pair) @ np.array([0.2126, 0.7152, 0.0722])).tolist())
    return (light + 0.05) / (dark + 0.05)


def arms(name: str, dark: bool) -> list[Array]:
    """A scale, or each half of a diverging one from zero on."""
    table = np.array(colours.table(name, dark))
    return [table] if name == "sequential" else [table[255::-1], table[255:]]


SCALES = [(name, dark) for name in ("sequential", "diverging") for dark in (False, True)]


def test_ciede2000_is_that_of_published_pairs() -> None:
    pairs = np.array([
        [50, 2.6772, -79.7751, 50, 0, -82.7485, 2.0425],
        [50, 2.49, -0.001, 50, -2.49, 0.0009, 7.1792],
        [50, -0.001, 2.49, 50, 0.0011, -2.49, 4.7461],
        [50, 2.5, 0, 73, 25, -18, 27.1492],
        [50, -1, 2, 50, 0, 0, 2.3669],
        [2.0776, 0.0795, -1.135, 0.9033, -0.0636, -0.5514, 0.9082],
    ])  # fmt: skip
    assert np.abs(ciede2000(pairs[:, :3], pairs[:, 3:6]) - pairs[:, 6]).max() < 1e-4


@pytest.mark.parametrize(("name", "dark"), SCALES)
def test_equal_steps_look_equal(name: str, dark: bool) -> None:
    for arm in arms(name, dark):
        assert len(arm) == 256
        assert arm.min() >= 0
        assert arm.max() <= 1
        steps = ciede2000(lab(arm[:-1]), lab(arm[1:]))
        assert 0.98 < steps.min() / steps.mean() <= steps.max() / steps.mean() < 1.02
        assert steps.sum() > 70  # many levels apart
        whole = np.round(255 * arm[::17]) / 255  # as screens have them
        steps = ciede2000(lab(whole[:-1]), lab(whole[1:]))
        assert 0.8 < steps.min() / steps.mean() <= steps.max() / steps.mean() < 1.2


@pytest.mark.parametrize("vision", SEEN)
@pytest.mark.parametrize(("name", "dark"), SCALES)
def test_lightness_only_rises_or_only_falls(name: str, dark: bool, vision: str) -> None:
    for arm in arms(name, dark):
        steps = np.diff(lab(arm, vision)[:, 0])
        assert (steps > 0).all() if dark else (steps < 0).all()
        assert abs(steps.sum()) > 70  # the whole of it in grey


@pytest.mark.parametrize("vision", SEEN)
@pytest.mark.parametrize("dark", [False, True])
def test_signs_differ_and_zero_is_without_colour(dark: bool, vision: str) -> None:
    below, above = (lab(arm, vision) for arm in arms("diverging", dark))
    assert (below[0] == above[0]).all()
    assert np.hypot(*below[0, 1:]) < 1
    apart = ciede2000(below, above)
    assert (apart[32:] > 10).all()
    assert (apart[64:192] > 25).all()
    assert np.abs(below[:, 0] - above[:, 0]).max() < 15  # equal strength looks equally strong


@pytest.mark.parametrize("vision", SEEN)
def test_classes_are_told_apart(vision: str) -> None:
    assert "".join(colours.CLASSES) == "spilcux"
    found = lab(np.array(list(colours.CLASSES.values())) / 255, vision)
    apart = [ciede2000(a[None], b[None])[0] for a, b in combinations(found, 2)]
    assert min(apart) > 15
    if vision == "all colours":  # printed in grey
        assert min(b - a for a, b in pairwise(sorted(found[:, 0]))) > 6


def test_ink_is_read_on_every_colour() -> None:
    places = np.linspace(-1, 1, 101)
    every = [
        *colours.CLASSES.values(),
        *(colours.sequential(float(x), dark) for x in places for dark in (False, True)),
        *(colours.diverging(float(x), dark) for x in places for dark in (False, True)),
    ]
    assert min(contrast(colour, colours.ink_on(colour)) for colour in every) >= 4.5
    for dark, ground in ((False, (255, 255, 255)), (True, (0, 0, 0))):
        assert contrast(colours.sequential(0, dark), (255 - ground[0],) * 3) >= 15
        assert contrast(colours.sequential(1, dark), ground) >= 15


def test_places_beyond_the_ends_are_the_ends() -> None:
    first, last = colours.sequential(0), colours.sequential(1)
    assert first != last
    assert [colours.sequential(x) for x in (-3, math.nan, 2)] == [first, first, last]
    table = colours.table("diverging")
    assert len(table) == 511
    assert colours.diverging(0) == tuple(round(255 * c) for c in table[255])
    assert colours.diverging(-9) == tuple(round(255 * c) for c in table[0])
    assert colours.hexadecimal((0, 80, 182)) == "#0050b6"


@pytest.mark.parametrize("keys", [1, 8, 1000, 100_000])
def test_levels_are_logarithmic_above_even_weights(keys: int) -> None:
    assert colours.level(0, keys) == colours.level(-0.1, keys) == colours.level(math.nan, keys) == 0
    assert colours.level(1, keys) == colours.level(1.5, keys) == 1
    assert colours.level(1 / keys, keys) == pytest.approx(math.log(2) / math.log(1 + keys))
    rising = [colours.level(x / 50, keys) for x in range(51)]
    assert all(a < b for a, b in pairwise(rising))
