"""`predict`, `eval` and `attend` read as training does: a record for each line, nothing dropped or
cut without a word.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Result
from PIL import Image

from bigmodel_cli.data import open_data
from bigmodel_cli.data.prompts import Prompts
from bigmodel_cli.data.text.documents import TextOptions
from bigmodel_cli.data.text.own_tokenizers import ByteTokenizer
from bigmodel_cli.data.text.table import TableOptions
from bigmodel_cli.errors import SpecError
from bigmodel_cli.evaluation.evaluator import written
from bigmodel_cli.generation.text import Decoding, generate_from_source
from bigmodel_cli.loaded import load_checkpoint

Cli = Callable[..., Result]
TRAIN = (
    "train: {steps: 1, batch_size: 4, precision: fp32, memory_format: contiguous, compile: 'off'}\n"
)
END = 256


def feed(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    """What the command reads on stdin."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def records(result: Result) -> list[dict[str, Any]]:
    """The objects that a command wrote; lines end by a newline alone."""
    return [json.loads(line) for line in result.out.split("\n") if line]


def test_a_classifier_reads_lines_as_its_training_reads_rows(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["good plot", "a\u2028b\u0085c", "x" * 30, "bad film"]
    Path("a.tsv").write_text(
        "".join(f"{t}\t{i % 2}\n" for i, t in enumerate(texts * 2)), encoding="utf-8", newline="\n"
    )
    Path("s.yaml").write_text(
        "model: {type: encoder, dim: 16, position: {type: learned}, init_std: 0.5,\n  blocks:"
        " [{mixer: {type: attention, num_heads: 2}}]}\ndata: {type: table, train: [a.tsv],"
        " val_fraction: 0.25, text: [0], label: 1, context: 16, tokenizer: {type: bytes}}\ntask:"
        " {type: classification}\n" + TRAIN
    )
    assert cli("pretrain", "s.yaml", "--out", "run").status == 0
    lines = [f"\ufeff  {texts[0]}\t \r", texts[1], "", texts[2], "   ", texts[3]]
    given = "\n".join(lines).encode() + b"\nab\xffcd\n\n"
    feed(monkeypatch, given)
    result = cli("predict", "run", "--top", 2)
    said = records(result)
    assert len(said) == 8
    errors = {i: r["error"] for i, r in enumerate(said) if "error" in r}
    assert errors == {
        2: "line 3 is empty: there is no text to read",
        4: "line 5 is empty: there is no text to read",
        6: "line 7 is not UTF-8 at byte 2; save it as UTF-8",
        7: "line 8 is empty: there is no text to read",
    }
    assert said[6]["input"] == "ab\\xffcd"
    assert [r.get("truncated", False) for r in said] == [
        False,
        False,
        False,
        True,
        False,
        False,
        False,
        False,
    ]
    assert result.status == 3
    assert "4 of 8 lines could not be read; the first: line 3 is empty" in result.err
    assert "1 of 8 lines were cut: the model reads 16 tokens" in result.err

    # The probabilities are those of the rows as training has them.
    loaded = load_checkpoint(Path("run"), "cpu")
    data = open_data(loaded.spec.data, base=Path(), say=lambda _: None, assets=loaded.files())
    shown: dict[tuple[int, ...], Any] = {}
    for split in (data.split("train"), data.split("val")):
        batch = split.batch(np.arange(len(split)), 0, 0, False)["tokens"]
        with torch.no_grad():
            rows = loaded.model(batch).softmax(1)
        shown |= {
            tuple(t for t in row if t >= 0): p for row, p in zip(batch.tolist(), rows, strict=True)
        }
    for text, record in zip(texts, (said[i] for i in (0, 1, 3, 5)), strict=True):
        want = shown[(END, *text.encode()[:14], END)]
        got = {t["label"]: t["probability"] for t in record["top"]}
        assert [got["0"], got["1"]] == pytest.approx(want.tolist(), abs=2e-6)

    # So are those that `attend` looks at, marks included.
    looked = json.loads(cli("attend", "run", f"\ufeff {texts[2]} ", "--json").out)
    assert looked["layers"][0]["keys"]["tokens"] == ["<start>", *"x" * 14, "<end>"]
    assert "windows" in looked["notes"][0]


def test_prompts_keep_blanks_and_lose_the_byte_order_mark(
    decoder_spec: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli("pretrain", decoder_spec, "--out", "run", "--set", "train.steps=1").status == 0
    prompts = ["\ufeffall", " all ", "attention is all you need", "", "all", "Ünd", "a small model"]
    feed(monkeypatch, "\r\n".join(prompts).encode() + b"\r\n")
    how = ["--max-tokens", 30, "--seed", 4]
    result = cli("predict", "run", *how)
    said = records(result)
    assert [r["input"] for r in said] == ["all", *prompts[1:]]
    assert [i for i, r in enumerate(said) if "error" in r] == [3, 5]
    assert "line 4: the prompt is empty" in said[3]["error"]
    assert "line 6: 'Ü' (U+00DC) at character 0 is not in the vocabulary" in said[5]["error"]
    assert [i for i, r in enumerate(said) if "truncated" in r] == [2]
    assert all(len(r["text"]) == 30 for r in said if "text" in r)
    assert (result.status, "2 of 7 lines could not be read" in result.err) == (3, True)
    assert "1 of 7 lines were cut: the model reads 16 tokens, the last ones" in result.err
    # Alone each has the same text: an item that fails takes no neighbour's draws, a long one no
    # neighbour's room.
    fine = [p for p, r in zip(["all", *prompts[1:]], said, strict=True) if "text" in r]
    for beams in ([], ["--beams", 2], ["--temperature", 0]):
        settings = ["--max-tokens", 30, *beams]
        together = records(cli("predict", "run", *settings, *fine))
        alone = [records(cli("predict", "run", *settings, text))[0] for text in fine]
        scores = [[r.pop("score", 0.0) for r in some] for some in (together, alone)]
        assert scores[0] == pytest.approx(scores[1], abs=1e-4)
        assert together[0] == alone[0]
        assert together == alone or not beams  # numbers that are drawn go by an item's place
    looked = cli("attend", "run", "attention is all you need", "--json")
    assert looked.status == 0, looked.err
    (shown,) = {"".join(x["keys"]["tokens"]) for x in json.loads(looked.out)["layers"]}
    assert shown == "attention is all you need"[-16:]
    assert "longer than the context: it is read in 2 windows" in looked.err


def test_a_prompt_begins_as_the_training_texts_of_its_data_do() -> None:
    table: dict[str, Any] = {"train": ["a.tsv"], "text": [0], "tokenizer": {"type": "bytes"}}
    text: dict[str, Any] = {"files": ["a.txt"], "context": 8}
    for options, given, want in (
        (TextOptions(**text), " a ", [32, 97, 32]),
        (TextOptions(**text, isolate=True), "\ufeffa", [END, 97]),
        (TextOptions(**text, isolate=True), "", [END]),
        (TableOptions(**table), "  a ", [END, 97, 32]),
        (TableOptions(**{**table, "text": [0, 1]}), " a \t b", [END, 97, END, 98]),
        (TableOptions(**table), "abcdefghi", [*b"bcdefghi"]),
    ):
        tokens, truncated = Prompts(ByteTokenizer(), 8, options).read(given, "line 1")
        assert (tokens, truncated) == (want, len(given) > 8)


def test_one_image_that_cannot_be_read_leaves_the_others(
    cnn_spec: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sklearn")
    assert cli("pretrain", cnn_spec, "--out", "run", "--set", "train.steps=1").status == 0
    for i in range(3):
        Image.fromarray(np.full((8, 8), 80 * i, np.uint8)).save(f"{i}.png")
    Path("broken.png").write_bytes(Path("1.png").read_bytes()[:40])
    Image.fromarray(np.full((8, 8), 9, np.uint8)).save(b"\xff.png")
    feed(monkeypatch, b"0.png\nbroken.png\n\nnone.png\n1.png\n\xff.png\n2.png")
    result = cli("predict", "run")
    said = records(result)
    assert [r["input"] for r in said] == [
        "0.png",
        "broken.png",
        "",
        "none.png",
        "1.png",
        "\\xff.png",
        "2.png",
    ]
    assert ["error" in r for r in said] == [False, True, True, True, False, False, False]
    assert "line 3 is empty: it names no file" in said[2]["error"]
    assert said[1]["error"].endswith("; repair or remove it")  # data.on_bad is for training
    assert (result.status, "3 of 7 lines could not be read" in result.err) == (3, True)
    whole = cli("predict", "run", "0.png", "1.png", "2.png")
    assert whole.status == 0
    assert [r["top"] for r in records(whole)] == [said[i]["top"] for i in (0, 4, 6)]
    assert records(cli("predict", "run", "."))[0]["error"] == ".: a folder; name the files in it"
    failed = cli("predict", "run", "none.png", "0.png")
    assert (failed.status, [("error" in r) for r in records(failed)]) == (3, [True, False])


@pytest.fixture
def pairs(cli: Cli) -> Path:
    """A run of an encoder-decoder whose context is longer than 200 tokens."""
    for name, count in (("train", 12), ("val", 5)):
        Path(f"{name}.a").write_text("".join("ab "[i % 3] * (i + 1) + "c\n" for i in range(count)))
        Path(f"{name}.b").write_text("".join("ba"[i % 2] * (i + 1) + "\n" for i in range(count)))
    with open("val.a", "a") as a, open("val.b", "a") as b:
        a.write("abc" * 100 + "\n\n")
        b.write("b\na\n")
    Path("s.yaml").write_text(
        "model:\n  {type: seq2seq, dim: 16, logit_bias: true, encoder: [{mixer: {type: attention,"
        " num_heads: 2}}],\n  decoder: [{mixer: {type: attention, num_heads: 2}, cross: {num_heads:"
        " 2}}]}\ndata: {type: pairs, source: [train.a], target: [train.b], val_source: [val.a],"
        " val_target: [val.b], context: 240,\n  tokenizer: {type: characters}}\ntask: {type:"
        " seq2seq, beams: 2, metrics: [bleu]}\n" + TRAIN
    )
    result = cli("pretrain", "s.yaml", "--out", "run")
    assert result.status == 0, result.err
    return Path("run")


def test_texts_end_where_the_context_does_and_those_without_an_end_are_counted(
    pairs: Path, cli: Cli, capfd: pytest.CaptureFixture[str]
) -> None:
    loaded = load_checkpoint(pairs, "cpu")
    model: Any = loaded.model
    end = -1  # the mark comes after the characters
    data = open_data(loaded.spec.data, base=Path(), say=lambda _: None, assets=loaded.files())
    with torch.no_grad():
        model.head.bias[end] = -1e9  # it never ends
    for beams, task in ((1, None), (2, None), (1, 7), (2, 7)):
        settings = [f"task.beams={beams}", "train.seed=0"] + (
            [f"task.max_tokens={task}"] if task else []
        )
        spec = load_checkpoint(pairs, "cpu", settings).spec
        columns = written(type(loaded)(**{**vars(loaded), "spec": spec}), data.split("val"))
        longest = task or 240
        assert {len(text) for text in columns["prediction"]} == {longest}
        assert columns["unfinished"] == [True] * 7
        assert columns["truncated"] == [False] * 5 + [True, False]
        err = capfd.readouterr().err
        assert (
            f"7 of 7 texts have not ended after {longest} tokens, the most that are written" in err
        )
        assert "1 of 7 sources were cut: the model reads 240 tokens" in err
    said = list(generate_from_source(loaded, ["ab"], Decoding(max_tokens=1000, n_best=2)))
    assert said[0]["unfinished"] is True
    assert [len(h["text"]) for h in said[0]["hypotheses"]] == [240, 240]
    assert (
        "--max-tokens 1000: the model's context has room for 240 tokens" in capfd.readouterr().err
    )
    more = type(loaded)(
        **{**vars(loaded), "spec": load_checkpoint(pairs, "cpu", ["task.max_tokens=500"]).spec}
    )
    list(generate_from_source(more, ["ab"], Decoding()))
    assert (
        "task.max_tokens 500: the model's context has room for 240 tokens" in capfd.readouterr().err
    )
    with torch.no_grad():
        model.head.bias[end] = 1e9  # it ends at once
    assert list(generate_from_source(loaded, ["ab"], Decoding(beams=1))) == [
        {"input": "ab", "text": ""}
    ]

    report = cli(
        "eval", pairs, "--json", "--set", "task.max_tokens=3", "--predictions", "samples.jsonl"
    )
    values = json.loads(report.out)
    rows = [json.loads(line) for line in Path("samples.jsonl").read_text().split("\n") if line]
    assert (values["longest"], values["truncated"]) == (3, 1)
    assert values["unfinished"] == sum(row["unfinished"] for row in rows)
    assert (f"{values['unfinished']} of 7 texts have not ended" in report.err) == (
        values["unfinished"] > 0
    )
    shown = cli("predict", pairs, "abc" * 100, "", "a", "--max-tokens", 4)
    assert [("truncated" in r, "error" in r) for r in records(shown)] == [
        (True, False),
        (False, True),
        (False, False),
    ]
    assert shown.status == 3


def test_filters_draw_and_two_ways_at_once_are_refused(pairs: Path, cli: Cli) -> None:
    greedy, first = (
        cli("predict", pairs, "ab", *how).out for how in (["--temperature", 0], ["--top-k", 1])
    )
    assert greedy == first
    loaded = load_checkpoint(pairs, "cpu")
    model: Any = loaded.model
    with torch.no_grad():
        model.head.bias[-1] = -1e9  # the end, which comes after the characters
    for how in ({"top_k": 3}, {"top_p": 0.99}, {"min_p": 0.01}):
        drawn = [
            list(generate_from_source(loaded, ["ab"], Decoding(20, **how, seed=seed)))
            for seed in range(12)
        ]
        assert len({texts[0]["text"] for texts in drawn}) >= 2
        assert not any("score" in texts[0] for texts in drawn)
    for flags, message in (
        (["--beams", 3, "--top-k", 4], "--top-k, --top-p and --min-p draw; give one or the other"),
        (
            ["--n-best", 2, "--min-p", 0.1],
            "--top-k, --top-p and --min-p draw; give one or the other",
        ),
        (["--temperature", 0, "--top-p", 0.5], "--temperature 0 is greedy"),
        (["--temperature", 1, "--length-penalty", 0.5], "--length-penalty is for a search"),
        (["--temperature", 0, "--seed", 2], "--seed 2 is for drawn text"),
    ):
        result = cli("predict", pairs, "ab", *flags)
        assert (result.status, result.out) == (2, ""), flags
        assert message in result.err
    idle = cli("predict", pairs, "ab", "--set", "train.steps=3", "--set", "train.batch_size=2")
    assert "train.steps: not used: nothing is trained here" in idle.err
    whole = cli("predict", pairs, "ab", "--set", "train={steps: 3}")
    assert (whole.status, "train: not used: nothing is trained here" in whole.err) == (0, True)
    Decoding(top_k=3).check()
    with pytest.raises(SpecError):
        Decoding(temperature=0.0, min_p=0.1).check()


def test_a_decoder_writes_though_its_data_has_labels(cli: Cli) -> None:
    Path("rows.tsv").write_text(
        "text\tlabel\n" + "".join(f"ab {i}\t{'xy'[i % 2]}\n" for i in range(40))
    )
    Path("spec.yaml").write_text(
        "model: {type: decoder, dim: 8, blocks: [{mixer: {type: attention, num_heads: 2}}]}\ndata:"
        " {type: table, train: [rows.tsv], text: [text], label: label, header: true, context: 16,"
        " tokenizer: {type: bytes}}\ntask: {type: causal_lm, sample_tokens: 0}\ntrain: {steps: 1,"
        " batch_size: 4, precision: fp32}\n"
    )
    assert cli("pretrain", "spec.yaml", "--out", "run").status == 0
    written = records(cli("predict", "run", "--max-tokens", 5, "--top-k", 3, "ab", "b"))
    assert [sorted(record) for record in written] == [["input", "text"]] * 2
    assert "--top is for models that label" in cli("predict", "run", "--top", 2, "ab").err
