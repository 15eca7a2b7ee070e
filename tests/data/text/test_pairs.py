"""Parallel text: pairs stay together, are padded and cut as said, and an encoder-decoder learns
from them.
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Result

from bigmodel_cli.data import load_tokenizer, open_data
from bigmodel_cli.data.text.pairs import PairsOptions, PairTableOptions

Cli = Callable[..., Result]


def write(name: str, lines: list[str]) -> str:
    """A file of these lines; .gz where its name says so."""
    text = "".join(f"{line}\n" for line in lines).encode()
    Path(name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    return name


def options(**changes: object) -> PairsOptions:
    values = {
        "source": ["a.txt"],
        "target": ["b.txt"],
        "context": 6,
        "tokenizer": {"type": "bytes"},
    }
    values |= {"val_fraction": 0, **changes}
    return PairsOptions.model_validate(values)


def test_pairs_as_tokens() -> None:
    sources, targets = ["ab", "", "abcdef", "c", "de"], ["x", "y", "z", "vwxyz", "uvw"]
    write("a.txt", sources)
    write("b.txt", targets)
    write("c.txt.gz", sources)
    write("d.txt.gz", targets)
    said: list[str] = []
    data = open_data(
        options(test_source=["c.txt.gz"], test_target=["d.txt.gz"]), base=Path(), say=said.append
    )
    assert data.splits == ("train", "test")
    assert data.info.context == 6
    train = data.split("train")
    assert any("2 of 5 training pairs are left out" in line for line in said)
    batch = train.batch(np.arange(3), 0, 0, True)
    end = load_tokenizer(data.assets()).end_of_text
    assert batch["source"].tolist() == [[97, 98, end], [99, end, -1], [100, 101, end]]
    assert batch["target"].tolist() == [
        [end, 120, end, -1, -1, -1, -1],
        [end, 118, 119, 120, 121, 122, end],
        [end, 117, 118, 119, end, -1, -1],
    ]
    test = data.split("test")
    assert len(test) == 5  # every pair stays in evaluation
    whole = test.batch(np.arange(5), 0, 0, False)
    assert whole["source"][1].tolist() == [end, -1, -1, -1, -1, -1]
    assert whole["source"][2].tolist() == [97, 98, 99, 100, 101, end]  # cut
    assert test.batch(np.array([1]), 0, 0, False)["target"].tolist() == [[end, 121, end]]


@pytest.mark.parametrize("form", ["tsv", "csv.gz", "jsonl", "parquet"])
def test_a_table_of_two_columns_gives_what_two_files_give(form: str) -> None:
    sources, targets = ["ab", "a, b", "abcdef", "c", 'd"e'], ["x", "y", "z", "vwxyz", "uvw"]
    write("a.txt", sources)
    write("b.txt", targets)
    name, columns = f"pairs.{form}", {"source": "en", "target": "de"}
    if form == "tsv":
        write(
            name, [f"{i}\t{a}\t{b}" for i, (a, b) in enumerate(zip(sources, targets, strict=True))]
        )
        columns = {"source": 1, "target": 2}
    elif form == "csv.gz":
        quoted = ['"' + a.replace('"', '""') + '"' for a in sources]
        write(name, ["en,de", *(f"{a},{b}" for a, b in zip(quoted, targets, strict=True))])
    elif form == "jsonl":
        write(name, [json.dumps({"de": b, "en": a}) for a, b in zip(sources, targets, strict=True)])
    else:
        pa = pytest.importorskip("pyarrow")
        import pyarrow.parquet

        pyarrow.parquet.write_table(pa.table({"de": targets, "en": sources}), name)
    again, copy_a, copy_b = f"again.{form}", write("c.txt", sources), write("d.txt", targets)
    Path(again).write_bytes(Path(name).read_bytes())
    values = {
        "train": [name],
        "test": [again],
        **columns,
        "context": 7,
        "tokenizer": {"type": "bytes"},
    }
    values |= {"val_fraction": 0}
    data = open_data(PairTableOptions.model_validate(values), base=Path(), say=lambda _: None)
    files = open_data(
        options(context=7, test_source=[copy_a], test_target=[copy_b]),
        base=Path(),
        say=lambda _: None,
    )
    for split in ("train", "test"):
        got, want = (d.split(split).batch(np.arange(5), 0, 0, False) for d in (data, files))
        assert got.keys() == want.keys()
        assert all(np.array_equal(got[side], want[side]) for side in got)
    table: Any = data.split("test")
    assert table.texts() == (sources, targets)


def test_each_side_may_have_its_own_tokenizer(cli: Cli) -> None:
    write("a.txt", ["one two", "two one", "one one two"] * 40)
    write("b.txt", ["zwölf", "drei zwölf", "drei"] * 40)
    write("c.txt", ["one two", "two one", "one one two"])
    write("d.txt", ["zwölf", "drei zwölf", "drei"])
    Path("own.yaml").write_text(
        "model:\n  type: seq2seq\n  dim: 16\n  encoder: [{mixer: {type: attention, num_heads:"
        " 2}}]\n  decoder: [{cross: {num_heads: 2}}]\ndata: {type: pairs, source: [a.txt], target:"
        " [b.txt], val_source: [c.txt], val_target: [d.txt], context: 12,\n  tokenizer: {type: bpe,"
        " vocab_size: 270}, source_tokenizer: {type: characters}}\ntask: {type: seq2seq, beams:"
        " 2}\ntrain: {steps: 3, batch_tokens: 200, precision: fp32}\n"
    )
    trained = cli("pretrain", "own.yaml", "--out", "run")
    assert trained.status == 0, trained.err
    kept = Path(trained.out.strip())
    info = json.loads((kept / "facts.json").read_text())
    assert info["source_vocab_size"] == len(set("one two\n")) + 1  # and the end
    assert 257 < info["vocab_size"] <= 270
    assert cli("eval", "run").status == 0
    assert [
        json.loads(line)["input"] for line in cli("predict", "run", "one", "two").out.splitlines()
    ] == [
        "one",
        "two",
    ]
    assert cli("bench", "run", "--seconds", 0.1).status == 0
    write("a.txt", ["two", "one"] * 60)  # the checkpoint's tokenizers are used, not new ones
    assert cli("eval", "run").status == 0


@pytest.mark.no_cover
def test_an_encoder_decoder_learns_to_reverse_words(cli: Cli) -> None:
    words = [
        "".join(random.Random(i).choices("abcdef", k=random.Random(i).randint(1, 5)))
        for i in range(3000)
    ]
    for name, some in (("train", words[:2800]), ("val", words[2800:])):
        write(f"{name}.a", some)
        write(f"{name}.b", [word[::-1] for word in some])
    Path("turn.yaml").write_text(
        "model:\n  type: seq2seq\n  dim: 48\n  encoder: [{mixer: {type: attention, num_heads: 4},"
        " ffn: {type: relu}, placement: post}]\n  decoder: [{mixer: {type: attention, num_heads:"
        " 4}, cross: {num_heads: 4}, ffn: {type: relu}, placement: post}]\ndata: {type: pairs,"
        " source: [train.a], target: [train.b], val_source: [val.a], val_target: [val.b], context:"
        " 8,\n  tokenizer: {type: bytes}}\ntask: {type: seq2seq}\ntrain: {steps: 250, batch_size:"
        " 64, optimizer: {lr: 4e-3}, schedule: {type: cosine, warmup: 50}, precision: fp32}\n"
    )
    assert cli("pretrain", "turn.yaml", "--dry-run").status == 0
    trained = cli("pretrain", "turn.yaml", "--out", "run")
    assert trained.status == 0, trained.err
    last = json.loads(Path("run/metrics.jsonl").read_text().splitlines()[-1])["val"]
    assert last["accuracy"] > 0.97
    assert json.loads(cli("eval", "run", "--json").out)["loss"] == pytest.approx(
        last["loss"], rel=1e-4
    )
    written = [
        json.loads(line)
        for line in cli("predict", "run", "abc", "f", "deadbe"[:5]).out.splitlines()
    ]
    assert [w["input"] for w in written] == ["abc", "f", "deadb"]
    assert [w["text"] for w in written] == ["cba", "f", "bdaed"]
    alone = json.loads(cli("predict", "run", "abc").out)
    assert alone == written[0]  # whatever stands beside it in the batch
    looked = json.loads(cli("attend", "run", "abc", "--json").out)
    assert looked["answer"] == "cba"
    assert {layer["kind"] for layer in looked["layers"]} == {"self", "cross"}
    assert looked["alignment"]["source"] == ["abc", "<end>"]
    assert looked["alignment"]["target"] == ["cba"]
    assert cli("bench", "turn.yaml", "--seconds", 0.1).status == 0


DECODER = "{type: decoder, dim: 16, blocks: [{mixer: {type: attention, num_heads: 2}}]}"


@pytest.mark.parametrize(
    ("changes", "status", "message"),
    [
        (["data.target=[short.txt]"], 3, "have 3 lines and the targets (short.txt) 2"),
        (["data.source=[no.txt]"], 3, "data.source: no.txt: no such file"),
        (["data.val_source=[a.txt]"], 2, "give both val_source and val_target, or neither"),
        (["data.context=1"], 3, "no training pair fits into data.context 1"),
        (
            [f"model={DECODER}", "task.type=causal_lm"],
            2,
            "task.type: causal_lm reads tokens, and data.type: pairs has source, target",
        ),
        (
            ["data={type: text, files: [a.txt], context: 4, val_fraction: 0.5}"],
            2,
            "reads source, target, and data.type: text has tokens",
        ),
        (
            ["model={type: encoder, dim: 16, blocks: [{ffn: {type: relu}}]}"],
            2,
            "task.type: seq2seq is learnt by model.type: seq2seq, and model.type is encoder",
        ),
    ],
)
def test_pair_options_that_do_not_fit_are_refused(
    changes: list[str], status: int, message: str, cli: Cli
) -> None:
    write("a.txt", ["abcd", "bcde", "cdef"])
    write("b.txt", ["x", "y", "z"])
    write("short.txt", ["x", "y"])
    block = "{mixer: {type: attention, num_heads: 2}, ffn: {type: relu}}"
    Path("pairs.yaml").write_text(
        f"model: {{type: seq2seq, dim: 16, encoder: [{block}], decoder: [{{cross: {{num_heads:"
        " 2}}]}\ndata: {type: pairs, source: [a.txt], target: [b.txt], context: 8, tokenizer:"
        " {type: bytes}}\ntask: {type: seq2seq}\ntrain: {steps: 2, batch_size: 2}\n"
    )
    result = cli(
        "pretrain", "pairs.yaml", *(word for change in changes for word in ("--set", change))
    )
    assert result.status == status, result.err
    assert message in result.err


def test_truncated_sources_are_reported_by_eval() -> None:
    write("a.txt", ["ab"] * 4)
    write("v.txt", ["abcdefgh", "ab", "abcdefghi"])
    write("w.txt", ["abcdefg", "abcdefgh", "b"])
    given = options(target=["a.txt"], val_source=["v.txt"], val_target=["w.txt"], context=8)
    said: list[str] = []
    open_data(given, base=Path(), say=said.append)
    assert "2 of 3 val sources are cut to 8 tokens" in said
    assert "1 of 3 val targets are cut to 8 tokens" in said
    assert not any("train" in line for line in said)
