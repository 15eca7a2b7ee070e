"""Random networks are written for others and equal there, or refused by part."""

from __future__ import annotations

import random
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT

from bigmodel_cli.errors import SpecError
from bigmodel_cli.models import build

pytest.importorskip("transformers")
sys.path.insert(0, str(ROOT / "tests" / "measure"))
from elsewhere import drawn_weights, quiet_transformers, source_of, written
from random_exports import run, shown
from random_specs import Drawn, base, checked

# other tests run these lines; coverage would take half of the time again
pytestmark = pytest.mark.no_cover


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    quiet_transformers()


@pytest.mark.parametrize(
    "seeds", [range(40, 60), pytest.param(range(1_000), marks=pytest.mark.slow)]
)
def test_equal_or_refused_by_part(seeds: range) -> None:
    outcomes = run(list(seeds), "hf", None, lambda text: None)
    faults = [shown(outcome) for outcome in outcomes if outcome.way == "fault"]
    assert not faults, "\n".join(faults)
    counts = Counter(outcome.way for outcome in outcomes)
    assert min(counts["exported"], counts["refused"]) >= len(seeds) // 4, counts


@pytest.mark.parametrize(
    ("target", "names"),
    [
        ("timm", ["timm vit"]),
        ("torchvision", ["torchvision", "any cnn"]),
        ("gguf", ["llama", "qwen3 128", "qwen2"]),
        ("hf", ["whisper", "whisper untied"]),
    ],
)
def test_other_layouts(target: str, names: list[str]) -> None:
    pytest.importorskip({"hf": "transformers"}.get(target, target))
    outcomes = run(list(range(8)), target, names, lambda text: None)
    assert not [shown(outcome) for outcome in outcomes if outcome.way == "fault"]
    assert {outcome.way for outcome in outcomes} == {"exported", "refused"}


def of_family(name: str, **changes: Any) -> tuple[Drawn, Any]:
    """A family's network with these options of the model, and weights."""
    drawings = (base(name, random.Random(seed)) for seed in range(20))
    model, task, info = next(d for d in drawings if d[1] not in ("tagging", "masked_lm", ""))
    drawn = checked(name, {**model, **changes}, task, info, [])
    built = drawn.spec.model.build(drawn.info).eval()
    drawn_weights(built, 1, changes)
    return drawn, built


def refusal(drawn: Drawn, model: Any, folder: Path) -> str:
    with pytest.raises(SpecError) as error:
        written("hf", source_of(drawn, model), folder)
    return str(error.value)


def test_a_bias_of_experts_that_has_no_place_is_refused(tmp_path: Path) -> None:
    drawn, model = of_family("mixtral")
    model.blocks[1].ffn.bias.zero_()
    model.blocks[1].ffn.bias[2] = 0.1
    for i in (0, 2):
        model.blocks[i].ffn.bias.zero_()
    said = refusal(drawn, model, tmp_path / "out")
    assert said.startswith("model.blocks.1.ffn.balance: experts are chosen by a bias that")


def test_what_the_published_class_refuses_is_refused_here(tmp_path: Path) -> None:
    drawn, model = of_family("gemma2", dim=35)
    said = refusal(drawn, model, tmp_path / "out")
    assert "nearest is gemma2" in said
    assert "model.blocks.0.mixer.num_heads: 6, and dim 35 is not a multiple of it" in said
    drawn, model = of_family("bert", token_types=0)
    said = refusal(drawn, model, tmp_path / "out2")
    assert "nearest is bert" in said
    assert "model.token_types: 0, without which" in said
    drawn, model = of_family("dinov2")
    oblong = replace(drawn.info, image_shape=(3, 12, 24))
    said = refusal(replace(drawn, info=oblong), model, tmp_path / "out3")
    assert "nearest is dinov2" in said
    assert "data.size: 12 x 24" in said


def test_what_is_said_although_it_is_so_anyway_is_written(tmp_path: Path) -> None:
    drawn, _ = of_family("llama")
    model = drawn.spec.model.model_dump(mode="json")
    block = {**model["blocks"][0], "repeat": 3}
    mixer = {**block["mixer"], "causal": True, "scale": 6**-0.5}
    block |= {"mixer": mixer, "mixer_norm": block["norm"]}
    drawn, built = of_family("llama", blocks=[block], scale_embeddings=1.0)
    written("hf", source_of(drawn, built), tmp_path / "out")
    assert '"model_type": "llama"' in (tmp_path / "out" / "config.json").read_text()


@pytest.mark.parametrize("balance", ["none", "bias"])
def test_how_experts_are_balanced_changes_nothing_where_it_left_no_bias(
    balance: str, tmp_path: Path
) -> None:
    drawn, _ = of_family("mixtral")
    block = drawn.spec.model.model_dump(mode="json")["blocks"][0]
    block["ffn"]["balance"] = balance
    drawn, model = of_family("mixtral", blocks=[block])
    for name, bias in model.named_buffers():
        if name.endswith("ffn.bias"):
            bias.zero_()
    said = written("hf", source_of(drawn, model), tmp_path / "out")
    assert ("no such option in training: model.blocks.0.ffn.balance" in said) == (balance == "bias")
    assert '"model_type": "mixtral"' in (tmp_path / "out" / "config.json").read_text()


@torch.no_grad()
def test_a_norm_of_another_kind_is_named(tmp_path: Path) -> None:
    for norm, said in ((None, "model.norm: None"), ({"type": "none"}, "model.norm.type: none")):
        drawn, model = of_family("qwen3", norm=norm)
        assert said in refusal(drawn, model, tmp_path / "out")
        (tmp_path / "out").rmdir()


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert"])
def test_a_tagger_whose_pooler_reads_tokens_is_refused_by_part(name: str, tmp_path: Path) -> None:
    """Their taggers have no layer before the labels, and were written without it."""
    drawings = (base(name, random.Random(seed)) for seed in range(100))
    model, task, info = next(d for d in drawings if d[1] == "tagging")
    for pooler, fits in (
        ({"tags": True, "activation": "gelu"}, False),
        (False, True),
        (True, True),
    ):
        drawn = checked(name, {**model, "pooler": pooler}, task, info, [])
        source = source_of(drawn, build(drawn.spec.model, drawn.info))
        if fits:
            written("hf", source, tmp_path / str(pooler))
            continue
        with pytest.raises(SpecError, match=r"model\.pooler"):
            written("hf", source, tmp_path / "refused")
