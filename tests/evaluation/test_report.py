"""`eval` and `predict` of models that write: samples, comparison, scoring again, beams, averages,
batches by tokens.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sacrebleu
import torch
from conftest import Result

from bigmodel_cli import checkpoints
from bigmodel_cli.loaded import load_checkpoint

Cli = Callable[..., Result]
SPEC = """\
model:
  type: seq2seq
  dim: 32
  encoder: [{mixer: {type: attention, num_heads: 4}, ffn: {type: relu}, placement: post}]
  decoder: [{mixer: {type: attention, num_heads: 4}, cross: {num_heads: 4}, ffn: {type: relu},
    placement: post}]
data:
  type: pairs
  source: [train.a]
  target: [train.b]
  val_source: [val.a]
  val_target: [val.b]
  context: 24
  tokenizer: {type: bytes}
task: {type: seq2seq, beams: 3}
train:
  steps: 60
  batch_tokens: 600
  optimizer: {lr: 3e-3}
  precision: fp32
  validate_every: 20
  average_last: 3
"""


def write_pairs(name: str, count: int, seed: int) -> None:
    rng = random.Random(seed)
    rows = [
        " ".join(rng.choices(["one", "two", "red", "big", "dog"], k=rng.randint(1, 4)))
        for _ in range(count)
    ]
    Path(f"{name}.a").write_text("\n".join(rows) + "\n")
    Path(f"{name}.b").write_text("\n".join(" ".join(reversed(r.split())) for r in rows) + "\n")


@pytest.fixture
def trained(cli: Cli) -> Path:
    write_pairs("train", 400, 0)
    write_pairs("val", 40, 1)
    Path("turn.yaml").write_text(SPEC)
    result = cli("pretrain", "turn.yaml", "--out", "run")
    assert result.status == 0, result.err
    assert "averaging the weights of the last 3 checkpoints, from step 20" in result.err
    return Path(result.out.strip())


def test_predictions_are_compared_with_another_models_and_rescored(trained: Path, cli: Cli) -> None:
    report = json.loads(cli("eval", "run", "--json", "--predictions", "samples.jsonl").out)
    rows: list[dict[str, Any]] = [
        json.loads(line) for line in Path("samples.jsonl").read_text().splitlines()
    ]
    assert [r["source"] for r in rows] == Path("val.a").read_text().splitlines()
    assert [r["reference"] for r in rows] == Path("val.b").read_text().splitlines()
    predictions = [r["prediction"] for r in rows]
    assert (
        report["bleu"] == sacrebleu.corpus_bleu(predictions, [[r["reference"] for r in rows]]).score
    )
    assert report["metrics"]["bleu"]["signature"].startswith("nrefs:1|case:mixed")
    assert sum(r["counts"]["loss"] for r in rows) == report["metrics"]["loss"]["count"]
    # What `predict` writes is what was scored.
    alone = [
        json.loads(line)["text"]
        for line in cli("predict", "run", *(r["source"] for r in rows[:7])).out.splitlines()
    ]
    assert alone == predictions[:7]

    again = json.loads(cli("eval", "--rescore", "samples.jsonl", "--json").out)
    for name, value in report["metrics"].items():
        assert again[name] == pytest.approx(value["value"]), name
        assert again["metrics"][name]["low"] == pytest.approx(value["low"]), name
    other = json.loads(cli("eval", "--rescore", "samples.jsonl", "--metric", "rouge", "--json").out)
    assert "rougeL" in other
    assert "bleu" not in other

    bare = (
        "--set",
        "task.metrics=[]",
        "--set",
        "task.baseline=lead",
        "--predictions",
        "bare.jsonl",
        "--json",
    )
    assert "bleu" not in json.loads(cli("eval", "run", *bare).out)
    unjudged = [json.loads(line) for line in Path("bare.jsonl").read_text().splitlines()]
    assert [r["prediction"] for r in unjudged] == predictions

    first = next(Path("run/checkpoints").glob("step-*20"))
    shown = cli("eval", first, "--compare", "run")
    assert "paired over the same items" in shown.out
    compared = json.loads(cli("eval", first, "--compare", "run", "--json").out)
    difference = compared["differences"]["loss"]
    assert compared["differences"].keys() == report["metrics"].keys()
    assert compared["differences"].keys() >= {"loss", "accuracy", "perplexity", "bleu", "chrf"}
    perplexity = compared["differences"]["perplexity"]
    assert perplexity["second"] == pytest.approx(math.exp(report["loss"]))
    assert perplexity["low"] < perplexity["difference"] < perplexity["high"] < 0
    assert difference["second"] == pytest.approx(report["loss"])
    assert difference["difference"] < 0
    assert difference["p"] < 0.01


def test_the_result_is_the_mean_of_the_last_checkpoints(trained: Path, cli: Cli) -> None:
    assert trained.name == "average"
    assert checkpoints.find(Path("run")).resolve() == trained.resolve()
    several = [
        checkpoints.read(p, train_state=False).model.load()
        for p in checkpoints.steps(Path("run/checkpoints"))
    ]
    assert len(several) == 3
    mean = checkpoints.read(trained, train_state=False).model.load()
    for name, tensor in mean.items():
        torch.testing.assert_close(tensor, torch.stack([w[name] for w in several]).mean(0))
    records = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    last = next(r["val"]["loss"] for r in reversed(records) if "val" in r)
    assert json.loads(cli("eval", "run", "--json").out)["loss"] == pytest.approx(last, rel=1e-5)
    longer = cli("pretrain", "turn.yaml", "--out", "run", "--resume", "--set", "train.steps=80")
    assert longer.status == 0, longer.err
    assert "from step 40" in longer.err


def test_patience_by_a_metric_of_generated_text(trained: Path, cli: Cli) -> None:
    """The best checkpoint is the one of the highest chrF; judging by text changes nothing of the
    training itself.
    """
    settings = (
        "--set",
        "task.metric=chrf",
        "--set",
        "task.metrics=[bleu]",
        "--set",
        "train.average_last=null",
    )
    result = cli("pretrain", "turn.yaml", "--out", "by", *settings, "--set", "train.keep_last=3")
    assert result.status == 0, result.err
    records = [json.loads(line) for line in Path("by/metrics.jsonl").read_text().splitlines()]
    seen = {r["step"]: r["val"] for r in records if "val" in r}
    assert set(seen) == {20, 40, 60}
    assert all(
        values.keys() >= {"loss", "accuracy", "perplexity", "chrf"} for values in seen.values()
    )
    best = max(seen, key=lambda step: seen[step]["chrf"])
    assert Path("by/checkpoints/best").resolve().name == f"step-{best:08d}"
    for step, values in seen.items():
        report = json.loads(
            cli("eval", f"by/checkpoints/step-{step:08d}", "--split", "val", "--json").out
        )
        assert report["chrf"] == pytest.approx(values["chrf"], rel=1e-9)
        assert "bleu" in report
    plain, judged = (
        checkpoints.read(Path(run, "checkpoints/step-00000060"), train_state=False).model.load()
        for run in ("run", "by")
    )
    assert all(torch.equal(plain[name], judged[name]) for name in plain)
    early = cli(
        "pretrain",
        "turn.yaml",
        "--out",
        "early",
        *settings,
        "--set",
        "train.patience=1",
        "--set",
        "train.validate_every=1",
    )
    assert "validations without a better chrf" in early.err
    result = Path(early.out.strip())
    assert (
        result.resolve()
        == Path("early/checkpoints/best").resolve()
        == checkpoints.find(Path("early")).resolve()
    )
    newest = checkpoints.steps(Path("early/checkpoints"))[-1]
    assert newest.name > result.name
    more = cli(
        "pretrain",
        "turn.yaml",
        "--out",
        "early",
        *settings,
        "--set",
        "train.patience=9",
        "--resume",
    )
    assert f"after step {int(newest.name[5:])}\n" in more.err


def test_beams_and_drawing(trained: Path, cli: Cli) -> None:
    loaded = load_checkpoint(Path("run"), "cpu")
    assert loaded.spec.task.beams == 3
    best = json.loads(cli("predict", "run", "big red dog", "--beams", 4, "--n-best", 3).out)
    scores = [h["score"] for h in best["hypotheses"]]
    assert len(scores) == 3
    assert scores == sorted(scores, reverse=True)
    assert best["text"] == best["hypotheses"][0]["text"]
    greedy = [
        cli("predict", "run", "one two", *flags).out
        for flags in (["--beams", 1], ["--temperature", 0])
    ]
    assert json.loads(greedy[0])["text"] == json.loads(greedy[1])["text"]
    drawn = [
        cli("predict", "run", *some, "--temperature", 1.5, "--seed", 3).out
        for some in (["dog", "one red"], ["dog"])
    ]
    assert drawn[0].splitlines()[0] == drawn[1].strip()
    for flags, message in (
        (["--beams", 3, "--temperature", 1], "--beams and --n-best search, --temperature draws"),
        (["--beams", 2, "--n-best", 3], "--n-best 3 is more than the 2 hypotheses"),
        (
            ["--n-best", 2, "--repetition-penalty", 1.2],
            "--repetition-penalty is for drawn and greedy text",
        ),
        (["--beams", 2, "--length-penalty", "inf"], "--length-penalty inf: give a finite number"),
        (["--temperature", "inf"], "--temperature inf: give a finite number"),
        (["--top", 2], "--top is for models that label, and this one was trained for seq2seq"),
    ):
        result = cli("predict", "run", "dog", *flags)
        assert (result.status, result.out) == (2, "")
        assert message in result.err


def test_what_cannot_be_scored_is_refused(
    trained: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli("eval", "run", "--predictions", "good.jsonl")
    lines = Path("good.jsonl").read_text().splitlines()
    for content, message in (
        ("", "empty; there is nothing to score"),
        ("\n".join([*lines, "{"]) + "\n", "bad.jsonl:41: not JSON"),
        ('{"a": 1}\n', ':1: no object with "scores"'),
        (
            lines[0] + "\n" + '{"task": "seq2seq", "scores": {"loss": 1}}\n',
            "are not of one evaluation",
        ),
        (
            '{"task": "seq2seq", "scores": {"loss": 1, "bleu": 3}, "counts": {"loss": 2}}\n',
            "lacks what its metrics need",
        ),
    ):
        Path("bad.jsonl").write_text(content)
        result = cli("eval", "--rescore", "bad.jsonl")
        assert (result.status, result.out) == (3, ""), message
        assert message in result.err
    assert "give either a checkpoint, or --rescore" in cli("eval").err
    assert "did you mean rouge" in cli("eval", "--rescore", "good.jsonl", "--metric", "rogue").err
    nowhere = cli("eval", "run", "--predictions", "no/such/folder.jsonl")
    assert nowhere.status == 5
    write_pairs("val", 30, 2)
    write_pairs("other", 31, 2)
    second = cli(
        "pretrain",
        "turn.yaml",
        "--out",
        "second",
        *sets("data.val_source=[other.a]", "data.val_target=[other.b]"),
    )
    assert second.status == 0
    compared = cli("eval", "run", "--compare", "second")
    assert compared.status == 2
    assert "not evaluated on the same items: 30 and 31" in compared.err

    def missing(name: str) -> Any:
        raise ModuleNotFoundError(name, name=name)

    monkeypatch.setattr("bigmodel_cli.packages.importlib.import_module", missing)
    result = cli("eval", "run")
    assert result.status == 2
    assert "needs sacrebleu, which is not installed: pip install 'bigmodel[metrics]'" in result.err


def sets(*values: str) -> list[str]:
    return [word for value in values for word in ("--set", value)]


def test_batches_by_tokens_are_checked(cli: Cli, decoder_spec: Path) -> None:
    write_pairs("train", 40, 0)
    write_pairs("val", 10, 1)
    Path("turn.yaml").write_text(SPEC)
    for change, message in (
        ("train.batch_tokens=10", "train.batch_tokens: 10 tokens do not hold the longest sample"),
        ("train.micro_batch_size=7", "batch_tokens 600 is not a multiple of micro_batch_size 7"),
        ("train.patience=2", "average_last takes the newest checkpoints and patience the best one"),
    ):
        result = cli("pretrain", "turn.yaml", "--out", "never", "--set", change)
        assert result.status == 2
        assert message in result.err
    result = cli("pretrain", decoder_spec, "--set", "train.batch_tokens=100")
    assert result.status == 2
    assert "train.batch_tokens: the samples of this data are all of one size" in result.err
    plan = json.loads(
        cli(
            "pretrain",
            "turn.yaml",
            "--dry-run",
            "--json",
            *sets("train.steps=null", "train.epochs=3"),
        ).out
    )
    assert plan["samples"] == 40
    assert 3 <= plan["steps"] <= 12
    both = cli(
        "pretrain", "turn.yaml", "--dry-run", *sets("train.batch_size=16", "train.batch_tokens=600")
    )
    assert both.status == 0
    assert (
        "train.batch_size: 16 is not read, since train.batch_tokens: 600 fills the batches"
        in both.err
    )
    assert "batch_size" not in cli("pretrain", "turn.yaml", "--dry-run").err


def test_a_run_with_batches_by_tokens_resumes_exactly(cli: Cli) -> None:
    write_pairs("train", 100, 0)
    write_pairs("val", 10, 1)
    Path("turn.yaml").write_text(
        SPEC.replace("  average_last: 3\n", "").replace(
            "lr: 3e-3}", "lr: 3e-3}\n  micro_batch_size: 200"
        )
    )
    cli(
        "pretrain", "turn.yaml", "--out", "whole", *sets("train.steps=12", "train.validate_every=5")
    )
    cli("pretrain", "turn.yaml", "--out", "parts", *sets("train.steps=5", "train.validate_every=5"))
    result = cli(
        "pretrain",
        "turn.yaml",
        "--out",
        "parts",
        "--resume",
        *sets("train.steps=12", "train.validate_every=5"),
    )
    assert result.status == 0, result.err
    whole, parts = (
        checkpoints.read(checkpoints.find(Path(n)), train_state=False).model.load()
        for n in ("whole", "parts")
    )
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_labels_are_judged_drawn_and_scored_again(cli: Cli, cnn_spec: Path) -> None:
    from sklearn.metrics import f1_score

    assert cli("pretrain", cnn_spec, "--out", "run", "--set", "train.steps=30").status == 0
    flags = ["--predictions", "samples.jsonl", "--confusion", "confusion.png"]
    report = json.loads(cli("eval", "run", "--json", *flags).out)
    rows = [json.loads(line) for line in Path("samples.jsonl").read_text().splitlines()]
    labels, predictions = [r["label"] for r in rows], [r["prediction"] for r in rows]
    assert report["macro_f1"] == pytest.approx(f1_score(labels, predictions, average="macro"))
    assert report["accuracy"] == pytest.approx(
        sum(map(str.__eq__, labels, predictions)) / len(rows)
    )
    assert Path("confusion.png").read_bytes()[:4] == b"\x89PNG"
    again = json.loads(cli("eval", "--rescore", "samples.jsonl", "--json").out)
    for name, value in report["metrics"].items():
        assert again[name] == pytest.approx(value["value"], abs=1e-9), name
    before = next(Path("run/checkpoints").glob("step-*"))
    compared = json.loads(cli("eval", before, "--compare", "run", "--json").out)
    assert compared["differences"]["macro_f1"]["second"] == pytest.approx(report["macro_f1"])


def test_labels_of_texts_and_of_pairs_are_predicted(cli: Cli) -> None:
    rng = random.Random(0)
    rows = [
        ("good", "bad")[i % 2] + " " + " ".join(rng.choices(["film", "plot", "end"], k=3))
        for i in range(80)
    ]
    Path("a.tsv").write_text("".join(f"{r}\t{r.split()[1]}\t{r.split()[0]}\n" for r in rows))
    spec = (
        "model: {type: encoder, dim: 16, pool: mean, blocks: [{mixer: {type: attention, num_heads:"
        " 2}}], token_types: 2}\ndata: {type: table, train: [a.tsv], val_fraction: 0.2, text: [0],"
        " label: 2, tokenizer: {type: bytes}}\ntask: {type: classification}\ntrain: {steps: 60,"
        " batch_tokens: 400, precision: fp32, optimizer: {lr: 1e-2}}\n"
    )
    Path("one.yaml").write_text(spec)
    Path("two.yaml").write_text(spec.replace("text: [0]", "text: [0, 1]"))
    assert cli("pretrain", "one.yaml", "--out", "one").status == 0
    said = [
        json.loads(line)
        for line in cli("predict", "one", "good plot", "bad end film").out.splitlines()
    ]
    assert [(r["input"], r["label"]) for r in said] == [
        ("good plot", "good"),
        ("bad end film", "bad"),
    ]
    assert cli("pretrain", "two.yaml", "--out", "two").status == 0
    pair = json.loads(cli("predict", "two", "bad plot end\tplot").out)
    assert pair["label"] == "bad"
    assert "this model labels pairs of texts" in cli("predict", "two", "bad plot").err


@pytest.mark.parametrize("position", ["learned", "none"])
def test_items_longer_than_the_models_positions_are_refused(position: str, cli: Cli) -> None:
    """An encoder without positions reads any length; one with a table of them has nothing to read
    longer rows with.
    """
    Path("rows.tsv").write_text(
        "text\tlabel\n" + "".join(f"{'ab'[i % 2] * 3}\t{'xy'[i % 2]}\n" for i in range(40))
    )
    Path("long.tsv").write_text(
        "text\tlabel\n" + "".join(f"{'ab'[i % 2] * 30}\t{'xy'[i % 2]}\n" for i in range(9))
    )
    Path("spec.yaml").write_text(
        f"model: {{type: encoder, dim: 8, position: {{type: {position}}}, pool: mean, blocks:"
        " [{mixer: {type: attention, num_heads: 2}}]}\ndata: {type: table, train:"
        " [rows.tsv], text: [text], label: label, header: true, context: 8, tokenizer: {type:"
        " bytes}}\ntask: {type: classification}\ntrain: {steps: 1, batch_size: 4, precision:"
        " fp32}\n"
    )
    assert cli("pretrain", "spec.yaml", "--out", "run").status == 0
    # its rows are short all the same
    assert cli("eval", "run", "--set", "data.context=40").status == 0
    longer = cli("eval", "run", "--set", "data.test=[long.tsv]", "--set", "data.context=40")
    assert longer.status == (2 if position == "learned" else 0), longer.err
    if position == "learned":
        assert (
            "has items of 32 tokens, and the model's positions end after 8; set data.context to 8"
            in longer.err
        )


def test_windows_longer_than_a_decoder_are_refused(decoder_spec: Path, cli: Cli) -> None:
    assert cli("pretrain", decoder_spec, "--out", "run", "--set", "train.steps=1").status == 0
    longer = cli("eval", "run", "--set", "data.context=32")
    assert (longer.status, "set data.context to 16 at most" in longer.err) == (2, True)
    assert cli("eval", "run", "--set", "data.context=16").status == 0
