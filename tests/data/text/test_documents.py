"""Text to windows of tokens: everything is covered, nothing is replaced, and the cache is built
once.
"""

from __future__ import annotations

import gzip
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Result, loss_of
from hypothesis import given, settings
from hypothesis import strategies as st
from zygote import Zygote

from bigmodel_cli.data import open_data
from bigmodel_cli.data.base import DataSet
from bigmodel_cli.data.files import find_files
from bigmodel_cli.data.text.bpe import train_bpe
from bigmodel_cli.data.text.corpus import ENDINGS, Corpus, survey
from bigmodel_cli.data.text.documents import StdlibOptions, TextOptions
from bigmodel_cli.data.text.own_tokenizers import ByteTokenizer, CharacterTokenizer
from bigmodel_cli.data.text.tokenizer_files import read_tokenizer
from bigmodel_cli.data.text.tokenizer_library import LibraryTokenizer
from bigmodel_cli.errors import DataError
from bigmodel_cli.models.decoder import Decoder, DecoderOptions
from bigmodel_cli.tasks import CausalLMOptions

Cli = Callable[..., Result]


def opened(said: list[str] | None = None, **options: Any) -> DataSet:
    values = {
        "type": "text",
        "files": ["text.txt"],
        "context": 8,
        "tokenizer": {"type": "characters"},
        **options,
    }
    return open_data(TextOptions.model_validate(values), base=Path.cwd(), say=(said or []).append)


def test_validation_covers_every_target_once() -> None:
    text = "abcdefghij" * 33 + "xyz"
    Path("text.txt").write_text(text)
    data = opened(val_fraction=0.5)
    train, val = text[: int(len(text) * 0.5)], text[int(len(text) * 0.5) :]
    split = data.split("val")
    tokens = split.batch(np.arange(len(split)), 0, 0, False)["tokens"]
    symbols = sorted(set(text))
    shown = ["".join(symbols[t] for t in row if t >= 0) for row in tokens.tolist()]
    assert shown[0] + "".join(s[1:] for s in shown[1:]) == val
    assert int((tokens[:, 1:] >= 0).sum()) == len(val) - 1
    first = data.split("train")
    for epoch in range(3):
        rows = first.batch(np.arange(len(first)), epoch, 0, True)["tokens"]
        assert rows.shape == (len(first), 9)
        for row in rows.tolist():
            assert "".join(symbols[t] for t in row) in train
    starts = {
        tuple(first.batch(np.array([0]), e, 0, True)["tokens"][0].tolist()) for e in range(30)
    }
    assert len(starts) > 3  # the windows move from epoch to epoch
    before = first.batch(np.arange(4), 2, 5, True)["tokens"]
    first.to(torch.device("cpu"))  # resident: the same windows from a tensor
    assert torch.equal(first.batch(np.arange(4), 2, 5, True)["tokens"], before)
    split.to(torch.device("cpu"))
    assert torch.equal(split.batch(np.arange(len(split)), 0, 0, False)["tokens"], tokens)


def test_files_folders_globs_gzip_and_jsonl() -> None:
    folder = Path("corpus/deep")
    folder.mkdir(parents=True)
    (folder / "a.txt").write_text("from a folder\n")
    (Path("corpus") / "b.txt.gz").write_bytes(gzip.compress(b"from gzip\n"))
    Path("rows.jsonl").write_text('{"text": "row one"}\n\n{"text": "row two", "n": 1}\n')
    with gzip.open("rows.jsonl.gz", "wt") as file:
        file.write(json.dumps({"body": "other"}) + "\n")
    files = find_files(["corpus", "*.jsonl"], Path.cwd(), "data.files", ENDINGS)
    documents = ["".join(d) for d in Corpus(files).documents()]
    assert documents == ["from gzip\n", "from a folder\n", "row one", "row two"]
    assert ["".join(d) for d in Corpus((Path("rows.jsonl.gz"),), "body").documents()] == ["other"]
    found = survey(Corpus(files))
    assert (found.documents, found.characters) == (4, sum(map(len, documents)))
    assert found.symbols == "".join(sorted(set("".join(documents))))
    data = opened(
        files=["corpus", "*.jsonl"], context=4, tokenizer={"type": "bytes"}, val_fraction=0.2
    )
    split = data.split("val")
    tokens = split.batch(np.arange(len(split)), 0, 0, False)["tokens"].flatten()
    assert 256 in tokens.tolist()  # documents end


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("text.txt", b"good\nbad \xe9 here", "text.txt: not UTF-8 at byte offset 9 (byte 0xe9)"),
        (
            "text.txt",
            b"x" * ((1 << 20) - 1) + b"\xe2\x82",
            f"text.txt: not UTF-8 at byte offset {(1 << 20) - 1}",
        ),
        ("text.txt", b"", "the corpus is empty"),
        ("text.txt", b"short", "fewer than one window of context 8 + 1"),
        (
            "rows.jsonl",
            b'{"text": "a"}\n{"text": 3}\n',
            "rows.jsonl:2: no text under the key 'text'",
        ),
        ("rows.jsonl", b'{"text": "a"}\n{oops\n', "rows.jsonl:2: not JSON"),
        (
            "rows.jsonl",
            b'{"text": "\xff"}\n',
            "rows.jsonl: not UTF-8 at byte offset 10 (byte 0xff) in line 1",
        ),
        ("rows.txt.gz", b"not gzip", "rows.txt.gz: cannot be read"),
    ],
)
def test_a_corpus_that_cannot_be_used(
    name: str, content: bytes, message: str, decoder_spec: Path, cli: Cli
) -> None:
    Path(name).write_bytes(content)
    result = cli("pretrain", decoder_spec, "--out", "run", "--set", f"data.files=[{name}]", "--set",
     "data.context=8",
                 "--set", "data.tokenizer.type=bytes")  # fmt: skip
    assert result.status == 3
    assert message in result.err
    assert "Traceback" not in result.err
    assert not Path("run/checkpoints").exists()


def test_missing_files_are_named(decoder_spec: Path, cli: Cli) -> None:
    for name in ("nothing.txt", "*.nothing", "empty"):
        Path("empty").mkdir(exist_ok=True)
        result = cli("pretrain", decoder_spec, "--set", f"data.files=['{name}']")
        assert result.status == 3
        assert "data.files: " in result.err
        assert name in result.err


def test_fewer_samples_than_a_batch(decoder_spec: Path, cli: Cli) -> None:
    result = cli("pretrain", decoder_spec, "--set", "train.batch_size=100000")
    assert result.status == 3
    assert "fewer than train.batch_size 100000" in result.err


texts = st.text(alphabet=st.characters(exclude_categories=("Cs",)), max_size=60)


@given(text=texts)
@settings(max_examples=60, deadline=None)
def test_tokenizers_give_every_text_back(text: str) -> None:
    assert ByteTokenizer().decode(ByteTokenizer().encode(text)) == text
    characters = CharacterTokenizer(text, end=True)
    assert characters.decode(characters.encode(text)) == text


def test_tokenizers_open_in_the_library_with_the_same_tokens() -> None:
    from tokenizers import Tokenizer

    text = "naïve  words,\n\tünïcode and 日本語 🙂"
    trained = train_bpe([text * 5], 300)
    for own in (
        ByteTokenizer(),
        CharacterTokenizer(text, end=True),
        CharacterTokenizer(text, end=False),
        trained,
    ):
        library = Tokenizer.from_str(own.to_json().decode())
        assert library.encode(text).ids == own.encode(text) == own.encode_array(text).tolist()
        assert library.decode(own.encode(text)) == own.decode(own.encode(text)) == text
        again = read_tokenizer(own.to_json(), "tokenizer.json")
        assert type(again) is type(own)
        assert (again.vocab_size, again.end_of_text) == (own.vocab_size, own.end_of_text)
        assert again.encode(text) == own.encode(text)
    assert isinstance(trained, LibraryTokenizer)
    assert trained.vocab_size <= 300
    # text that spells it stays text
    assert trained.encode("<|endoftext|>") != [trained.end_of_text]


def test_an_unknown_character_is_an_error_not_a_replacement() -> None:
    with pytest.raises(DataError, match=r"'z' \(U\+007A\) at character 2 is not in the vocabulary"):
        CharacterTokenizer("abc", end=False).encode("abz")


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"model": {"type": "BPE"}}', b"\xff"])
def test_faulty_tokenizer_options_are_refused(content: bytes) -> None:
    with pytest.raises(DataError, match=r"t.json: not a tokenizer.json"):
        read_tokenizer(content, "t.json")


def test_bpe_is_trained_on_the_training_split_alone() -> None:
    Path("text.txt").write_text("ab " * 900 + "zqzq " * 60)
    data = opened(tokenizer={"type": "bpe", "vocab_size": 270}, val_fraction=0.1)
    vocab = json.loads(data.assets()["tokenizer.json"])["model"]["vocab"]
    assert "Ġab" in vocab or "ab" in vocab
    assert not any("zq" in word for word in vocab)


def test_the_standard_library_is_the_same_each_time() -> None:
    options = StdlibOptions.model_validate({"type": "stdlib", "context": 16, "max_bytes": 200_000})
    said: list[str] = []
    first = open_data(options, base=Path.cwd(), say=said.append)
    again = open_data(options, base=Path("/"), say=said.append)
    assert first.fingerprint == again.fingerprint
    assert len(first.split("train")) * 16 > 100_000
    assert sum("tokenizing" in text for text in said) <= 1


def test_several_processes_build_one_cache(
    decoder_spec: Path, zygote: Zygote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
    killed = zygote.run(
        "pretrain", decoder_spec, "--out", "k", env={"BIGMODEL_FAILPOINT": "cache.built:kill:2"}
    )
    assert killed.status == -signal.SIGKILL
    children = [zygote.start("pretrain", decoder_spec, "--out", f"r{i}") for i in range(4)]
    assert [child.wait().status for child in children] == [0] * 4
    tokens = tmp_path / "own" / "bigmodel" / "tokens"
    assert len([p for p in tokens.iterdir() if not p.name.startswith(".")]) == 1
    assert not list(tokens.glob(".*draft*"))


def test_memory_does_not_grow_with_the_corpus() -> None:
    with open("large.txt", "w") as file:
        for _ in range(300):
            file.write("all of this is text " * 5000 + "\n")
    import tracemalloc

    tracemalloc.start()
    data = opened(files=["large.txt"], context=64, tokenizer={"type": "bytes"})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(data.split("train")) * 64 > 25_000_000
    assert peak < 15_000_000


def test_isolated_documents_do_not_see_one_another(
    cli: Callable[..., Result], tmp_path: Path
) -> None:
    rows = [{"text": text} for text in ("abcd", "bc", "dcba", "ab")]
    for name in ("docs.jsonl", "more.jsonl"):
        Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {"files": ["docs.jsonl"], "val_files": ["more.jsonl"], "context": 7, "isolate": True}
    data = open_data(TextOptions.model_validate(values), base=Path(), say=lambda _: None)
    batch = data.split("val").batch(np.arange(1), 0, 0, False)
    tokens, segments = batch["tokens"][0].tolist(), batch["segments"][0].tolist()
    assert tokens == [*b"abcd", 256, *b"bc", 256]
    assert segments == [0, 0, 0, 0, 1, 1, 1, 2]
    # What is foretold in a document is what is foretold where it stands alone.
    torch.manual_seed(0)
    options = DecoderOptions.model_validate(
        {
            "dim": 16,
            "position": {"type": "learned"},
            "blocks": [{"mixer": {"type": "attention", "num_heads": 2}}],
        }
    )
    model, task = Decoder(options, data.info).eval(), CausalLMOptions().build()
    together = loss_of(task, model, batch)[0]
    pieces = [torch.tensor([p]) for p in ([*b"abcd", 256], [256, *b"bc", 256])]
    alone = sum(loss_of(task, model, {"tokens": piece})[0] for piece in pieces)
    torch.testing.assert_close(together, alone)
    Path("spec.yaml").write_text(
        "model: {type: decoder, dim: 16, blocks: [{mixer: {type: attention, num_heads: 2}}]}\ndata:"
        " {type: text, files: [docs.jsonl], val_files: [more.jsonl], context: 4, isolate:"
        " true}\ntask: {type: causal_lm, sample_tokens: 0}\ntrain: {steps: 2, batch_size: 2,"
        " precision: fp32}\n"
    )
    assert cli("pretrain", "spec.yaml", "--out", "run").status == 0
    result = cli(
        "pretrain", "spec.yaml", "--set", "task.type=masked_lm", "--set", "task.sample_tokens=null"
    )
    assert result.status == 2
    Path("one.txt").write_text("abc" * 50)
    flags = [
        "--set",
        "data.files=[one.txt]",
        "--set",
        "data.val_files=[]",
        "--set",
        "data.tokenizer={type: characters}",
    ]
    result = cli("pretrain", "spec.yaml", *flags)
    assert result.status == 2
    assert "data.isolate: the text is one document" in result.err
