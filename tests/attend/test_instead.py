"""attend --ablate, --diff and --over on the command line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Result

Cli = Callable[..., Result]
TEXT = "a rose is a rose"


def test_ablate_ranks_all_heads_and_takes_several_inputs(base: Path, cli: Cli) -> None:
    found = cli("attend", base, TEXT, "--ablate", "auto", "--device", "cpu")
    assert found.status == 0, found.err
    lines = found.out.splitlines()
    assert "nats per token" in lines[0]
    assert "class" in lines[2]
    assert len([line for line in lines if line.strip()[:2] in ("0.", "1.")]) == 4
    found = cli("attend", base, TEXT, "rose is", "--ablate", "0.1", "--json")
    assert found.status == 0, found.err
    values = json.loads(found.out)
    assert values["inputs"] == 2
    assert values["heads"][0]["low"] < values["heads"][0]["high"]
    mean = cli("attend", base, TEXT, "--ablate", "0.1", "--ablate-with", "mean", "--json")
    assert json.loads(mean.out)["replaced_by"] == "its mean over positions"
    some = cli("attend", base, TEXT, "--ablate", "auto", "--layers", "1", "--json")
    assert {each["head"] for each in json.loads(some.out)["heads"]} == {"1.0", "1.1"}


def test_diff_compares_two_checkpoints(base: Path, cli: Cli) -> None:
    found = cli("attend", base, TEXT, "--diff", base, "--json")
    assert found.status == 0, found.err
    values = json.loads(found.out)
    assert [layer["bits"] for layer in values["layers"]] == [[0.0, 0.0], [0.0, 0.0]]
    found = cli("attend", base, TEXT, "--diff", base)
    assert "bits" in found.out
    assert "\x1b" not in found.out
    assert found.err.count("device: ") == 1  # of two models
    drawn = cli("attend", base, TEXT, "--diff", base, "--png", "d.png")
    assert (drawn.status, drawn.out) == (0, "d.png\n"), drawn.err
    assert Path("d.png").read_bytes()[:4] == b"\x89PNG"


def test_each_is_a_view_of_a_page(base: Path, cli: Cli) -> None:
    kept = ("--set", "train.keep_last=5", "--set", "train.checkpoint_every=1")
    assert cli("pretrain", base / "spec.yaml", "--out", "kept", *kept).status == 0
    for view, words in {
        "worth": (base, TEXT, "--ablate", "auto"),
        "apart": (base, TEXT, "--diff", base),
        "course": ("kept", TEXT, "--over"),
    }.items():
        found = cli("attend", *words, "--html", f"{view}.html")
        assert (found.status, found.out) == (0, f"{view}.html\n"), found.err
        text = Path(f"{view}.html").read_text()
        assert f'"views":[{{"name":"{view}"' in text
        assert f'"view":"{view}"}}' in text.replace(" ", "")
        assert text.count('"form":"map"') == 4  # all weights of all heads


@pytest.mark.parametrize("kind", ["lora", "lora, base: nf4"])
def test_diff_compares_a_base_with_its_adapter(kind: str, base: Path, cli: Cli) -> None:
    adapter = f"adapter: {{type: {kind}, rank: 2, targets: ['*.qkv.q', '*.ffn', embedding]}}"
    Path("ft.yaml").write_text(f"train: {{steps: 2, batch_size: 4, compile: 'off'}}\n{adapter}\n")
    tuned = cli("finetune", "--from", base, "ft.yaml", "--out", "tuned")
    assert tuned.status == 0, tuned.err
    assert cli("merge", "tuned", "--out", "merged").status == 0
    found, whole = (
        json.loads(cli("attend", base, TEXT, "--diff", other, "--json").out)["layers"]
        for other in ("tuned", "merged")
    )
    for layer, same in zip(found, whole, strict=True):
        assert min(layer["bits"]) > 0
        assert layer["bits"] == pytest.approx(same["bits"], abs=1e-5)


def test_over_follows_a_run(decoder_spec: Path, cli: Cli) -> None:
    sets = ["--set", "train.keep_last=9", "--set", "train.checkpoint_every=4"]
    assert cli("pretrain", decoder_spec, *sets, "--out", "run").status == 0
    found = cli("attend", "run", "--over")
    assert found.status == 0, found.err
    assert "3 checkpoints, steps 4 to 12" in found.out
    assert "repeat" in found.out
    single = cli("attend", "run", "a", "--over", "--json")
    assert (single.status, json.loads(single.out)["loss"]) == (0, [None] * 3), single.err
    plain = cli("attend", "run", "all you need", "--over", "--ascii")
    assert plain.out.isascii()
    drawn = cli("attend", "run", "--over", "--svg", "o.svg")
    assert (drawn.status, drawn.out) == (0, "o.svg\n"), drawn.err
    assert b"<svg" in Path("o.svg").read_bytes()
    values = json.loads(cli("attend", "run", "--over", "--json").out)
    assert values["steps"] == [4, 8, 12]
    assert values["schema_version"] == 1


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["--ablate", "auto", "--over"], "--ablate and --over exclude one another"),
        (["--ablate-with", "mean"], "--ablate-with goes with --ablate"),
        (["--ablate", "0.0", "--ablate-with", "ones"], "zeros or mean"),
        (["--ablate", "0.7"], "the heads of layer 0 are 0 to 1"),
        (["--ablate", "auto", "--layers", "1,7"], "--layers: 7: the layers with attention are 0"),
        (["--ablate", "1.0,0.1", "--layers", "1"], "--ablate 0.1: --layers 1 leaves layer 0 out"),
        (["--ablate", "auto", "--lens"], "--lens has no effect on --ablate"),
        (["--diff", "BASE", "--lens"], "--lens has no effect on --diff"),
        (["--over", "--lens"], "--lens has no effect on --over"),
        (["--heads", "0.1", "--layers", "1"], "--heads 0.1: --layers 1 leaves layer 0 out"),
        (["--ablate", "x"], "name heads as LAYER.HEAD"),
        (["--ablate", "auto", "--png", "a.png"], "--png has no effect on --ablate"),
        (["--over"], "1 checkpoint is there"),
        (["--over", "--target", "x"], "--target has no effect on --over"),
        (["--diff", "BASE", "--heads", "0.1"], "--heads has no effect on --diff"),
        (["--diff", " "], "--diff is empty; name a second checkpoint"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    words: list[str], fault: str, base: Path, cli: Cli
) -> None:
    own = Path("alone/checkpoints") / base.name
    shutil.copytree(base, own)
    found = cli("attend", own, TEXT, *(str(base) if w == "BASE" else w for w in words))
    assert (found.status, found.out) == (2, "")
    assert fault in found.err
    assert len(found.err.strip().splitlines()[-1]) < 300


def test_a_second_checkpoint_that_is_not_there_is_a_fault_of_a_checkpoint(
    base: Path, cli: Cli
) -> None:
    found = cli("attend", base, TEXT, "--diff", "nowhere")
    assert (found.status, found.out) == (4, "")
    assert "nowhere: no such checkpoint" in found.err


def test_files_keep_the_number_of_their_input_where_another_cannot_be_read(
    base: Path, cli: Cli
) -> None:
    found = cli("attend", base, "", TEXT, "--data", "h.jsonl")
    assert (found.status, found.out) == (3, "h-2.jsonl\n"), found.err
    assert Path("h-2.jsonl").exists()
    found = cli("attend", base, "", TEXT, "--data", "h.jsonl", "--json")
    assert json.loads(found.out)["files"] == ["h-2.jsonl"]
