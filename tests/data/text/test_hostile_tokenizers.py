"""A tokenizer.json that panics, cannot read every text, or gives tokens that there are not: 4 in a
checkpoint, 2 in a spec.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Result
from tampered import bounded, fresh_copy, present_spec, sign

from bigmodel_cli.data.text.tokenizer_files import read_tokenizer
from bigmodel_cli.data.text.tokenizer_library import LibraryTokenizer
from bigmodel_cli.errors import DataError

Cli = Callable[..., Result]
BPE = {"type": "BPE", "vocab": {"r": 0, "e": 1, "d": 2}, "merges": []}


def written(**parts: Any) -> bytes:
    """A tokenizer.json with these parts."""
    empty = dict.fromkeys(
        ("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder")
    )
    return json.dumps(
        {"version": "1.0", "added_tokens": [], **empty, "model": BPE, **parts}
    ).encode()


def split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


WORDS = {"type": "WordLevel", "vocab": {"red": 0, "green": 1}, "unk_token": "<unk>"}
PIECES = {
    "type": "WordPiece",
    "vocab": {"red": 0},
    "unk_token": "[UNK]",
    "continuing_subword_prefix": "##",
}
FAULTY = {
    "a panic when it is read": written(
        normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    ),
    "a panic when a text is read": written(pre_tokenizer=split("(a+)+$")),
    "a regex that backtracks": written(pre_tokenizer=split("(1|1?)+$")),
    "a regex that is none": written(pre_tokenizer=split("(")),
    "words without an unknown token": written(model=WORDS),
    "pieces without an unknown token": written(model={**PIECES, "max_input_chars_per_word": 100}),
    "unigrams without an unknown token": written(
        model={"type": "Unigram", "unk_id": None, "vocab": [["a", -1.0]]}
    ),
    "unigrams of none": written(model={"type": "Unigram", "unk_id": 0, "vocab": []}),
    "merges of what is not there": written(model={**BPE, "merges": ["x y"]}),
    "an unknown model": written(model={"type": "Evil"}),
    "a number": b"5",
    "nothing": b"",
    "not UTF-8": b"\xff",
    "100,000 brackets": b"[" * 100_000,
    "a zip file": b"PK\x03\x04" + bytes(100),
}


@pytest.mark.parametrize("content", FAULTY.values(), ids=FAULTY)
def test_a_faulty_tokenizer_is_refused_in_a_sentence(content: bytes, cli: Cli) -> None:
    """Row 79: the traceback that the library's Rust code writes of its own does not show."""
    checkpoint = fresh_copy()
    Path("given.json").write_bytes(content)
    (checkpoint / "tokenizer.json").write_bytes(content)
    sign(checkpoint)
    given = ["--set", "data.tokenizer={type: file, path: given.json}"]
    spec = present_spec(checkpoint)
    for status, words in (
        (4, ["eval", checkpoint]),
        (4, ["predict", checkpoint, "red"]),
        (4, ["finetune", "--from", checkpoint]),
        (2, ["pretrain", spec, *given, "--out", "new"]),
        (2, ["pretrain", spec, *given, "--dry-run"]),
    ):
        with bounded():
            result = cli(*words)
        assert (result.status, result.out) == (status, ""), result.err
        assert "tokenizer" in result.err
        assert "not a tokenizer.json of the tokenizers library" in result.err
        for trace in ("panicked", "stack backtrace", "RUST_BACKTRACE", "Traceback"):
            assert trace not in result.err


@pytest.mark.parametrize("number", [13, 100, 2**32 - 1])
def test_tokens_beyond_the_vocabulary(number: int, cli: Cli) -> None:
    """Row 79: an embedding has no row for them, and nothing else may be read in its place."""
    checkpoint = fresh_copy()
    words = {"red": 0, "<unk>": 1, "far": number}
    content = written(model={"type": "WordLevel", "vocab": words, "unk_token": "<unk>"})
    (checkpoint / "tokenizer.json").write_bytes(content)
    known = json.loads((checkpoint / "facts.json").read_text())["vocab_size"]
    sign(checkpoint)
    assert number >= known
    for words_ in (["eval", checkpoint], ["predict", checkpoint, "red"]):
        result = cli(*words_)
        assert (result.status, result.out) == (4, ""), result.err
        assert f"it gives tokens up to {number:,}, and facts.json has {known} of them" in result.err


def test_a_tokenizer_of_a_network_that_reads_no_tokens(cli: Cli) -> None:
    """Row 79."""
    checkpoint = fresh_copy()
    info = json.loads((checkpoint / "facts.json").read_text())
    (checkpoint / "facts.json").write_text(json.dumps({**info, "vocab_size": None}))
    sign(checkpoint)
    assert cli("predict", checkpoint, "red").status == 4


def test_a_text_that_makes_the_library_panic_is_a_fault_of_the_data() -> None:
    """Row 79: which no trial foresees; its panic is no `Exception`, and goes through every `except
    Exception`.
    """
    tokenizer = read_tokenizer(written(pre_tokenizer=split("(z+)+$")), "x")
    assert isinstance(tokenizer, LibraryTokenizer)
    with pytest.raises(DataError, match=r"the tokenizer cannot read 'zzz.*retry-limit"):
        tokenizer.encode("z" * 100 + "!")


def test_a_signal_is_not_taken_for_a_fault_of_the_tokenizer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Row 79: what is caught is the library's alone."""
    tokenizer = read_tokenizer(written(), "x")
    assert isinstance(tokenizer, LibraryTokenizer)
    for kind in (KeyboardInterrupt, MemoryError):

        class Library:
            def encode(self, *_: Any, kind: type[BaseException] = kind, **__: Any) -> Any:
                raise kind

        monkeypatch.setattr(tokenizer, "library", Library())
        with pytest.raises(kind):
            tokenizer.encode("red")
