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
    result = cli("finetune", "--from", base, "pets.yaml", "--json")
    gains = json.loads(result.out)["gains"]
    assert gains["task"]["items"] > 2
    assert "gain" not in gains["task"]["metrics"]["accuracy"]
    assert "nothing to compare with" in gains["task"]["note"]
    assert "not measured" in gains["old_domain"]["note"]
    assert re.search("^task +accuracy", result.err, re.MULTILINE)


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
