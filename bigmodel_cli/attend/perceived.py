"""How different two colours look: OKLab to sRGB, sRGB to CIELAB, CIEDE2000."""

from __future__ import annotations

import math

Point = tuple[float, float, float]


def rgb_of(point: Point) -> Point:
    """A colour of OKLab (Ottosson 2020) as one of sRGB, 0 to 1 each, clipped."""
    light, a, b = point
    long = (light + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (light - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (light - 0.0894841775 * a - 1.2914855480 * b) ** 3
    return (
        _encoded(4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short),
        _encoded(-1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short),
        _encoded(-0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short),
    )


def lab_of(colour: Point) -> Point:
    """A colour of sRGB as one of CIELAB (D65): lightness 0..100, a, b."""
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour)
    x = _root((0.4124564 * red + 0.3575761 * green + 0.1804375 * blue) / 0.95047)
    y = _root(0.2126729 * red + 0.7151522 * green + 0.0721750 * blue)
    z = _root((0.0193339 * red + 0.1191920 * green + 0.9503041 * blue) / 1.08883)
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


def delta_e(one: Point, other: Point) -> float:
    """CIEDE2000 between two colours of CIELAB (Sharma, Wu and Dalal 2005)."""
    mean_7 = ((math.hypot(*one[1:]) + math.hypot(*other[1:])) / 2) ** 7
    stretch = 1.5 - 0.5 * math.sqrt(mean_7 / (mean_7 + 25.0**7))
    (light_1, a_1, b_1), (light_2, a_2, b_2) = one, other
    chroma_1, chroma_2 = math.hypot(stretch * a_1, b_1), math.hypot(stretch * a_2, b_2)
    hue_1, hue_2 = math.atan2(b_1, stretch * a_1), math.atan2(b_2, stretch * a_2)
    turn = math.remainder(hue_2 - hue_1, math.tau) if chroma_1 * chroma_2 else 0.0
    hue = hue_1 + turn / 2 if chroma_1 * chroma_2 else hue_1 + hue_2
    light, chroma = (light_1 + light_2) / 2, (chroma_1 + chroma_2) / 2
    wave = (
        1
        - 0.17 * math.cos(hue - math.radians(30))
        + 0.24 * math.cos(2 * hue)
        + 0.32 * math.cos(3 * hue + math.radians(6))
        - 0.20 * math.cos(4 * hue - math.radians(63))
    )
    from_blue = (math.degrees(hue) % 360 - 275) / 25
    turned = 2 * math.sqrt(chroma**7 / (chroma**7 + 25.0**7))
    turned *= -math.sin(math.radians(60 * math.exp(-(from_blue**2))))
    away = (light - 50) ** 2
    by_light = (light_2 - light_1) / (1 + 0.015 * away / math.sqrt(20 + away))
    by_chroma = (chroma_2 - chroma_1) / (1 + 0.045 * chroma)
    by_hue = 2 * math.sqrt(chroma_1 * chroma_2) * math.sin(turn / 2) / (1 + 0.015 * chroma * wave)
    return math.sqrt(by_light**2 + by_chroma**2 + by_hue**2 + turned * by_chroma * by_hue)


def _encoded(linear: float) -> float:
    value = 12.92 * linear if linear <= 0.0031308 else 1.055 * linear ** (1 / 2.4) - 0.055
    return min(max(0.0, value), 1.0)


def _root(part: float) -> float:
    return part ** (1 / 3) if part > 216 / 24389 else (24389 / 27 * part + 16) / 116
