"""Every view of the page in headless Chromium: its content, its text, and that all can use it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import CHROMIUM, Browser
from pages import every_page
from test_page import strings

WORDS = ["the", " cat", "sat", "<end>", "ünd", "a longer word", " "]
PAGES = ("heads", "tables alone", "image", "patches", "worth", "course", "apart")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed (apt-get install chromium)")
    opened = Browser()
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    found = {}
    for name, text in every_page(WORDS).items():
        found[name] = folder / f"{name}.html"
        found[name].write_text(text, encoding="utf-8")
    return found


def opened(browser: Browser, path: Path) -> list[str]:
    """The names of its views, in the order of the tabs."""
    browser.open(path)
    browser.until("globalThis.attend !== undefined")
    tabs = "document.querySelectorAll('[role=tab]:not([hidden])')"
    return list(browser.run(f"Array.from({tabs}, (tab) => tab.id.slice(4))"))


def turn(browser: Browser, view: str) -> None:
    """To a view, until it is drawn."""
    browser.run(f"attend.choose({{view: {json.dumps(view)}}})")
    browser.run("attend.drawing()")


def words_of(browser: Browser, selector: str) -> list[str]:
    found = f"Array.from(document.querySelectorAll({selector!r}), (x) => x.textContent)"
    return list(browser.run(found))


def test_each_page_opens_at_what_it_is_about(browser: Browser, pages: dict[str, Path]) -> None:
    own = ["map", "lines", "text", "keys", "statistics"]
    expected = {
        "heads": ([*own, "lens", "alignment", "times", "experts"], "map"),
        "tables alone": (["lens", "alignment", "times", "experts"], "lens"),
        "image": (["image", "test"], "image"),
        "patches": (["map", "lines", "text", "image", "keys", "statistics"], "image"),
        "worth": ([*own, "worth"], "worth"),
        "course": ([*own, "course"], "course"),
        "apart": ([*own[:-1], "apart"], "apart"),
    }
    for name, (views, first) in expected.items():
        assert opened(browser, pages[name]) == views
        assert browser.run("attend.state.view") == first, name
        for number, view in enumerate(views[:9], 1):
            browser.press(str(number))
            assert browser.run("attend.state.view") == view
            selected = "document.querySelector('[role=tab][aria-selected=true]').id"
            assert browser.run(selected) == f"tab-{view}"
        assert browser.faults() == []
        assert browser.requests() == []


def test_tables_say_what_was_found(browser: Browser, pages: dict[str, Path]) -> None:
    opened(browser, pages["tables alone"])
    turn(browser, "alignment")
    cells = words_of(browser, ".shades td")
    assert cells == ["60 %", "30 %", "10 %"] * 3
    assert words_of(browser, ".figures .pairs .figure") == [" 60 %"] * 3
    turn(browser, "times")
    assert words_of(browser, ".figures tbody tr")[1].endswith("0.2000.3500.150")
    assert browser.run("document.querySelectorAll('.timeline .word').length") == 5
    turn(browser, "experts")
    assert words_of(browser, ".shades td")[:4] == ["50 %", "25 %", "25 %", "0.0 %"]
    turn(browser, "lens")
    assert len(words_of(browser, ".shades td")) == 3 * 4
    assert "0.100" in words_of(browser, ".figures td")


def test_a_row_chooses_its_head_and_a_heading_sorts(
    browser: Browser, pages: dict[str, Path]
) -> None:
    opened(browser, pages["worth"])
    first = words_of(browser, ".figures tbody th")[0]
    assert first.startswith("0.0")
    browser.run("document.querySelectorAll('.figures tbody button')[3].click()")
    chosen = browser.run("`${attend.state.layer}.${attend.state.head}`")
    assert words_of(browser, "tr[aria-current] button") == [chosen]
    assert words_of(browser, ".figures tbody button")[3] == chosen
    browser.run("document.getElementById('sort-worth-1-1').click()")
    column = (
        "Array.from(document.querySelectorAll('.figures tbody tr'), (r) => +r.cells[1].textContent)"
    )
    assert browser.run(column) == sorted(browser.run(column), reverse=True)
    browser.run("document.getElementById('sort-worth-1-1').click()")
    assert browser.run(column) == sorted(browser.run(column))
    focused = "document.activeElement.id"
    assert browser.run(focused) == "sort-worth-1-1"


def test_lines_follow_the_chosen_head(browser: Browser, pages: dict[str, Path]) -> None:
    opened(browser, pages["course"])
    charts = browser.run("document.querySelectorAll('figure > svg').length")
    assert charts == 5  # the loss, and four statistics
    for layer, head in ((0, 2), (1, 0)):
        browser.run(f"attend.choose({{layer: {layer}, head: {head}}})")
        assert (
            browser.run("document.querySelectorAll('figure:not(:first-child) .chosen').length") == 4
        )
        rows = words_of(browser, ".figures tbody tr")
        assert len(rows) == 3
        sink = f"attend.facts.layers[{layer}].statistics.sink[{head}].toPrecision(3)"
        assert browser.run(sink) in rows[0]
    label = "document.querySelector('figure svg').getAttribute('aria-label')"
    assert browser.run(label).startswith("Loss: loss from 2.50 to 1")
    assert browser.faults() == []


def test_hostile_text_changes_no_view(browser: Browser, tmp_path: Path) -> None:
    counts: list[dict[str, int]] = []
    for labels in (["word"], [text or "-" for text in strings()]):
        found = {}
        for name, text in every_page(labels).items():
            path = tmp_path / "page.html"
            path.write_text(text, encoding="utf-8")
            for view in opened(browser, path):
                turn(browser, view)
                elements = browser.run("document.querySelectorAll(':not(br):not(.pair)').length")
                found[f"{name}, {view}"] = elements
            assert browser.faults() == [], name
            assert browser.requests() == [], name
            assert browser.run("document.querySelectorAll('img, iframe, object').length") == 0
        counts.append(found)
    assert counts[0] == counts[1]


ACCESS = (Path(__file__).parent / "access.js").read_text(encoding="utf-8")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_all_can_use_every_view(browser: Browser, pages: dict[str, Path], theme: str) -> None:
    scheme = [{"name": "prefers-color-scheme", "value": theme}]
    browser.call("Emulation.setEmulatedMedia", features=scheme)
    for name in PAGES:
        for view in opened(browser, pages[name]):
            turn(browser, view)
            assert browser.run(ACCESS) == [], (name, view)
    browser.call("Emulation.setEmulatedMedia", features=[])


def test_the_focus_is_seen_wherever_the_keyboard_goes(
    browser: Browser, pages: dict[str, Path]
) -> None:
    opened(browser, pages["worth"])
    reached = set()
    for _ in range(30):
        browser.press("Tab")
        style, name = browser.run(
            "(() => { const x = document.activeElement; const s = getComputedStyle(x);"
            " return [s.outlineStyle === 'none' ? 0 : parseFloat(s.outlineWidth),"
            " x.id || x.className || x.tagName]; })()"
        )
        assert style >= 1 or name == "BODY", name
        reached.add(name)
    assert {"theme", "help-button", "tab-worth", "plain", "sort-worth-1-0"} <= reached


def test_a_narrow_screen_needs_no_scrolling_to_the_side(
    browser: Browser, pages: dict[str, Path]
) -> None:
    size = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": False}
    browser.call("Emulation.setDeviceMetricsOverride", **size)
    try:
        for name in PAGES:
            for view in opened(browser, pages[name]):
                turn(browser, view)
                assert browser.run("document.documentElement.scrollWidth") <= 390, (name, view)
    finally:
        browser.call("Emulation.clearDeviceMetricsOverride")
