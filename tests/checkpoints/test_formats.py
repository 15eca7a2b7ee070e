"""Checkpoints of earlier versions, tied weights through a checkpoint, and weights that are not
finite.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Result
from tampered import FIXTURE, change_json, change_tensors, fresh_copy, saved

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.loaded import load_checkpoint

Cli = Callable[..., Result]
RECORDED = {
    "loss": 1.5462740539502697,
    "accuracy": 0.4789915966386555,
    "bits_per_token": 2.230801909489328,
}
"""What the version that wrote the committed checkpoint measured with it."""


def test_a_checkpoint_of_format_1_evaluates_to_the_figures_that_were_recorded(cli: Cli) -> None:
    """Row 56.

    The fixture is never written anew: what it holds must be read for as long as format 1 is.
    """
    assert sum(p.stat().st_size for p in FIXTURE.rglob("*")) < 50_000
    result = cli("eval", fresh_copy(), "--json", "--device", "cpu")
    assert result.status == 0, result.err
    found = json.loads(result.out)
    assert {name: found[name] for name in RECORDED} == pytest.approx(RECORDED, rel=1e-5)
    assert found["metrics"]["loss"]["count"] == 119
    assert found["seen_in_training"] == {"items": 0, "of": 1}


def test_a_checkpoint_of_format_1_writes_and_is_finetuned(cli: Cli) -> None:
    """Row 56."""
    checkpoint = fresh_copy()
    result = cli("predict", checkpoint, "red green", "--max-tokens", "12", "--temperature", "0")
    assert json.loads(result.out)["text"] == " two two two"
    result = cli("finetune", "--from", checkpoint, "--set", "train.steps=1", "--out", "new")
    assert result.status == 0, result.err


@pytest.mark.parametrize(
    ("number", "way"),
    [(3, "written by a newer bigmodel: update this one"), (0, "use the version that wrote it")],
)
def test_an_unknown_format_version_is_refused_with_a_remedy(
    number: int, way: str, cli: Cli
) -> None:
    """Row 56."""
    checkpoint = fresh_copy()
    change_json(checkpoint, "manifest.json", lambda v: v.update(format=number))
    result = cli("eval", checkpoint)
    assert (result.status, result.out) == (4, "")
    assert (
        f"manifest.json: format {number}; this bigmodel reads formats 1 to 2: {way}" in result.err
    )


BLOCK: dict[str, Any] = {
    "mixer": {"type": "attention", "num_heads": 2},
    "ffn": {"type": "gelu", "hidden": 8},
}
TIED: dict[str, tuple[dict[str, Any], dict[str, Any], str, str, str]] = {
    "decoder": (
        {"type": "decoder", "dim": 8, "blocks": [BLOCK], "tie_embeddings": True},
        {"type": "text", "files": ["a"], "context": 8},
        "causal_lm",
        "embedding.weight",
        "head.weight",
    ),
    "encoder": (
        {"type": "encoder", "dim": 8, "blocks": [BLOCK]},
        {"type": "text", "files": ["a"], "context": 8},
        "masked_lm",
        "embedding.weight",
        "head.logits.weight",
    ),
    "seq2seq": (
        {
            "type": "seq2seq",
            "dim": 8,
            "encoder": [BLOCK],
            "decoder": [{**BLOCK, "cross": {"num_heads": 2}}],
            "share_embeddings": True,
        },
        {"type": "pairs", "source": ["a"], "target": ["b"], "tokenizer": {"type": "bytes"}},
        "seq2seq",
        "source_embedding.weight",
        "head.weight",
    ),
}


@pytest.mark.parametrize(("model", "data", "task", "first", "second"), TIED.values(), ids=TIED)
def test_tied_weights_are_tied_after_saving_and_loading(
    model: Any, data: Any, task: str, first: str, second: str
) -> None:
    """Row 60: equal logits, one storage, and a change of one is a change of the other."""
    torch.manual_seed(3)
    spec = {"model": model, "data": data, "task": {"type": task}, "train": {"steps": 1}}
    checkpoint = saved(spec, DatasetInfo(vocab_size=11, context=8))
    loaded = load_checkpoint(checkpoint, "cpu").model
    names = dict(loaded.named_parameters(remove_duplicate=False))
    assert names[first] is names[second]
    assert names[first].data_ptr() == names[second].data_ptr()
    from safetensors.torch import load_file

    held = load_file(checkpoint / "model.safetensors")
    assert first in held or second in held
    assert not (first in held and second in held)  # stored once
    stored = held[first if first in held else second]
    assert torch.equal(stored, names[first])
    tokens = torch.tensor([[1, 2, 3, 4]])
    given = (tokens, tokens) if task == "seq2seq" else (tokens,)
    with torch.no_grad():
        logits = loaded(*given)
        again = load_checkpoint(checkpoint, "cpu").model(*given)
    assert torch.equal(logits, again)
    assert logits.shape == (1, 4, 11)
    with torch.no_grad():
        names[first].mul_(2)
    assert torch.equal(names[second], 2 * stored)


def poisoned(value: float = math.nan) -> Path:
    """The committed checkpoint with one weight that is not finite, which reaches every logit."""
    checkpoint = fresh_copy()

    def poison(tensors: dict[str, Any]) -> None:
        tensors["norm.weight"][2] = value

    change_tensors(checkpoint, "model.safetensors", poison)
    return checkpoint


def refuse(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("command", ["eval", "predict", "attend", "compare"])
def test_weights_that_are_not_finite_are_reported_and_the_output_is_json(
    command: str, value: float, cli: Cli
) -> None:
    """Row 83: null, not NaN."""
    checkpoint = poisoned(value)
    words: dict[str, list[Any]] = {
        "eval": ["eval", checkpoint, "--json", "--predictions", "samples.jsonl"],
        "compare": ["eval", checkpoint, "--json", "--compare", FIXTURE / checkpoint.name],
        "predict": ["predict", checkpoint, "red"],
        "attend": ["attend", checkpoint, "red", "--json"],
    }
    result = cli(*words[command])
    said = [line for line in result.err.splitlines() if line.startswith("warning: ")]
    expected = (
        "the weights are not finite: 1 of 8 numbers of norm.weight; what is computed with them is"
        " not to be trusted"
    )
    assert said == [f"warning: {checkpoint}: {expected}"]
    assert "Traceback" not in result.err
    assert result.status == 0, result.err
    lines = result.out.splitlines()
    if command == "eval":
        lines += Path("samples.jsonl").read_text().splitlines()
    for line in lines:
        json.loads(line, parse_constant=refuse)
    if command == "eval":
        assert json.loads(lines[0])["loss"] is None


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--temperature", "0"],
        ["--beams", "3"],
        ["--top-p", "0.9"],
        ["--n-best", "2", "--beams", "2"],
    ],
)
def test_text_is_written_or_refused_where_weights_are_not_finite(
    words: list[str], cli: Cli
) -> None:
    """Row 83: however it is decoded."""
    result = cli("predict", poisoned(), "red", "--max-tokens", "4", *words)
    assert "the weights are not finite" in result.err
    assert result.status in (0, 2, 3, 6), result.err
    for line in result.out.splitlines():
        json.loads(line, parse_constant=refuse)


def test_several_tensors_that_are_not_finite_are_counted(cli: Cli) -> None:
    """Row 83."""
    checkpoint = fresh_copy()
    change_tensors(
        checkpoint, "model.safetensors", lambda t: [v.fill_(math.nan) for v in t.values()]
    )
    result = cli("eval", checkpoint)
    assert (result.status, "the weights are not finite: " in result.err) == (0, True), result.err
    assert "and 16 more tensors have such" in result.err


def test_images_are_labelled_or_refused_where_weights_are_not_finite(
    cnn_spec: Path, cli: Cli
) -> None:
    """Row 83: eval with a confusion matrix, predict, attend."""
    result = cli(
        "pretrain", cnn_spec, "--out", "cnn", "--set", "train.steps=1", "--set", "train.ema=null"
    )
    assert result.status == 0, result.err
    checkpoint = Path(result.out.strip())
    change_tensors(
        checkpoint,
        "model.safetensors",
        lambda t: [v.fill_(math.nan) for v in t.values() if v.dim() == 2],
    )
    from PIL import Image

    Image.new("L", (8, 8), 100).save("a.png")
    for words in (
        ["eval", checkpoint, "--json", "--confusion", "c.png", "--predictions", "s.jsonl"],
        ["predict", checkpoint, "a.png"],
        ["attend", checkpoint, "a.png", "--json"],
    ):
        result = cli(*words)
        assert "Traceback" not in result.err
        assert "the weights are not finite" in result.err
        assert result.status in (0, 6), result.err
        for line in result.out.splitlines():
            json.loads(line, parse_constant=refuse)


def test_training_from_weights_that_are_not_finite_is_refused(cli: Cli) -> None:
    """Row 83: finetune refuses, with nothing left behind but its record."""
    checkpoint = poisoned()
    result = cli("finetune", "--from", checkpoint, "--set", "train.steps=1", "--out", "new")
    assert (result.status, result.out) == (4, "")
    assert (
        "1 of 8 numbers of norm.weight; nothing can be learnt from there: start from another"
        " checkpoint" in result.err
    )
    assert not list(Path("new").glob("checkpoints/*"))


def test_a_dtype_without_infinity_is_refused_as_any_other(cli: Cli) -> None:
    """Row 16: torch has no `isfinite` for it."""
    checkpoint = fresh_copy()
    change_tensors(
        checkpoint,
        "model.safetensors",
        lambda t: t.update({"norm.weight": t["norm.weight"].to(torch.float8_e4m3fn)}),
    )
    for words in (
        ["finetune", "--from", checkpoint, "--set", "train.steps=1"],
        ["predict", checkpoint, "red"],
    ):
        result = cli(*words)
        assert (result.status, result.out) == (4, ""), result.err
        assert "norm.weight: expected float32 [8], found float8_e4m3fn [8]" in result.err
