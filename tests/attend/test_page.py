"""The page in headless Chromium: its weights are torch's, its keys work, and text stays text."""

from __future__ import annotations

import base64
import json
import random
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from browser import CHROMIUM, Browser
from looks import layer_of, made
from test_details import CASES, call_of, plain
from torch import Tensor

from bigmodel_cli.attend import _details as needed
from bigmodel_cli.attend.details import Details, of_matrix
from bigmodel_cli.attend.heat import Heat
from bigmodel_cli.attend.layers import Wanted
from bigmodel_cli.attend.look import CAUTION, Kept, Look, Side
from bigmodel_cli.attend.page import PageOptions, page
from bigmodel_cli.attend.telling import telling
from bigmodel_cli.errors import SpecError

HOSTILE = [
    "</script><img src=x onerror=alert(1)>", "<!--<script>", "]]>", "&lt;b&gt;", "\u202eabc\u202c",
    "\u2066x", "\x00", "\x1b]52;c;aGk=\x07", "\r\n", "\u2028", "\ud800", "\udfff\ud800",
    "👩‍👩‍👧‍👦", "a" * 300,
    "${alert(1)}", "`", "\\", "'\"", "ﷺ", "e" + "\u0301" * 60, "data:text/html,x", "{{x}}",
    "$policy",
]  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed (apt-get install chromium)")
    opened = Browser()
    yield opened
    opened.close()


def filled(look: Look) -> Details:
    """All weights of a look made by hand."""
    details = Details()
    for layer in look.layers:
        for head in range(layer.heads):
            details.add_matrix(
                layer.name, head, layer.blocks.most[head].nan_to_num(0), layer.causal
            )
    return details


def show(browser: Browser, folder: Path, text: str) -> None:
    path = folder / "page.html"
    path.write_text(text, encoding="utf-8")
    browser.open(path)
    browser.until("globalThis.attend !== undefined && document.querySelector('.pair') !== null")


def weights_in(browser: Browser, layer: int, head: int, tile: tuple[int, int, int, int]) -> Tensor:
    """Those that the page shows of a tile, -1 where nothing is seen."""
    script = f"""attend.weights({layer}, {head}).then((w) =>
        Array.from(w.tile({", ".join(map(str, tile))}), (x) => Number.isNaN(x) ? -1 : x))"""
    found = torch.tensor(browser.run(script), dtype=torch.float64)
    return found.view(tile[1] - tile[0], tile[3] - tile[2])


def test_weights_of_the_page_are_those_of_torch(
    browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = {f"{form} {case}": call_of(**CASES[case]) for form in "ab" for case in CASES}
    details, layers = Details(), []
    for name, call in calls.items():
        if name.startswith("b"):
            monkeypatch.setattr("bigmodel_cli.attend.details.MOST_ENTRIES", 0)
        details.see(name, call)
        exact = plain(call)
        queries, keys = (
            Side("side", [str(i) for i in range(count)], list(range(count)))
            for count in exact.shape[1:]
        )
        square = layer_of(
            name, torch.eye(3).expand(len(exact), -1, -1), Side("s", "abc", [0, 1, 2]), False
        )
        maps = replace(square.blocks, most=exact, mean=exact)
        signed = call.minus is not None
        layers.append(
            replace(square, queries=queries, keys=keys, blocks=maps, signed=signed, query=0)
        )
    show(browser, tmp_path, page(Look("forms", layers), details))
    for number, (name, call) in enumerate(calls.items()):
        exact = plain(call)
        for head in details.found[name]:
            found = weights_in(browser, number, head, (0, exact.shape[1], 0, exact.shape[2]))
            seen = ~exact[head].isnan()
            if call.segments is None and call.key_mask is None:
                assert torch.equal(found == -1, ~seen) or call.minus is not None, name
            error = (found - exact[head].nan_to_num(0))[seen].abs().max()
            assert error <= 1 / 255, (name, head, error)
            part = weights_in(browser, number, head, (0, 1, 0, 1))
            assert float((part - found[:1, :1]).abs().max()) <= 1e-6
    assert browser.faults() == []


def test_a_long_input_is_computed_in_the_page(browser: Browser, tmp_path: Path) -> None:
    count, width = 2600, 16
    generator = torch.Generator().manual_seed(5)
    q, k = (torch.randn(2, count, width, generator=generator) for _ in range(2))
    side = Side("text", ["a"] * count, [0] * count)
    few = layer_of(
        "blocks.0.mixer", torch.eye(26).expand(3, -1, -1), Side("s", "a" * 26, [0] * 26), True
    )
    kept = Kept([0, 2], q, k, torch.zeros(2, count), 0.3, causal=True, window=900)
    blocks = replace(few.blocks, rows=100, columns=100)
    layer = replace(few, queries=side, keys=side, kept=kept, blocks=blocks, query=count - 1)
    layer = replace(layer, read=torch.zeros(3, count))
    show(browser, tmp_path, page(Look("long", [layer])))
    for head, place in ((0, 0), (2, 1)):
        for first, key in ((2300, 1400), (0, 0), (1000, 60)):
            rows = torch.arange(first, first + 256)
            scores = q[place, rows].double() @ k[place].double().T * 0.3
            back = rows[:, None] - torch.arange(count)
            seen = (back >= 0) & (back < 900)
            exact = scores.masked_fill(~seen, -torch.inf).softmax(1)[:, key : key + 256]
            found = weights_in(browser, 0, head, (first, first + 256, key, key + 256))
            assert (found.clamp(min=0) - exact).abs().max() <= 1 / 255
            assert torch.equal(found >= 0, seen[:, key : key + 256])
    assert browser.run("attend.weights(0, 1)") is None
    browser.run("attend.choose({head: 1, view: 'text'})")
    browser.until("document.querySelectorAll('#text bdi').length === 1100")  # the last of its parts


def test_every_view_is_reached_by_keys(browser: Browser, tmp_path: Path) -> None:
    look = made(layers=3, heads=4, tokens=30)
    show(browser, tmp_path, page(look, filled(look), PageOptions(head=(0, 0))))

    def chosen() -> str:
        return str(browser.run("`${attend.state.layer}.${attend.state.head}`"))

    presses = (("ArrowRight", "0.1"), ("ArrowDown", "1.1"), ("j", "2.1"), ("k", "1.1"))
    for key, expected in (*presses, ("ArrowUp", "0.1"), ("ArrowLeft", "0.0"), ("ArrowLeft", "0.3")):
        browser.press(key)
        assert chosen() == expected
    assert browser.run("document.querySelectorAll('#grid [aria-current]').length") == 1
    spoken = "document.getElementById('live').textContent"
    browser.until(f"{spoken}.startsWith('Layer 0, head 3') && {spoken}.includes('reads')")
    for key, name in (
        ("l", "lines"),
        ("t", "text"),
        ("h", "keys"),
        ("s", "statistics"),
        ("m", "map"),
    ):
        browser.press(key)
        assert (
            browser.run("document.querySelector('[role=tab][aria-selected=true]').id")
            == f"tab-{name}"
        )
    browser.press("p")
    assert browser.run("attend.state.query") == 28
    browser.press("/")
    for letter in "12":
        browser.press(letter)
    browser.press("Enter")
    assert browser.run("attend.state.query") == 12
    browser.press("+")
    before = browser.run("attend.view.scale")
    browser.press("-")
    assert browser.run("attend.view.scale") < before
    browser.press("?")
    assert browser.run("document.getElementById('help').open")
    browser.press("Escape")
    browser.run("document.getElementById('help').close()")
    theme = browser.run("getComputedStyle(document.body).backgroundColor")
    browser.press("d")
    assert browser.run("getComputedStyle(document.body).backgroundColor") != theme
    assert browser.faults() == []
    assert browser.requests() == []


def test_the_chosen_pair_is_marked_over_the_whole_map_at_once(
    browser: Browser, tmp_path: Path
) -> None:
    """What is said below takes room only when it is said: the map would lie under its marks."""
    look = made(layers=1, heads=1, tokens=90)
    show(browser, tmp_path, page(look, filled(look), PageOptions(query=89)))
    boxes = """["map", "over", "stage"].map((name) => {
        const box = document.getElementById(name).getBoundingClientRect();
        return [Math.floor(box.width), Math.floor(box.height)]; })"""
    chart, marks, stage = browser.run(boxes)
    assert chart == marks == stage
    assert browser.faults() == []


def test_the_pointer_shows_a_weight_and_rows_sort(browser: Browser, tmp_path: Path) -> None:
    look = made(layers=2, heads=3, tokens=24)
    show(browser, tmp_path, page(look, filled(look), PageOptions(head=(1, 2))))
    place = """(() => { const box = document.getElementById("stage").getBoundingClientRect();
        const { scale } = attend.view; const [left, top] = attend.view.corner();
        return [box.left + left + 7.5 * scale, box.top + top + 15.5 * scale]; })()"""
    x, y = browser.run(place)
    browser.mouse("mouseMoved", x, y)
    browser.until("attend.state.query === 15 && attend.state.key === 7")
    browser.until("document.querySelector('.pair')?.textContent.startsWith('query 15')")
    exact = float(look.layers[1].blocks.most[2, 15, 7])
    assert (
        abs(float(browser.run("document.querySelector('.pair').dataset.weight")) - exact) < 1 / 255
    )
    browser.mouse("mouseWheel", x, y, deltaX=0, deltaY=-300)
    browser.until("attend.view.scale > 30")
    browser.press("s")
    browser.run("document.getElementById('sort-statistics-4').click()")
    column = (
        "Array.from(document.querySelectorAll('tbody tr'), (r) => Number(r.cells[4].textContent))"
    )
    shares = browser.run(column)
    assert shares == sorted(shares, reverse=True)
    assert len(shares) == 6
    browser.run("document.getElementById('sort-statistics-4').click()")
    assert browser.run(column) == sorted(shares)
    assert browser.run("document.querySelector('[aria-sort=ascending]').cellIndex") == 4
    assert browser.faults() == []


def test_without_the_first_key_rows_are_divided_by_the_rest(
    browser: Browser, tmp_path: Path
) -> None:
    look = made(layers=1, heads=1, tokens=12)
    show(browser, tmp_path, page(look, filled(look), PageOptions(view="map")))
    browser.press("x")
    browser.press("h")
    browser.until("document.querySelector('#table td .figure') !== null")
    cell = "document.querySelector('#table tr[aria-current] td').textContent"
    key, weight = int(browser.run(cell).split()[0]), float(browser.run(cell).split()[-1])
    row = look.layers[0].blocks.most[0, 11]
    rest = row[1:] / (1 - row[0])
    assert key == 1 + int(rest.argmax())
    assert weight == pytest.approx(float(rest.max()), abs=0.03)


def test_patches_lie_over_the_image_and_can_be_chosen(browser: Browser, tmp_path: Path) -> None:
    look = made(layers=1, heads=2, tokens=14, causal=False)
    side = Side(
        "patches", ["class", "register"] + [f"patch {i}" for i in range(12)], None, 2, (3, 4)
    )
    layer = replace(look.layers[0], queries=side, keys=side, query=0)
    look = Look("image", [layer])
    options = PageOptions(view="image", image=png(8, 6))
    path = tmp_path / "page.html"
    path.write_text(page(look, filled(look), options), encoding="utf-8")
    browser.open(path)
    browser.until("document.getElementById('said').textContent.includes('class')")
    box, x = "document.getElementById('stage').getBoundingClientRect()", "attend.patches()"
    at = browser.run(f"[{box}.left + {x}.x + 2.5 * {x}.side, {box}.top + {x}.y + 1.5 * {x}.side]")
    for kind in ("mousePressed", "mouseReleased"):
        browser.mouse(kind, *at, button="left", clickCount=1)
    browser.until("attend.state.query === 2 + 4 + 2")
    browser.until("document.getElementById('said').textContent.includes('patch 6')")
    assert browser.faults() == []
    assert browser.requests() == []


def test_a_map_of_the_class_lies_over_its_image(browser: Browser, tmp_path: Path) -> None:
    values = torch.rand(6, 8)
    heat = Heat(torch.rand(3, 6, 8), values, "cat", 0.75, (3, 4), "Grad-CAM", None)
    path = tmp_path / "page.html"
    path.write_text(page(Look("cnn", [], "cat: 75.0 %", heat=heat)), encoding="utf-8")
    browser.open(path)
    browser.until("document.getElementById('said').textContent.startsWith('Grad-CAM: where')")
    found = weights_in(browser, 0, 0, (0, 1, 0, 48)).view(6, 8)
    assert (found - values / values.max() * float(values.max())).abs().max() <= 1 / 255
    assert browser.faults() == []
    with pytest.raises(SpecError, match="nothing to show"):
        page(Look("nothing", []))


def png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    rows = b"".join(b"\0" + bytes([120, 90, 60]) * width for _ in range(height))
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def strings() -> list[str]:
    drawn = random.Random(7)
    kinds = (
        (0, 0x20),
        (0x20, 0x7F),
        (0x590, 0x800),
        (0x2000, 0x2070),
        (0xD800, 0xE000),
        (0x1F300, 0x1F700),
    )
    found = list(HOSTILE)
    while len(found) < 1000:
        low, high = drawn.choice(kinds)
        found.append(
            "".join(chr(drawn.randrange(low, high)) for _ in range(drawn.randrange(0, 12)))
        )
    return found


def test_hostile_text_changes_nothing(browser: Browser, tmp_path: Path) -> None:
    counts = []
    for labels in (["word"] * 1000, strings()):
        look = made(layers=1, heads=1, tokens=100)
        layers = []
        for number in range(10):
            side = Side(labels[number], labels[100 * number : 100 * number + 100])
            layers.append(replace(look.layers[0], name=labels[number], queries=side, keys=side))
        hostile = Look(labels[0], layers, answer=labels[1], notes=labels[:20])
        show(browser, tmp_path, page(hostile, filled(hostile)))
        for number in range(10):
            view = ("keys", "lines", "map", "statistics")[number % 4]
            browser.run(f"attend.choose({{layer: {number}, view: '{view}'}}, true)")
            browser.run(f"attend.choose({{layer: {number}, view: 'text'}})")
            browser.until("document.querySelectorAll('#text bdi').length === 100")
        counts.append(browser.run("document.querySelectorAll(':not(br)').length"))
        assert browser.faults() == []
        assert browser.requests() == []
        assert browser.run("document.querySelectorAll('img').length") == 0
    assert counts[0] == counts[1]


def test_what_is_put_into_the_page_is_not_run(browser: Browser, tmp_path: Path) -> None:
    """That its policy holds, and that `faults` would tell."""
    look = made(layers=1, heads=1, tokens=5)
    bad = "<script>bad = 1</script><img src=x onerror='bad = 2'><img src=http://127.0.0.1:9/x>"
    show(browser, tmp_path, page(look, filled(look)).replace("</main>", f"</main>{bad}"))
    browser.until("document.querySelectorAll('img').length === 2")
    assert browser.run("typeof bad") == "undefined"
    assert any("ContentSecurityPolicy" in fault for fault in browser.faults())


def test_the_page_says_what_it_must_and_asks_for_nothing() -> None:
    look = made(layers=2, heads=2, tokens=9)
    text = page(look, filled(look))
    assert CAUTION.split(";")[0] in text
    assert "1.0e-07" in text
    assert "default-src 'none'" in text
    assert not re.search(r"https?://|url\(|@import|fetch\(|XMLHttp|innerHTML|eval\(", text)
    assert page(look, filled(look)) == text  # byte for byte


def test_a_long_input_is_run_again_for_the_heads_that_tell_most() -> None:
    look = made(layers=2, heads=3, tokens=24)
    coarse = [
        replace(la, number=5 + i, blocks=replace(la.blocks, rows=2, columns=2))
        for i, la in enumerate(look.layers)
    ]
    look, asked = replace(look, layers=coarse), []

    def again(wanted: Wanted) -> Look:
        asked.append(wanted)
        q = torch.randn(1, 24, 4)
        kept = Kept([wanted.heads[0][1]], q, q, torch.zeros(1, 24), 0.5, causal=True)
        layer = next(la for la in coarse if la.number == wanted.heads[0][0])
        return Look("again", [replace(layer, kept=kept)])

    details = needed(look, Wanted(layers=[5, 6]), again)
    assert asked[0].layers is None
    assert asked[0].heads == tuple((5 + one.layer, one.head) for one in telling(look))
    place = asked[0].heads[0][0] - 5
    assert list(details.found) == [coarse[place].name]
    text = page(look, details)
    assert f'"start":{{"layer":{place},"head":{asked[0].heads[0][1]},' in text
    assert needed(look, Wanted(heads=[(5, 0)]), again).found == {}  # as asked for
    assert len(asked) == 1


def test_rows_of_heads_without_details_and_sides_of_one() -> None:
    """What the page carries of a head of which it has no weights: the query's row, and blocks."""
    for tokens in (1, 5):
        look = made(layers=1, heads=2, tokens=tokens)
        text = page(look, Details())
        facts = re.search(r'id="data">(.*?)</script>', text, re.DOTALL)
        assert facts is not None
        (layer,) = json.loads(facts[1])["layers"]
        assert (layer["details"], layer["heads"]) == ({}, 2)
        exact = look.layers[0].blocks.most[:, -1]
        packed = re.search(rf'id="b{layer["read"]}">(.*?)</script>', text)
        assert packed is not None
        codes = torch.tensor(list(zlib.decompress(base64.b64decode(packed[1]), -15)))
        read = (codes / 254).square().view(2, tokens)
        torch.testing.assert_close(read, exact, atol=1 / 254, rtol=0)
        assert (layer["blocks"]["rows"], layer["blocks"]["columns"]) == (tokens, tokens)
    few, many = (of_matrix(torch.rand(n, n).tril(), causal=True) for n in (1, 40))
    assert 0 < few.size < many.size < 40 * 40 + 200  # a byte for each weight at most
