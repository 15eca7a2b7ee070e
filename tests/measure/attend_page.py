"""Sizes and times of attend's page: bytes, first paint, changes of head, tiles of long inputs.

Run alone: python tests/measure/attend_page.py [short|long|worst] [FOLDER]
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "attend"))
from browser import Browser

from bigmodel_cli.attend.details import Details
from bigmodel_cli.attend.look import Blocks, Kept, Layer, Look, Side, Statistics
from bigmodel_cli.attend.page import page
from bigmodel_cli.attend.scores import Scores

RESOLUTION = 128
SPECTRA = ((0.3, 1000), (1.0, 1000), (2.0, 12), (5.0, 6))
"""Deviations of the scores and how fast the spectrum falls: flat as at the start, or trained."""


def layer_of(name: str, q: Tensor, k: Tensor, side: Side, heads: int) -> Layer:
    """A layer whose first heads are kept: q, k (N, T, D); all show the blocks of the first."""
    count = q.shape[1]
    kept = Kept(
        list(range(len(q))), q, k, torch.zeros(len(q), count), q.shape[2] ** -0.5, causal=True
    )
    size = -(-count // RESOLUTION)
    most = torch.zeros(1, -(-count // size), -(-count // size))
    read = torch.zeros(heads, count)
    for rows, first, end, weights in Scores.kept(kept, 0).weights():
        places = torch.arange(first, end) // size
        small = torch.zeros(len(rows), most.shape[2]).index_reduce_(1, places, weights, "amax")
        most[0].index_reduce_(0, rows // size, small, "amax")
    place = torch.arange(most.shape[1])
    most = most.masked_fill(place[None, :] > place[:, None], torch.nan).expand(heads, -1, -1)
    figures = Statistics(*[torch.rand(heads) for _ in range(9)])
    return Layer(
        name, "self", side, side, True, figures, Blocks(most, most, size, size), count - 1,
        read, read, letters="x" * heads, kept=kept,
    )  # fmt: skip


def drawn(heads: int, count: int, size: float, rank: int, seed: int) -> tuple[Tensor, Tensor]:
    """Queries and keys (N, T, 64) of a spectrum that falls with `rank`, as trained ones' do."""
    generator = torch.Generator().manual_seed(seed)
    fall = torch.exp(-torch.arange(64) / rank)
    fall = size * fall / fall.square().mean().sqrt()
    q, k = (torch.randn(heads, count, 64, generator=generator) for _ in range(2))
    return q * fall, k


def opened(path: Path) -> tuple[Browser, float]:
    """The page in a browser, and the milliseconds to its first paint with content."""
    browser = Browser()
    browser.open(path)
    browser.until("document.querySelector('.pair') !== null")
    paint = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
    browser.until(f"{paint} > 0")
    return browser, float(browser.run(paint))


def clicked(browser: Browser, head: int) -> tuple[float, float]:
    """Milliseconds from a click on a head's small map to the first frame that shows the head, and
    to the frame that shows every weight. A frame shows it when the canvas has other pixels than
    before the click and more than the few colours of an empty map."""
    button = f"document.querySelectorAll('#grid button')[{head}]"
    first, whole = browser.run(
        f"""(async () => {{
            const canvas = document.getElementById("map");
            const middle = () => new Uint32Array(canvas.getContext("2d").getImageData(
                60, Math.floor(canvas.height / 2), canvas.width - 60, 1).data.buffer);
            const framed = async () => {{
                await new Promise(requestAnimationFrame);
                const frame = new MessageChannel();
                await new Promise((done) => {{
                    frame.port1.onmessage = done;
                    frame.port2.postMessage(0);
                }});
                return performance.now();
            }};
            const before = middle().join();
            const start = performance.now();
            {button}.click();
            let shown = null, drawn = false;
            attend.drawing().then(() => {{ drawn = true; }});
            for (;;) {{
                const ended = drawn;
                const time = (await framed()) - start;
                const now = middle();
                if (shown === null && new Set(now).size > 8 && now.join() !== before) shown = time;
                if (ended && shown !== null) return [shown, time];
                if (time > 5000) throw new Error("the head was never shown");
            }}
        }})()"""
    )
    return float(first), float(whole)


def spread(times: list[float]) -> dict[str, float]:
    """Median, 95th percentile, largest."""
    found = sorted(times)
    return {
        "median": found[len(found) // 2], "95 %": found[int(0.95 * len(found))], "most": found[-1]
    }  # fmt: skip


def timed(browser: Browser, script: str) -> float:
    """Milliseconds of an awaited expression, by the page's own clock."""
    wrapped = f"(async () => {{ const t = performance.now(); await {script};"
    return float(browser.run(wrapped + " return performance.now() - t; })()"))


def short(folder: Path, size: float, rank: int) -> dict[str, object]:
    """1,000 tokens, 12 layers of 12 heads."""
    side = Side("text", [f"word{i}" for i in range(1000)], list(range(1000)))
    layers = [layer_of(f"blocks.{i}", *drawn(12, 1000, size, rank, i), side, 12) for i in range(12)]
    start = time.perf_counter()
    path = folder / "short.html"
    path.write_text(page(Look("model", layers)), encoding="utf-8")
    made = time.perf_counter() - start
    browser, paint = opened(path)
    try:
        ready = browser.run("performance.now()")
        soon = clicked(browser, 143)
        time.sleep(1)  # what a person needs to see the page
        changes = [clicked(browser, h) for h in range(1, 132)]
        again = [clicked(browser, h) for h in range(130, 119, -1)]
        forms = browser.run(
            "attend.facts.layers.flatMap(l => Object.values(l.details)).map(d => d.form)"
        )
    finally:
        browser.close()
    return {
        "size": size, "rank": rank, "MB": path.stat().st_size / 1e6, "seconds to make": made,
        "first paint ms": paint, "all drawn before ms": ready, "scores": forms.count("scores"),
        "clicked at once ms": soon,
        "131 first visits ms": spread([shown for shown, _ in changes]),
        "to every weight ms": spread([whole for _, whole in changes]),
        "again ms": spread([whole for _, whole in again]),
    }  # fmt: skip


def long(folder: Path, size: float, rank: int, count: int = 32_768) -> dict[str, object]:
    """4 heads of one layer of 12 at 32k tokens."""
    q, k = drawn(4, count, size, rank, 0)
    side = Side("text", [f"word{i}" for i in range(count)], list(range(count)))
    look = Look("model", [layer_of("blocks.0", q, k, side, 12)])
    start = time.perf_counter()
    path = folder / "long.html"
    path.write_text(page(look), encoding="utf-8")
    made = time.perf_counter() - start
    browser, paint = opened(path)
    try:
        unpacked = [timed(browser, f"attend.weights(0, {h})") for h in range(4)]
        rows = torch.arange(count - 5000, count - 4744)
        times, errors = [], []
        for first in (0, count // 4, count // 2, count - 5200):
            tile = f"{int(rows[0])}, {int(rows[-1]) + 1}, {first}, {first + 256}"
            times.append(timed(browser, f"attend.weights(0, 0).then(w => w.tile({tile}))"))
            found = browser.run(f"attend.weights(0, 0).then(w => Array.from(w.tile({tile})))")
            scores = q[0, rows].double() @ k[0].double().T / 8
            seen = torch.arange(count) <= rows[:, None]
            exact = scores.masked_fill(~seen, -torch.inf).softmax(1)[:, first : first + 256]
            given = torch.tensor([0.0 if x is None else x for x in found]).view(256, 256)
            errors.append(float((given - exact).abs().max()))
        error = browser.run("attend.facts.layers[0].details[0].facts.error")
    finally:
        browser.close()
    return {
        "size": size, "rank": rank, "MB": path.stat().st_size / 1e6, "seconds to make": made,
        "first paint ms": paint, "unpacked ms": unpacked, "tile ms": times,
        "largest error": max(errors), "stated error": error,
    }  # fmt: skip


def worst(folder: Path, seed: int, bits: int) -> dict[str, object]:
    """1,000 tokens, 12 layers of 12 heads of random signed numbers: nothing packs them well."""
    side = Side("text", [f"word{i}" for i in range(1000)], list(range(1000)))
    generator = torch.Generator().manual_seed(seed)
    blank = layer_of("", *drawn(1, 1000, 1.0, bits, seed), side, 12)
    layers, details = [], Details()
    for number in range(12):
        name, found = f"blocks.{number}", []
        for head in range(12):
            noise = torch.rand(1000, 1000, generator=generator).sub_(0.5)
            details.add_matrix(name, head, noise, causal=True)
            found.append(noise[::8, ::8])
        most = torch.stack(found).masked_fill(blank.blocks.most.isnan()[:, :125, :125], torch.nan)
        blocks = Blocks(most, most, 8, 8)
        layers.append(replace(blank, name=name, signed=True, blocks=blocks, kept=None))
    path = folder / "worst.html"
    path.write_text(page(Look("model", layers), details), encoding="utf-8")
    browser, paint = opened(path)
    try:
        facts = browser.run(
            "[attend.facts.notes,"
            " attend.facts.layers.flatMap((layer) => Object.keys(layer.details)).length]"
        )
    finally:
        browser.close()
    return {"MB": path.stat().st_size / 1e6, "first paint ms": paint, "said": facts[0],
            "heads with all weights": facts[1]}  # fmt: skip


def main() -> None:
    folder = Path(sys.argv[2] if len(sys.argv) > 2 else tempfile.mkdtemp())
    kinds = {"short": short, "long": long, "worst": worst}
    measure = kinds[sys.argv[1] if len(sys.argv) > 1 else "short"]
    if measure is worst:
        print(json.dumps(worst(folder, 0, 6), default=float))
        return
    for size, rank in SPECTRA:
        figures = measure(folder, size, rank)
        print(json.dumps(figures, default=float), flush=True)


if __name__ == "__main__":
    main()
