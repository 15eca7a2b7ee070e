"""Every view of attend's page under axe, in light and dark and on a narrow screen.

    npm pack axe-core && tar xzf axe-core-*.tgz
    python tests/measure/axe.py package/axe.min.js [PAGE ...]

Without pages, those made by hand that have every view. Axe runs through the DevTools protocol, so
that the page's own policy stays as it is.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "attend"))
from browser import Browser
from pages import every_page

RULES = '{runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]}'
SCREENS = ((1280, 800), (390, 844))


def views_of(browser: Browser) -> list[str]:
    tabs = "document.querySelectorAll('[role=tab]:not([hidden])')"
    return list(browser.run(f"Array.from({tabs}, (tab) => tab.id.slice(4))"))


def audited(browser: Browser, path: Path, axe: str, theme: str, screen: tuple[int, int]) -> int:
    """How many violations there are, which are printed."""
    wide, high = screen
    size = {"width": wide, "height": high, "deviceScaleFactor": 1, "mobile": False}
    browser.call("Emulation.setDeviceMetricsOverride", **size)
    scheme = [{"name": "prefers-color-scheme", "value": theme}]
    browser.call("Emulation.setEmulatedMedia", features=scheme)
    browser.open(path)
    browser.run(axe)
    count = 0
    for view in views_of(browser):
        browser.run(f"attend.choose({{view: {json.dumps(view)}}})")
        browser.run("new Promise((done) => setTimeout(done, 150))")
        script = f"""axe.run(document, {RULES}).then((found) => found.violations.map((fault) =>
            [fault.id, fault.nodes.length, fault.nodes[0].html.slice(0, 160),
             fault.nodes[0].failureSummary.slice(0, 300)]))"""
        for fault in browser.run(script):
            count += 1
            print(path.name, view, theme, wide, *fault, sep=" | ", flush=True)
    return count


def main() -> None:
    axe = Path(sys.argv[1]).read_text(encoding="utf-8") + "; 0"
    given = [Path(name) for name in sys.argv[2:]]
    if not given:
        folder = Path(tempfile.mkdtemp())
        words = ["the", " cat", "sat", "<end>", "ünd", "a longer word"]
        for name, text in every_page(words).items():
            given.append(folder / f"{name}.html")
            given[-1].write_text(text, encoding="utf-8")
    browser = Browser()
    try:
        count = sum(
            audited(browser, path, axe, theme, screen)
            for path in given
            for theme in ("light", "dark")
            for screen in SCREENS
        )
    finally:
        browser.close()
    print(f"{count} violations on {len(given)} pages")
    sys.exit(bool(count))


if __name__ == "__main__":
    main()
