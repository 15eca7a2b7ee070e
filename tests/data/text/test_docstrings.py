"""Functions and what they do: the docstring is taken out of the source, and modules stay in one
split.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Result

from bigmodel_cli.data.text import docstrings
from bigmodel_cli.data.text.docstrings import DocstringsOptions, first_sentence, functions, split_of

Cli = Callable[..., Result]


def test_the_sentence_and_the_source_without_it(tmp_path: Path) -> None:
    path = tmp_path / "m.py"
    path.write_text(
        'def f(a):\n    """Add one to a. And more.\n\n    Long."""\n    # why\n    return a +'
        ' 1\ndef g():\n    """Too short."""\n    return 2\ndef h():\n    """Only words are in'
        ' here"""\nclass C:\n    async def k(self):\n        """Wait\n        for it to end"""\n   '
        "     await self.x\n"
    )
    assert list(functions(path, 30)) == [
        ("def f(a):\n    return a + 1", "Add one to a."),
        ("async def k(self):\n    await self.x", "Wait for it to end"),
    ]
    assert next(iter(functions(path, 1)))[0] == "def f(a):"
    path.write_text("def broken(:\n")
    assert list(functions(path, 30)) == []
    assert first_sentence("  One, two. Three.\nFour") == "One, two."


@pytest.mark.parametrize("every", [6, pytest.param(1, marks=pytest.mark.slow)])
def test_splits_are_of_modules_and_sources_do_not_hold_what_is_asked(
    every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = sorted(docstrings.standard_library(10**9))[::every]
    monkeypatch.setattr(docstrings, "standard_library", lambda limit: iter(some))
    assert split_of("email/utils.py") == split_of("email/mime/text.py") == split_of("email")
    options = DocstringsOptions.model_validate({"context": 64, "tokenizer": {"type": "bytes"}})
    sources = options.sources(Path(), None, [].append)
    pairs = {split: list(source.rows()) for split, source in sources.items()}
    assert all(len(rows) > 100 / every for rows in pairs.values())
    assert len(pairs["train"]) > 2 * len(pairs["test"])
    for source, _ in pairs["val"][:50]:
        if source.count("\n") < 29:  # not cut
            node = ast.parse(source).body[0]
            assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)


def test_summaries_are_judged_beside_the_sources_first_words(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = sorted(docstrings.standard_library(10**9))[::8]
    monkeypatch.setattr(docstrings, "standard_library", lambda limit: iter(some))
    Path("tiny.yaml").write_text(
        "model:\n  type: seq2seq\n  dim: 16\n  encoder: [{mixer: {type: attention, num_heads:"
        " 2}}]\n  decoder: [{cross: {num_heads: 2}}]\ndata: {type: docstrings, context: 24,"
        " tokenizer: {type: bpe, vocab_size: 400}}\ntask: {type: seq2seq, metrics: [rouge],"
        " baseline: lead, beams: 1}\ntrain: {steps: 3, batch_tokens: 400, precision: fp32}\n"
    )
    trained = cli("pretrain", "tiny.yaml", "--out", "run")
    assert trained.status == 0, trained.err
    report = json.loads(
        cli("eval", "run", "--split", "val", "--predictions", "s.jsonl", "--json").out
    )
    assert 0 < report["rougeL_lead"] < 1
    again = json.loads(cli("eval", "--rescore", "s.jsonl", "--json").out)
    for name, value in report["metrics"].items():
        assert again[name] == pytest.approx(value["value"]), name
