"""BPE is trained in a process of its own: the same tokens as in this one, and nothing of it is left
after a signal.
"""

from __future__ import annotations

import io
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from zygote import Zygote, until

from bigmodel_cli.data.text import bpe, bpe_process
from bigmodel_cli.data.text.bpe import train_bpe
from bigmodel_cli.errors import ResourceError

PIECES = [
    "a",
    "bc",
    "def ",
    " ",
    "\n",
    "\n\n",
    "\t\n",
    " \n ",
    "é",
    "日本",
    "don't",
    "42",
    "!?",
    "x\ny",
    "<|endoftext|>",
]


def text_of(size: int, seed: int = 0) -> str:
    rng = random.Random(seed)
    return "".join(rng.choice(PIECES) for _ in range(size))


def trained_here(texts: list[str], vocab_size: int) -> bytes:
    """The library called as its own documentation does, with whole texts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    library = Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=alphabet,
        special_tokens=["<|endoftext|>"],
        show_progress=False,
    )
    library.train_from_iterator(iter(texts), trainer)
    return str(library.to_str()).encode()


@pytest.mark.parametrize("vocab_size", [257, 300, 500])
def test_a_tokenizer_trained_in_a_process_equals_one_trained_without(vocab_size: int) -> None:
    """row 66: the merges are those of the library called with whole texts, though long ones are
    handed over in parts.
    """
    texts = [text_of(30_000), "", text_of(5, 1), "\n" * 500 + "a b" * 30_000]
    assert len(texts[0]) > bpe_process.PART
    assert train_bpe(texts, vocab_size).to_json() == trained_here(texts, vocab_size)


def test_long_texts_are_cut_between_words() -> None:
    """row 66: the parts are the text, and small where there is a place to cut."""
    text = text_of(60_000)
    found = list(bpe_process.parts(iter([text, "short"])))
    assert "".join(found) == text + "short"
    assert len(found) > 3
    assert max(map(len, found)) < 1.1 * bpe_process.PART


def test_long_texts_get_the_same_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """row 66: a text that is encoded in a thread, so that a signal need not wait."""
    own, text = train_bpe([text_of(5000)], 400), text_of(3000, 2)
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    plain = own.encode(text)
    monkeypatch.setattr("bigmodel_cli.data.text.tokenizer_library.LONG", 1)
    assert own.encode(text) == plain
    assert own.decode(plain) == text


def processes(word: str) -> list[str]:
    """The command lines of the processes that have this word in it."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().split(b"\0")
        except OSError:
            continue
        found += [" ".join(map(os.fsdecode, line))] if word.encode() in line else []
    return found


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks at processes in /proc")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("stage", ["counting words for the tokenizer", "merging pairs into tokens"])
def test_a_signal_ends_the_training_of_a_tokenizer(
    stage: str,
    number: signal.Signals,
    status: int,
    decoder_spec: Path,
    zygote: Zygote,
    tmp_path: Path,
) -> None:
    """rows 7 and 66: in both stages the run leaves at once, the process with it, and nothing half
    done stays in the cache.
    """
    rng = random.Random(1)
    # one word: slow to merge
    Path("text.txt").write_text("".join(rng.choice("abcdefghij") for _ in range(150_000)))
    vocab = str(20_000 + os.getpid() % 10_000)
    words = [
        "pretrain",
        decoder_spec,
        "--set",
        f"data.tokenizer={{type: bpe, vocab_size: {vocab}}}",
        "--out",
        "run",
    ]
    env = {"BIGMODEL_FAILPOINT": f"{stage}:{number.name}", "XDG_CACHE_HOME": str(tmp_path / "own")}
    ended = zygote.run(*words, env=env)
    assert ended.status == status, ended.err
    assert "bigmodel: stopped" in ended.err
    assert "Traceback" not in ended.err
    until(lambda: not processes(vocab))
    left = {
        p.name
        for p in (tmp_path / "own" / "bigmodel" / "tokenizers").iterdir()
        if not p.name.endswith(".lock")
    }
    assert left == set()


def test_a_fault_while_texts_are_read_ends_the_process() -> None:
    """row 66: what the texts' reader raises is raised, and the process has gone."""

    def broken() -> Iterator[str]:
        yield "a b c"
        raise KeyError("a fault of the data")

    with pytest.raises(KeyError, match="a fault of the data"):
        train_bpe(broken(), 300)


def test_a_tokenizer_process_that_is_killed_or_fails_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """row 69: the system kills what takes too much memory: 5 with a remedy; any other end is a
    bug's.
    """
    script = tmp_path / "worker.py"
    monkeypatch.setattr(bpe_process, "__file__", str(script))
    script.write_text(
        "import os, sys\nprint('no room', file=sys.stderr, flush=True)\nos.kill(os.getpid(), 9)\n"
    )
    with pytest.raises(
        ResourceError,
        match=r"was ended by signal 9 \(no room\); it needs memory for every different word",
    ):
        train_bpe(["a"] * 100_000, 300)
    script.write_text("raise MemoryError\n")
    with pytest.raises(ResourceError, match="found no memory"):
        train_bpe(["a"], 300)
    script.write_text("raise KeyError('a bug')\n")
    with pytest.raises(RuntimeError, match="a bug"):
        train_bpe(["a"], 300)


def test_the_process_ends_when_its_parent_is_gone() -> None:
    """row 66: stdin that breaks off, or is closed before the result was fetched, ends it."""
    words = [sys.executable, "-P", bpe_process.__file__, "30000", "<|endoftext|>"]
    for sent in ((5).to_bytes(8, "little") + b"ab", b"", (100).to_bytes(3, "little")):
        done = subprocess.run(words, input=sent, capture_output=True, timeout=60, check=False)
        assert (done.returncode, done.stdout) == (1, b"")
    rng = random.Random(1)
    text = "".join(rng.choice("abcdefghij") for _ in range(150_000)).encode()
    process = subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdin is not None
    process.stdin.write(
        len(text).to_bytes(8, "little") + text + bpe_process.END.to_bytes(8, "little")
    )
    process.stdin.close()
    assert process.stdout is not None
    assert process.stdout.read() == b""
    assert process.wait(60) == 1


def test_merges_are_counted_as_they_are_made() -> None:
    """row 66: the lines that the library writes, and others, which are kept for the message of a
    fault.
    """
    lines = [
        b'{"stage":"Count pairs","current":9,"total":9}',
        b'{"stage":"Compute merges","current":7,"total":300}',
    ]
    heard = bpe._Listener(io.BytesIO(b"\n".join([*lines, b"not JSON \xff", b"[]"])))
    heard.listen()
    assert heard.merges == 7
    assert list(heard.others) == ["not JSON \ufffd", "[]"]
