"""`predict` of a decoder on a terminal: the text itself, token by token, the same as in the record
that a pipe gets.
"""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Result
from test_console import Terminal

from bigmodel_cli.__main__ import run
from bigmodel_cli.data.text.own_tokenizers import ByteTokenizer, CharacterTokenizer
from bigmodel_cli.data.text.tokenizer import Tokenizer
from bigmodel_cli.data.text.tokenizer_library import open_library
from bigmodel_cli.generation.pieces import Pieces, added_text

Cli = Callable[..., Result]
TEXT = "née 漢字🙂 naïve  a\n\n\tb "


def bpe() -> Tokenizer:
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models, pre_tokenizers, trainers

    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    library.train_from_iterator([TEXT * 3, "漢漢漢"], trainer)
    return open_library(library.to_str().encode())


def words() -> Tokenizer:
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models, pre_tokenizers, trainers

    options = {
        "vocab_size": 40,
        "show_progress": False,
        "unk_token": "<unk>",
        "special_tokens": ["<unk>"],
    }
    library = Library(models.Unigram())
    library.pre_tokenizer, library.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    library.train_from_iterator([TEXT * 3], trainers.UnigramTrainer(**options))
    return open_library(library.to_str().encode())


@pytest.mark.parametrize(
    "make",
    [ByteTokenizer, lambda: CharacterTokenizer(TEXT, end=True), bpe, words],
    ids=["bytes", "characters", "bpe", "unigram"],
)
def test_pieces_together_are_the_text_and_none_ends_within_a_character(
    make: Callable[[], Tokenizer],
) -> None:
    tokenizer, rng = make(), random.Random(0)
    for trial in range(40):
        prompt = tokenizer.encode(TEXT[: rng.randrange(len(TEXT))])
        told = (
            rng.choices(range(tokenizer.vocab_size), k=90)
            if trial % 2
            else tokenizer.encode(TEXT * 4)
        )
        pieces = Pieces(tokenizer, prompt)
        shown = [pieces.add(token) for token in told]
        whole = added_text(tokenizer, prompt, told)
        assert "".join(shown) == (whole if not pieces.waiting else whole[: len("".join(shown))])
        assert not any(piece.endswith("\ufffd") for piece in shown)
        assert trial % 2 or not pieces.waiting


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a decoder of bytes."""
    folder, before = tmp_path_factory.mktemp("bytes"), Path.cwd()
    os.chdir(folder)
    Path("corpus.txt").write_text("漢字 and \x1b é 🙂 " * 60)
    Path("spec.yaml").write_text(
        "model: {type: decoder, dim: 16, blocks: [{mixer: {type: attention, num_heads: 2}}]}\ndata:"
        " {type: text, files: [corpus.txt], context: 16, tokenizer: {type: bytes}}\ntask: {type:"
        " causal_lm, sample_tokens: 0}\ntrain: {steps: 30, batch_size: 8, precision: fp32,"
        " optimizer: {type: adamw}}\n"
    )
    assert run(["pretrain", "spec.yaml", "--out", "run"]) == 0
    os.chdir(before)
    return folder / "run"


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str]]:
    """Run a command whose stdout is a terminal."""

    def call(*words: Any, **environment: str) -> tuple[int, str]:
        for name, value in {"TERM": "xterm", "NO_COLOR": "", **environment}.items():
            monkeypatch.setenv(name, value)
        screen = Terminal()
        monkeypatch.setattr(sys, "stdout", screen)
        status = run([str(word) for word in words])
        monkeypatch.undo()
        return status, screen.getvalue()

    return call


def test_a_terminal_gets_the_prompt_and_the_text_of_the_record(
    decoder: Path, cli: Cli, terminal: Callable[..., tuple[int, str]]
) -> None:
    words = ("predict", decoder, "漢", "--max-tokens", 60)
    piped = cli(*words)
    text = json.loads(piped.out)["text"]
    assert len(text) > 20
    status, shown = terminal(*words)
    visible = escaped(text)
    assert (status, shown) == (0, f"\x1b[1m漢\x1b[0m{visible}\n")
    assert terminal(*words, NO_COLOR="1") == (0, f"漢{visible}\n")
    assert terminal(*words, TERM="dumb")[1] == f"漢{visible}\n"
    assert json.loads(terminal(*words, "--json")[1]) == json.loads(piped.out)


def escaped(text: str) -> str:
    return "".join(c if c.isprintable() or c in "\n\t" else f"\\x{ord(c):02x}" for c in text)


def test_several_prompts_stand_apart_and_are_as_in_a_pipe(
    decoder: Path,
    cli: Cli,
    terminal: Callable[..., tuple[int, str]],
    capfd: pytest.CaptureFixture[str],
) -> None:
    words = ("predict", decoder, "a", "", "漢字", "--max-tokens", 7, "--temperature", 0)
    first, failed, second = map(json.loads, cli(*words).out.splitlines())
    status, shown = terminal(*words, NO_COLOR="1")
    assert shown.replace("\\x1b", "\x1b") == f"a{first['text']}\n----------\n漢字{second['text']}\n"
    assert (status, failed["error"] in capfd.readouterr().err) == (3, True)
    found = json.loads(cli("predict", decoder, "a", "--n-best", 2, "--max-tokens", 5).out)[
        "hypotheses"
    ]
    _, shown = terminal("predict", decoder, "a", "--n-best", 2, "--max-tokens", 5, NO_COLOR="1")
    assert shown == "".join(
        f"----- score {h['score']:.4f} -----\na{escaped(h['text'])}\n" for h in found
    )


def test_an_interrupted_text_stays_on_the_terminal(
    decoder: Path, terminal: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line is ended, and the status is that of SIGINT."""
    import signal

    from bigmodel_cli.generation.pieces import Pieces as Real

    class Stopped(Real):
        def add(self, token: int) -> str:
            if self.before[3:]:
                signal.raise_signal(signal.SIGINT)
            return super().add(token)

    monkeypatch.setattr("bigmodel_cli.generation.text.Pieces", Stopped)
    status, shown = terminal("predict", decoder, "abc", "--max-tokens", 50, NO_COLOR="1")
    assert status == 130
    assert shown.startswith("abc")
    assert 4 <= len(shown) < 30
    assert shown.endswith("\n")
