"""Rows 49, 50 and 81: names, words, classes and files that drive a terminal or write HTML change
nothing in what `attend` shows and writes.
"""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from browser import CHROMIUM, Browser
from PIL import Image
from safetensors import safe_open

from bigmodel_cli.__main__ import run

EVIL = [
    "</script><img src=x onerror=alert(1)>", "\x1b]52;c;aGk=\x07", "\u202eevil\u202c", "\x9b31m",
    "<!--<script>", "&lt;b&gt;", "$\\frac{", "\x00nul", "plain",
]  # fmt: skip
TEXT = " ".join(EVIL)
CLASSES = ["\x1b]52;c;aGk=\x07", "<img src=x onerror=alert(1)>", "$x$_", "\u202eevil", "a\nb"]
CODES = re.compile(r"\x1b\[[\d;]*m")
SPECS = {
    "seq2seq": (
        "{type: seq2seq, dim: 8, encoder: [{mixer: {type: attention, num_heads: 2}}], decoder:"
        " [{mixer: {type: attention, num_heads: 2}, cross: {num_heads: 2}}]}",
        "{type: pairs, source: [a.txt], target: [a.txt], context: 120, tokenizer: characters}",
        "{type: seq2seq, max_tokens: 12}",
    ),
    "decoder": (
        "{type: decoder, dim: 8, blocks: [{repeat: 2, mixer: {type: attention, num_heads: 2}}]}",
        "{type: text, files: [a.txt], context: 120, tokenizer: characters}",
        "{type: causal_lm}",
    ),
    "vit": (
        "{type: vit, dim: 8, patch: 4, blocks: [{mixer: {type: attention, num_heads: 2}}]}",
        "{type: image_folder, root: p, size: 12, val_fraction: 0.5}",
        "{type: classification}",
    ),
}
TRAIN = (
    "{steps: 2, batch_size: 4, precision: fp32, memory_format: contiguous, compile: 'off',"
    " validate_every: null, checkpoint_every: 1, keep_last: 5}"
)
INPUTS = {"seq2seq": TEXT, "decoder": TEXT, "vit": f"p/{CLASSES[1]}/{CLASSES[0]}.png"}
VIEWS = {
    "screen": [],
    "ascii": ["--ascii"],
    "query": ["--query", "1"],
    "key": ["--key", "1"],
    "lens": ["--lens"],
    "ablate": ["--ablate", "0.1"],
    "diff": ["--diff", "RUN"],
    "over": ["--over"],
}


class Terminal(io.TextIOWrapper):
    """A stream that says it is one."""

    def isatty(self) -> bool:
        return True


def shown(monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[int, str]:
    """The status of a command, and all that it shows on a terminal."""
    stream = Terminal(io.BytesIO(), encoding="utf-8", errors="surrogateescape")
    with monkeypatch.context() as patch:
        patch.setenv("TERM", "xterm-256color")
        patch.setattr(sys, "stdout", stream)
        patch.setattr(sys, "stderr", stream)
        status = run(list(words))
    stream.flush()
    return status, stream.buffer.getvalue().decode("utf-8", "surrogateescape")  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A run of each kind, whose folder has such a name too."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "a.txt").write_text("\n".join([TEXT] * 12), encoding="utf-8")
    for number, name in enumerate(CLASSES):
        (folder / "p" / name).mkdir(parents=True)
        for other in (CLASSES[0], "b", "c", "d"):
            shade = (40 * number, 30 * len(other), 9)
            Image.new("RGB", (12, 12), shade).save(folder / "p" / name / f"{other}.png")
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for kind, (model, data, task) in SPECS.items():
            spec = f"model: {model}\ndata: {data}\ntask: {task}\ntrain: {TRAIN}\n"
            Path(f"{kind}.yaml").write_text(spec, encoding="utf-8")
            name = f"x<\x1b[31m/script><img src=x onerror=alert(1)>\u202e{kind}"
            assert run(["pretrain", f"{kind}.yaml", "--out", name]) == 0
            found[kind] = name
    return {"folder": str(folder), **found}


@pytest.fixture
def there(runs: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.chdir(runs["folder"])
    return runs


@pytest.mark.parametrize("kind", SPECS)
def test_a_terminal_gets_escapes_that_are_seen(
    kind: str, there: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows 50 and 81: in each view, only codes of colour are codes."""
    seen = {}
    for view, words in VIEWS.items():
        alone = view == "over" and kind == "decoder"  # on random tokens
        given = [] if alone else [INPUTS[kind]]
        options = [there[kind] if word == "RUN" else word for word in words]
        status, text = shown(monkeypatch, "attend", there[kind], *given, *options)
        assert status == 0, (view, text)
        assert CODES.sub("", text).replace("\n", "").isprintable(), view
        seen[view] = text
    assert "\\u202e" in seen["screen"]
    assert "\x1b" not in seen["ascii"]


def test_a_terminal_gets_such_words_of_messages_as_escapes(
    there: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 81: what was asked for and is not there."""
    bad = "\x1b]0;x\x07\u202e\nz"
    asked = {
        "decoder": ["--heads", "--layers", "--query", "--diff", "--ablate", "--file", "--png"],
        "vit": ["--class", "--cam-layer", "--cam"],
    }
    for kind, options in asked.items():
        for option in options:
            words = [option, bad + ("/x.png" if option == "--png" else "")]
            status, text = shown(monkeypatch, "attend", there[kind], INPUTS[kind], *words)
            assert status in (2, 3, 4, 5), (option, text)
            assert text.replace("\n", "").isprintable(), option
            assert "\\x1b]0;x\\x07\\u202e" in text, option
    _, text = shown(monkeypatch, "attend", there["vit"], INPUTS["vit"], "--class", "no")
    assert "a\\x0ab" in text  # a class on a line of its own could pose as a message


@pytest.mark.parametrize("kind", SPECS)
def test_data_has_the_words_as_they_are(
    kind: str, there: dict[str, str], capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Rows 50 and 81: JSON escapes them, and they come back."""
    capfd.readouterr()
    given = INPUTS[kind]
    for name in ("a.jsonl", "a.safetensors"):
        assert run(["attend", there[kind], given, "--json", "--data", str(tmp_path / name)]) == 0
        out = capfd.readouterr().out
        assert out.count("\n") == 1
        assert out[:-1].isprintable()
    lines = (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()
    assert all(line.isprintable() for line in lines)
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        written = json.loads(file.metadata()["attend"])
    for found in (json.loads(out), written):
        sides: list[dict[str, Any]] = [found["layers"][0][side] for side in ("queries", "keys")]
        if kind != "vit":
            whole = "".join(t for t in sides[1]["tokens"] if t not in ("<start>", "<end>"))
            assert whole == TEXT
    assert json.loads(lines[0])["keys"]["tokens"] == sides[1]["tokens"]


@pytest.mark.parametrize("kind", SPECS)
def test_pictures_are_drawn_and_hold_no_script(
    kind: str, there: dict[str, str], tmp_path: Path
) -> None:
    """Rows 49 and 50: SVG is XML, in which most control characters are none at all."""
    names = [tmp_path / f"a.{form}" for form in ("svg", "png", "pdf")]
    options = [word for path in names for word in (f"--{path.suffix[1:]}", str(path))]
    assert run(["attend", there[kind], INPUTS[kind], *options]) == 0
    for node in ElementTree.parse(names[0]).iter():
        assert node.tag.rpartition("}")[2] not in ("script", "foreignObject", "a")
        assert not any(name.startswith("on") for name in node.attrib)
    assert Image.open(names[1]).format == "PNG"
    assert names[2].read_bytes().startswith(b"%PDF")


class Tags(HTMLParser):
    """The elements and attributes of a page, by Python's own parser."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, list[tuple[str, str | None]]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, attrs))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser | None]:
    opened = None if CHROMIUM is None else Browser()
    yield opened
    if opened is not None:
        opened.close()


@pytest.mark.parametrize("kind", SPECS)
def test_a_page_holds_them_as_text(
    kind: str, there: dict[str, str], tmp_path: Path, browser: Browser | None
) -> None:
    """Row 49: nothing of a name becomes an element, and the page asks for nothing."""
    path = tmp_path / "</p><b onclick=x>\x1b.html".replace("/", "")
    assert run(["attend", there[kind], INPUTS[kind], "--html", str(path)]) == 0
    text = path.read_text(encoding="utf-8")
    tags = Tags()
    tags.feed(text)
    assert {tag for tag, _ in tags.found}.isdisjoint({"img", "iframe", "object", "embed", "link"})
    for _, attributes in tags.found:
        assert not any(name.startswith("on") or name in ("src", "href") for name, _ in attributes)
    assert not re.search(r"https?://", text)
    assert text.replace("\n", "").isprintable()
    if browser is None:
        pytest.skip("Chromium is not installed (apt-get install chromium)")
    browser.open(path)
    browser.until("document.getElementById('said').textContent !== ''")
    assert "<img src=x onerror=alert(1)>" in browser.run("document.title")
    assert browser.run("document.querySelectorAll('img, b, a').length") == 0
    assert browser.faults() == []
    assert browser.requests() == []
