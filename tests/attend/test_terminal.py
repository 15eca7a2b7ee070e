"""The view in a terminal: it fits any, shows what is there, and never changes by accident.

`python tests/attend/test_terminal.py` writes the golden files anew; look at them before they are
committed.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import math
import random
import re
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
import screens
import torch
from looks import made

from bigmodel_cli.attend import colours
from bigmodel_cli.attend.look import Look
from bigmodel_cli.attend.telling import pooled, readings, telling
from bigmodel_cli.attend.terminal import Style, show, style_of
from bigmodel_cli.attend.terminal.style import MANY, NONE, STEPS, TRUE, nearest
from bigmodel_cli.attend.terminal.words import label, safe, width_of

GOLDEN = Path(__file__).parent / "golden"
STYLES = {
    "true": Style(TRUE),
    "256": Style(MANY),
    "light": Style(TRUE, dark=False),
    "plain": Style(NONE),
    "ascii": Style(NONE, unicode=False),
}
LOOKS: dict[str, Callable[[], Look]] = {
    "decoder": lambda: made(6, 8, 60),
    "large": lambda: made(48, 32, 24),
    "image": screens.of_image,
    "translation": screens.of_translation,
    "alignment": screens.of_alignment,
    "rollout": screens.of_rollout,
    "experts": screens.of_experts,
    "tested": screens.of_image_tested,
    "mixing": screens.of_mixing,
    "convolutions": screens.of_convolutions,
}
SIZES = {"100x40": (100, 40), "80x24": (80, 24)}
CODES = re.compile(r"\x1b\[[\d;]*m")


def golden_files() -> dict[str, str]:
    """Their names and what is to be in them: every style of one look, two of the others."""
    wanted = {}
    for name, look in LOOKS.items():
        for kind, style in STYLES.items():
            if name != "decoder" and kind not in ("true", "ascii"):
                continue
            for size, (width, height) in SIZES.items():
                wanted[f"{name}_{size}_{kind}.txt"] = show(look(), width, height, style) + "\n"
    return wanted


def test_views_are_those_that_were_looked_at() -> None:
    found = {path.name: path.read_text(encoding="utf-8") for path in GOLDEN.glob("*_*x*_*.txt")}
    assert found == golden_files()


def test_a_long_caption_of_a_map_is_said_with_the_images() -> None:
    look = screens.of_image_tested()
    assert look.heat is not None
    heat = dataclasses.replace(look.heat, method="attention rollout (a heuristic)")
    shown = show(dataclasses.replace(look, heat=heat), 80, 24, STYLES["plain"])
    assert "rollout (a heuristic), image" in shown
    assert "rol…" not in shown


def columns_of(line: str) -> int:
    """Columns by Unicode's own tables."""
    total = 0
    for character in line:
        if (
            unicodedata.category(character) in ("Mn", "Me", "Cf")
            or "\u1160" <= character <= "\u11ff"
        ):
            continue
        total += 2 if unicodedata.east_asian_width(character) in "WF" else 1
    return total


def assert_fits(text: str, width: int, height: int, style: Style) -> None:
    lines = text.split("\n")
    assert len(lines) <= max(1, height - 1)
    for line in lines:
        bare = CODES.sub("", line)
        assert columns_of(bare) <= width, bare
        assert all(c.isprintable() for c in bare), repr(bare)
        if not style.colours:
            assert bare == line
        elif line != bare:
            assert CODES.findall(line)[-1] == "\x1b[0m"
        assert style.unicode or bare.isascii()


ODD = [
    "\x1b]52;c;aGk=\x07", "\r", "\n", "\t", "\x00", "\u202eevil", "\u2066x\u2069", "漢字", "한국어",
    "👍🏽", "👩\u200d👩\u200d👧", "🇩🇪", "❤\ufe0f", "e\u0301", "\u0301\u0302\u0303\u0304", "שלום",
    "مرحبا", "", "a" * 3000, "漢" * 500, "\ud800", "</script>", "\u00a0", "\u3000", "\u0ba8\u0bbf",
    "z\u0335" * 40, " ", "\u1100\u1161\u11a8", "\U000e0100", "\x9b31m", "$x$", "\\x41", "%s{}",
    "\u00ad", "ﷺ",
]  # fmt: skip


def hostile(generator: random.Random) -> str:
    """A piece of the list, or characters from all of Unicode."""
    if generator.random() < 0.5:
        return generator.choice(ODD)
    count = generator.randrange(6)
    return "".join(chr(generator.randrange(0x11, 0x30000)) for _ in range(count))


@pytest.mark.parametrize("seed", range(6))
def test_it_fits_any_terminal_whatever_the_tokens_are(seed: int) -> None:
    generator = random.Random(seed)
    labels = [hostile(generator) for _ in range(generator.choice([1, 2, 7, 40]))]
    look = screens.of_text(labels, generator.choice([1, 3, 14]), generator.choice([1, 3, 12]))
    notes = [hostile(generator) for _ in range(3)]
    look = dataclasses.replace(
        look, model=hostile(generator), answer=hostile(generator), notes=notes
    )
    for style in STYLES.values():
        for _ in range(6):
            width, height = generator.randrange(1, 140), generator.randrange(1, 60)
            assert_fits(show(look, width, height, style), width, height, style)


@pytest.mark.parametrize("name", LOOKS)
@pytest.mark.parametrize("kind", STYLES)
def test_every_kind_of_model_fits_many_sizes(name: str, kind: str) -> None:
    look = LOOKS[name]()
    for width, height in ((1, 1), (3, 4), (20, 8), (40, 13), (80, 24), (100, 40), (200, 70)):
        assert_fits(show(look, width, height, STYLES[kind]), width, height, STYLES[kind])


@pytest.mark.parametrize("size", SIZES.values())
@pytest.mark.parametrize(
    ("layers", "heads", "tokens"), [(2, 2, 1), (1, 1, 2), (2, 2, 300), (12, 12, 90), (48, 32, 8)]
)
def test_all_sections_are_there(
    layers: int, heads: int, tokens: int, size: tuple[int, int]
) -> None:
    text = show(made(layers, heads, tokens), *size, STYLES["plain"])
    for words in ("P v = kernel", "sink", "reads", "telling heads", "--ablate"):
        assert words in text.replace("\n", " "), text
    assert "(1 - sink) x (1 - entropy)" in text


def test_each_head_has_its_letter_in_its_place() -> None:
    look = made(5, 7, 9)
    lines = show(look, 100, 40, STYLES["ascii"]).split("\n")
    for number, layer in enumerate(look.layers):
        row = next(line for line in lines if line.startswith(f"{number:>2} "))
        assert row[3:17].replace(" ", "") == layer.letters


def test_a_large_grid_says_how_many_heads_a_letter_is_of() -> None:
    assert "each letter" not in show(made(48, 32, 4), 100, 40, STYLES["plain"])
    assert "of up to 4 x 4 heads" in show(made(48, 32, 4), 80, 24, STYLES["plain"])


def test_a_hundred_thousand_tokens_are_a_screen() -> None:
    small = made(2, 3, 64)
    labels = [f" w{k}" for k in range(100_000)]
    side = dataclasses.replace(small.layers[0].keys, labels=labels, ids=None)
    read = torch.zeros(3, 100_000)
    read[:, 0], read[:, 43_210], read[:, 99_999] = 0.6, 0.3, 0.1
    blocks = dataclasses.replace(small.layers[0].blocks, rows=1563, columns=1563)
    layers = [
        dataclasses.replace(
            layer, queries=side, keys=side, query=99_999, read=read, moved=None, blocks=blocks
        )
        for layer in small.layers
    ]
    text = show(dataclasses.replace(small, layers=layers), 100, 40, STYLES["plain"])
    assert_fits(text, 100, 40, STYLES["plain"])
    assert "@43207  w43207 w43208 w43209 w43210 w43211 w43212 w43213" in text
    assert "w99999" in text
    assert "60 % on 'w0', not shaded" in text
    assert "block maximum" in text


def test_a_text_is_shaded_by_what_the_query_reads() -> None:
    look = made(2, 3, 10)
    read = torch.zeros(3, 10)
    read[:, 4], read[:, 7] = 0.8, 0.2
    layers = [dataclasses.replace(layer, read=read, moved=None) for layer in look.layers]
    lines = show(dataclasses.replace(look, layers=layers), 100, 40, STYLES["ascii"]).split("\n")
    place = next(k for k, line in enumerate(lines) if "reads (" in line)
    assert "80 %" in lines[place]
    text, below = lines[place + 1], lines[place + 2].ljust(len(lines[place + 1]))
    labels = [safe(token, unicode=False) for token in look.layers[0].keys.labels]
    begins = [len("".join(labels[:k])) for k in range(11)]
    assert text == "".join(labels)
    marks = [set(below[begins[k] : begins[k + 1]]) for k in range(10)]
    assert marks[4] == {"@"}
    assert marks[9] == {"^"}
    assert marks[7] == {Style(NONE, False).shades[1 + int(math.sqrt(0.25) * 9)]}
    assert all(found == {" "} for k, found in enumerate(marks) if k not in (4, 7, 9))


def test_what_is_read_is_the_mean_of_heads_that_are_no_sinks_by_what_they_move() -> None:
    look = made(3, 5, 12, seed=4)
    expected = torch.zeros(12, dtype=torch.float64)
    for layer in look.layers:
        assert layer.moved is not None
        rows = [layer.moved[h].double() for h in range(5) if layer.letters[h] != "s"]
        expected += sum(rows) / sum(float(row.sum()) for row in rows)
    expected /= 3
    (reading,) = readings(look)
    assert float(reading.first) == pytest.approx(float(expected[0]))
    assert torch.allclose(reading.weights[1:], expected[1:])
    assert reading.what == "mean of 12 of 15 heads, no sinks, by |w| |v W_O|"


def test_telling_heads_are_unlike_one_another() -> None:
    look = made(4, 5, 40)
    chosen = telling(look)
    kinds = [(5 * one.layer + one.head) % 5 for one in chosen]
    assert len(set(kinds[:3])) == 3
    assert 0 not in kinds[:3], "sinks come last"
    twice = dataclasses.replace(look, layers=[look.layers[0], look.layers[0]])
    first = telling(twice, 3)
    assert len({one.head for one in first}) == 3, "of two equal heads one is shown"


def test_blocks_keep_the_largest_value_and_blanks() -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.rand(37, 53, generator=generator)
    matrix = torch.where(torch.ones(37, 53).triu(17).bool(), math.nan, matrix)
    got = pooled(matrix, 5, 7)
    for row in range(5):
        for column in range(7):
            rows = [i for i in range(37) if i * 5 // 37 == row]
            across = [j for j in range(53) if j * 7 // 53 == column]
            values = [float(matrix[i, j]) for i in rows for j in across]
            seen = [x for x in values if not math.isnan(x)]
            if seen:
                assert float(got[row, column]) == pytest.approx(max(seen))
            else:
                assert math.isnan(float(got[row, column]))
    signed = torch.tensor([[0.2, -0.9], [0.1, 0.3]])
    assert float(pooled(signed, 1, 1)) == pytest.approx(-0.9)


def test_signed_weights_are_never_called_shares() -> None:
    text = show(screens.of_mixing(), 100, 40, STYLES["plain"])
    assert "signed" in text
    assert "sinks" not in text
    assert "%" not in text


@pytest.mark.parametrize("dark", [True, False])
def test_256_colours_keep_the_order_of_the_scale(dark: bool) -> None:
    def light(number: int) -> float:
        cube = number - 16
        parts = [STEPS[cube // 36 % 6], STEPS[cube // 6 % 6], STEPS[cube % 6]]
        if number >= 232:
            parts = [8 + 10 * (number - 232)] * 3
        linear = [(part / 255) ** 2.2 for part in parts]
        return 100 * (0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]) ** (1 / 2.4)

    found = [light(nearest(colours.sequential(k / 20, dark))) for k in range(21)]
    order = found if dark else found[::-1]
    assert all(b >= a - 0.5 for a, b in itertools.pairwise(order)), found
    assert len({round(x) for x in found}) >= 10
    assert nearest((0, 0, 0)) in (16, 232)
    assert nearest((255, 255, 255)) == 231


class Stream(io.StringIO):
    """A stream with an encoding that is a terminal or not."""

    def __init__(self, encoding: str, terminal: bool) -> None:
        super().__init__()
        self._encoding, self._terminal = encoding, terminal

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding

    def isatty(self) -> bool:
        return self._terminal


@pytest.mark.parametrize(
    ("environ", "encoding", "terminal", "only_ascii", "expected"),
    [
        ({"TERM": "xterm-256color", "COLORTERM": "truecolor"}, "utf-8", True, False, Style(TRUE)),
        ({"TERM": "xterm-256color"}, "UTF-8", True, False, Style(MANY)),
        ({"TERM": "screen-256color"}, "latin-1", True, False, Style(MANY, unicode=False)),
        ({"TERM": "xterm-kitty"}, "utf-8", True, False, Style(TRUE)),
        ({"TERM": "xterm-direct"}, "utf-8", True, False, Style(TRUE)),
        ({"TERM": "vt100"}, "utf-8", True, False, Style(NONE)),
        ({"TERM": "dumb", "COLORTERM": "truecolor"}, "utf-8", True, False, Style(NONE, False)),
        ({"TERM": "xterm-256color", "NO_COLOR": "1"}, "utf-8", True, False, Style(NONE)),
        ({"TERM": "xterm-256color"}, "utf-8", False, False, Style(NONE)),
        ({"TERM": "xterm-256color"}, "ascii", False, False, Style(NONE, unicode=False)),
        ({"TERM": "xterm-256color"}, "utf-8", True, True, Style(NONE, unicode=False)),
        (
            {"TERM": "xterm-256color", "COLORFGBG": "0;15"},
            "utf-8",
            True,
            False,
            Style(MANY, dark=False),
        ),
    ],
)
def test_the_style_is_what_the_stream_can_show(
    environ: dict[str, str],
    encoding: str,
    terminal: bool,
    only_ascii: bool,
    expected: Style,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("TERM", "COLORTERM", "NO_COLOR", "COLORFGBG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert style_of(Stream(encoding, terminal), only_ascii) == expected


def test_tokens_have_the_width_that_unicode_says() -> None:
    for text in ODD:
        for unicode in (True, False):
            shown = label(text, 12, unicode)
            assert width_of(shown) == columns_of(shown) <= 12
            assert shown.isprintable()
    assert safe("🇩🇪") == "DE"
    assert safe("\u0301a") == "◌\u0301a"
    assert safe("a\nb") == "a↵b"
    assert safe("漢", unicode=False) == "\\u6f22"


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for path in GOLDEN.glob("*_*x*_*.txt"):
        path.unlink()
    for file, content in golden_files().items():
        (GOLDEN / file).write_text(content, encoding="utf-8")
    sys.stdout.write(f"{len(list(GOLDEN.iterdir()))} files\n")
