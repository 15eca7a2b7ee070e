"""What `finetune` says it bought: the start and the result, on the new data and on the old."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import write_text

Cli = Callable[..., Any]


def sets(*changes: str) -> list[str]:
    return [w for c in changes for w in ("--set", c)]


def evaluated(cli: Cli, checkpoint: object, *words: object) -> dict[str, Any]:
    result = cli("eval", checkpoint, "--split", "val", "--json", *words)
    assert result.status == 0, result.err
    found: dict[str, Any] = json.loads(result.out)
    return found


def test_both_domains_are_measured_before_and_after(decoder_spec: Path, cli: Cli) -> None:
    before = cli("pretrain", decoder_spec, "--out", "base").out.strip()
    old = yaml.safe_load(Path("base/spec.yaml").read_text())["data"]
    Path("other.txt").write_text(" ".join(sorted(Path(old["files"][0]).read_text().split())))
    words = ["--out", "tuned", *sets("data.files=[other.txt]", "train.steps=7")]
    result = cli("finetune", "--from", before, "--json", *words)
    assert result.status == 0, result.err
    printed = json.loads(result.out)
    gains, after = printed["gains"], printed["checkpoint"]
    assert gains["since"] == before
    for domain, files in (("task", ["other.txt"]), ("old_domain", old["files"])):
        change = sets(f"data.files={json.dumps(files)}")
        first, last = evaluated(cli, before, *change), evaluated(cli, after, *change)
        for metric in ("loss", "accuracy", "perplexity"):
            gain = gains[domain]["metrics"][metric]["gain"]
            assert gain["first"] == pytest.approx(first[metric], rel=1e-6)
            assert gain["second"] == pytest.approx(last[metric], rel=1e-6)
            assert gain["low"] < last[metric] - first[metric] < gain["high"]
    records = [json.loads(line) for line in Path("tuned/metrics.jsonl").read_text().splitlines()]
    validated = [r["val"]["loss"] for r in records if "val" in r]
    assert gains["task"]["metrics"]["loss"]["gain"]["second"] == pytest.approx(validated[-1], 1e-5)
    again = cli("finetune", "--from", before, "--out", "more", *sets("train.steps=2"))
    assert "old domain" not in again.err  # the same data
    assert again.out == "more/checkpoints/step-00000002\n"


def test_a_new_head_has_nothing_to_compare_with(cnn_spec: Path, cli: Cli) -> None:
    from PIL import Image

    base = cli("pretrain", cnn_spec, "--out", "cnn", *sets("train.steps=2")).out.strip()
    for number, label in enumerate(("cat", "dog")):
        Path("pets", label).mkdir(parents=True)
        for index in range(9):
            Image.new("L", (8, 8), 80 * number + index).save(f"pets/{label}/{index}.png")
    Path("pets.yaml").write_text(
        "data: {type: image_folder, root: pets, channels: 1, val_fraction: 0.4}\n"
        "train: {steps: 2, batch_size: 4}\n"
    )
    words = sets(
        "train.steps=6", "train.validate_every=1", "train.optimizer={type: adamw, lr: 0.3}"
    )
    result = cli("finetune", "--from", base, "pets.yaml", "--json", *words)
    printed = json.loads(result.out)
    gains = printed["gains"]
    assert gains["task"]["items"] > 2
    assert "gain" not in gains["task"]["metrics"]["accuracy"]
    assert "nothing to compare with" in gains["task"]["note"]
    assert "not measured" in gains["old_domain"]["note"]
    said = result.err[result.err.index("what the finetuning bought") :]
    assert "before" not in said.partition("nothing to compare")[0]  # no empty columns
    assert re.search("^ +metric +after +95 % from +to$", said, re.MULTILINE)
    records = [
        json.loads(line) for line in Path("runs/pets/metrics.jsonl").read_text().splitlines()
    ]
    by_step = {r["step"]: r["val"]["accuracy"] for r in records if "val" in r}
    best = min(by_step, key=lambda step: (-by_step[step], step))
    assert gains["best_step"] == best
    assert gains["after"] == printed["checkpoint"]
    found = evaluated(cli, printed["checkpoint"])["metrics"]["accuracy"]
    row = next(line.split() for line in said.splitlines() if re.match("task +accuracy", line))
    assert row[2::2] == [f"{100 * found[end]:.2f}" for end in ("value", "low", "high")]
    assert (f"step {best} was better" in said) == (by_step[6] < by_step[best])
    assert (", the best by accuracy" in said) == (by_step[6] == by_step[best])


@pytest.mark.parametrize("kind", ["images", "rows"])
def test_of_the_old_domain_the_classes_that_are_left_are_measured(
    kind: str, cnn_spec: Path, cli: Cli
) -> None:
    if kind == "images":
        old, words = cnn_spec, sets("train.steps=60")
        one = "data: {type: image_folder, root: new, channels: 1, val_fraction: 0.4}\n"
        from PIL import Image

        for number, label in enumerate(("7", "2", "zoo")):
            Path("new", label).mkdir(parents=True)
            for index in range(9):
                Image.new("L", (8, 8), 80 * number + index).save(f"new/{label}/{index}.png")
        names = ["2", "7"]
    else:
        table = "data: {type: table, train: [%s.tsv], text: [0], label: 1, val_fraction: 0.4"
        old, words = Path("old.yaml"), []
        for file, labels in (("old", "abcd"), ("new", "dbz")):
            lines = [f"{file}{n} {c * 3}\t{c}" for n in range(12) for c in labels]
            Path(f"{file}.tsv").write_text("\n".join(lines))
        block = "{mixer: {type: attention, num_heads: 2}, ffn: {type: gelu, hidden: 8}}"
        old.write_text(
            f"model: {{type: encoder, dim: 8, blocks: [{block}]}}\n"
            + table % "old"
            + ", tokenizer: bytes, context: 16}\ntask: classification\n"
            "train: {steps: 60, batch_size: 16, optimizer: {lr: 1.0e-2}, precision: fp32}\n"
        )
        one = table % "new" + ", context: 16}\n"
        names = ["b", "d"]
    base = cli("pretrain", old, "--out", "base", *words)
    assert base.status == 0, base.err
    Path("new.yaml").write_text(one + "train: {steps: 2, batch_size: 4}\n")
    result = cli("finetune", "--from", "base", "new.yaml", "--out", "tuned", "--json")
    assert result.status == 0, result.err
    found = json.loads(result.out)["gains"]["old_domain"]
    assert f"of the 2 classes that are left ({', '.join(names)}); gone: " in found["note"]
    evaluated(cli, "base", "--predictions", "rows.jsonl")
    rows = [json.loads(line) for line in Path("rows.jsonl").read_text().splitlines()]
    kept = [row for row in rows if row["label"] in names]
    right = [row["label"] == row["prediction"] for row in kept]
    gain = found["metrics"]["accuracy"]["gain"]
    assert found["items"] == len(kept) < len(rows)
    assert gain["first"] == pytest.approx(sum(right) / len(right))
    assert "not compared, since the two know other classes: macro_f1" in result.err


def test_a_signal_ends_only_the_measuring(
    decoder_spec: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = cli("pretrain", decoder_spec, "--out", "base").out.strip()

    def stopped(path: Path, device: str) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("bigmodel_cli.evaluation.gains.gains", stopped)
    result = cli("finetune", "--from", before, "--out", "tuned", *sets("train.steps=1"))
    assert (result.status, result.out) == (0, "tuned/checkpoints/step-00000001\n")
    assert "what it bought is left out" in result.err
    assert json.loads(Path("tuned/status.json").read_text())["state"] == "done"


def test_old_data_that_is_gone_is_a_note(decoder_spec: Path, cli: Cli) -> None:
    write_text(Path("old.txt"))
    words = sets("data.files=[old.txt]", "train.steps=2")
    before = cli("pretrain", decoder_spec, "--out", "base", *words).out.strip()
    Path("old.txt").rename("new.txt")
    words = ["--out", "tuned", *sets("data.files=[new.txt]", "train.steps=1")]
    result = cli("finetune", "--from", before, *words)
    assert result.status == 0, result.err
    assert "old domain: not measured: " in result.err
    assert "old.txt" in result.err


def test_old_preferences_are_compared_with_their_own_start(cli: Cli) -> None:
    def write(name: str, task: str, rows: list[dict[str, str]], more: str = "") -> None:
        Path(f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        kind = "chat" if task == "causal_lm" else "preferences"
        Path(f"{name}.yaml").write_text(
            f"{more}data: {{type: {kind}, train: [{name}.jsonl], val_fraction: 0.4, context: 48,"
            f" tokenizer: bytes}}\ntask: {task}\n"
            "train: {steps: 8, batch_size: 4, precision: fp32, optimizer: {lr: 3e-3, type: adamw}}"
        )

    model = "model: {type: decoder, dim: 16, blocks: [{mixer: {type: attention, num_heads: 2}}]}\n"
    write("a", "causal_lm", [{"prompt": f"{i}", "completion": "yes"} for i in range(20)], model)
    write("b", "dpo", [{"prompt": f"{i}", "chosen": "no", "rejected": "yes"} for i in range(20)])
    write("c", "dpo", [{"prompt": f"{i}", "chosen": "ox", "rejected": "no"} for i in range(20)])
    cli("pretrain", "a.yaml", "--out", "a")
    assert cli("finetune", "--from", "a", "b.yaml", "--out", "b").status == 0
    own = evaluated(cli, "b")
    result = cli("finetune", "--from", "b", "c.yaml", "--out", "c", "--json")
    assert result.status == 0, result.err
    gains = json.loads(result.out)["gains"]
    margin = gains["old_domain"]["metrics"]["margin"]
    assert own["margin"] > 0.1
    assert margin["gain"]["first"] == pytest.approx(own["margin"], rel=1e-5)
    assert gains["task"]["metrics"]["margin"]["gain"]["first"] == 0.0
    for domain in ("task", "old_domain"):
        for name, found in gains[domain]["metrics"].items():
            gain = found["gain"]
            assert found["higher_is_better"] == (name != "loss")
            better = gain["difference"] > 0 if name != "loss" else gain["difference"] < 0
            apart = gain["low"] > 0 or gain["high"] < 0
            assert found["verdict"] == (("better" if better else "worse") if apart else "")
    assert re.search(r"^task +margin .* better$", result.err, re.MULTILINE)
