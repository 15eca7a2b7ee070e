"""What a head of a mixer that is not attention is worth: the loss where its values are zeros."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import Result

from bigmodel_cli.attend.cutting import AblateOptions, ablate
from bigmodel_cli.attend.judging import judge_of, judged_whole
from bigmodel_cli.attend.look import Look
from bigmodel_cli.attend.looking import look_at
from bigmodel_cli.attend.page_measured import worth_view
from bigmodel_cli.data import load_tokenizer
from bigmodel_cli.errors import DataError
from bigmodel_cli.loaded import Loaded, load_checkpoint
from bigmodel_cli.models import build
from bigmodel_cli.models.decoder import DecoderOptions

TEXT = "a rose is a rose"
DIM = 12


def retention(part: Any, head: int) -> None:
    """Values are the last 12 of 36 rows: 3 heads of 4."""
    part.qkv.weight[2 * DIM + 4 * head : 2 * DIM + 4 * (head + 1)] = 0


def deltanet(part: Any, head: int) -> None:
    """Queries and keys of 2 heads of 6, then values of 2 heads of 5."""
    part.qkv.weight[24 + 5 * head : 24 + 5 * (head + 1)] = 0


def mamba2(part: Any, head: int) -> None:
    """The short convolution begins with the values of 4 heads of 6."""
    for tensor in (part.conv.weight, part.conv.bias):
        tensor[6 * head : 6 * (head + 1)] = 0


def convolution(part: Any, head: int) -> None:
    """All channels are one head."""
    part.conv.weight.zero_()


MIXERS = {
    "retention": ({"type": "retention", "num_heads": 3}, 3, retention),
    "gated_deltanet": (
        {"type": "gated_deltanet", "num_heads": 2, "key_dim": 6, "value_dim": 5}, 2, deltanet,
    ),
    "mamba2": ({"type": "mamba2", "head_dim": 6, "state": 3}, 4, mamba2),
    "convolution": ({"type": "convolution"}, 1, convolution),
}  # fmt: skip


def made_of(base: Path, mixer: dict[str, Any]) -> Loaded:
    """A block with this mixer and one with attention, random weights, the base's tokenizer."""
    loaded = load_checkpoint(base, "cpu", tell=lambda text: None)
    torch.manual_seed(5)
    blocks = [{"mixer": mixer}, {"mixer": {"type": "attention", "num_heads": 2}}]
    options = {"type": "decoder", "dim": DIM, "blocks": blocks}
    model = build(DecoderOptions.model_validate(options), loaded.info)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.4 * torch.randn_like(parameter))
    return replace(loaded, model=model.eval())


def losses(model: Any, tokens: list[int]) -> tuple[float, float]:
    """The mean loss, and that of tokens that follow the one before them for a second time."""
    with torch.no_grad():
        logits = model(torch.tensor([tokens[:-1]]))[0].double()
    nats = F.cross_entropy(logits, torch.tensor(tokens[1:]), reduction="none").tolist()
    pairs = list(pairwise(tokens))
    again = [nats[n] for n, pair in enumerate(pairs) if pair in pairs[:n]]
    return sum(nats) / len(nats), sum(again) / len(again)


@pytest.mark.parametrize("name", MIXERS)
def test_a_cut_head_of_a_mixer_is_one_whose_values_are_zeros(name: str, base: Path) -> None:
    mixer, heads, silence = MIXERS[name]
    loaded = made_of(base, mixer)
    tokens = load_tokenizer(loaded.assets).encode(TEXT)
    whole, again = losses(loaded.model, tokens)
    found = ablate(loaded, [TEXT], AblateOptions())
    assert {each.name for each in found.heads} == {*(f"0.{n}" for n in range(heads)), "1.0", "1.1"}
    assert found.loss == pytest.approx(whole, abs=1e-6)
    assert found.repeats == pytest.approx(again, abs=1e-6)
    for each in found.heads:
        layer, head = each.heads[0]
        if layer == 0:
            changed = copy.deepcopy(loaded.model)
            with torch.no_grad():
                silence(changed.blocks[0].mixer, head)
            want = losses(changed, tokens)
            assert abs(each.worth) > 1e-4
            assert each.worth == pytest.approx(want[0] - whole, abs=2e-6)
            assert each.repeats == pytest.approx(want[1] - again, abs=2e-6)
    assert loaded.model.blocks[0].mixer.mixing_watcher is None


def test_numbers_of_layers_are_those_of_a_look(base: Path) -> None:
    """The attention after a mixer is layer 1 in both."""
    loaded = made_of(base, MIXERS["retention"][0])
    look: Look = look_at(loaded, TEXT)
    found = ablate(loaded, [TEXT], AblateOptions("1.1,0.2"), look)
    by_name = {each.name: each for each in found.heads}
    for layer, head in ((1, 1), (0, 2)):
        each = by_name[f"{layer}.{head}"]
        assert look.layers[layer].number == layer
        assert each.figures["own"] == float(look.layers[layer].statistics.own[head])


def test_a_page_names_the_heads_that_were_cut(base: Path) -> None:
    """Behind a mixer too: each row of its table is of the layer with the head's number."""
    loaded = made_of(base, MIXERS["retention"][0])
    look = look_at(loaded, TEXT)
    found = ablate(loaded, [TEXT], AblateOptions(), look)
    table = worth_view(found, look).sections[1]
    place = [column["title"] for column in table["columns"]].index("Repeats")
    for row, each in zip(table["rows"], found.heads, strict=True):
        layer, head = row[0]
        assert f"{look.layers[layer].number}.{head}" == each.name
        assert row[1] == pytest.approx(each.worth, rel=1e-4, abs=1e-7)
        assert row[place] == pytest.approx(each.repeats, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("name", MIXERS)
def test_of_a_single_token_nothing_is_foretold(name: str, base: Path) -> None:
    loaded = made_of(base, MIXERS[name][0])
    with pytest.raises(DataError, match="input 2 is one token, and nothing in it is foretold"):
        ablate(loaded, [TEXT, "a"], AblateOptions())
    task = judge_of(loaded)
    assert judged_whole(loaded, task, "a") == []
    long = ("a rose is " * 40)[: loaded.model.limit + 1]
    assert len(load_tokenizer(loaded.assets).encode(long)) % loaded.model.limit == 1
    windows = judged_whole(loaded, task, long)
    assert [item.batch["tokens"].shape[1] for item in windows] == [loaded.model.limit]


def test_of_windows_the_load_of_experts_is_said_to_be_the_lasts(base: Path) -> None:
    loaded = made_of(base, MIXERS["retention"][0])
    moe = {"type": "moe", "experts": 3, "top_k": 1, "hidden": 8}
    blocks = [{"mixer": {"type": "attention", "num_heads": 2}, "ffn": moe}]
    options = DecoderOptions.model_validate({"type": "decoder", "dim": DIM, "blocks": blocks})
    loaded = replace(loaded, model=build(options, loaded.info).eval())
    said = "the load of experts is of the last window"
    assert said not in look_at(loaded, TEXT).notes
    look = look_at(loaded, ("a rose is " * 40)[: loaded.model.limit + 5])
    assert said in look.notes
    assert look.extra["routing"][0]["tokens"] == loaded.model.limit == len(look.layers[0].queries)


def test_where_nothing_repeats_there_is_no_loss_on_repeats(base: Path) -> None:
    loaded = made_of(base, MIXERS["retention"][0])
    found = ablate(loaded, ["rose ia"], AblateOptions("0.0"))
    assert found.repeats is None
    assert "repeats" not in found.to_text()
    assert "loss_on_repeats" not in found.to_json()
    several = ablate(loaded, ["rose ia", TEXT], AblateOptions("0.0"))
    alone = ablate(loaded, [TEXT], AblateOptions("0.0"))
    assert several.repeats == pytest.approx(alone.repeats, abs=1e-6)
    assert several.heads[0].repeats == pytest.approx(alone.heads[0].repeats, abs=1e-6)
    assert several.to_json()["heads"][0]["loss_change_on_repeats"] == several.heads[0].repeats
    assert "repeats: the same over the tokens" in several.to_text()


def test_a_model_without_either_is_refused(cnn_spec: Path, cli: Callable[..., Result]) -> None:
    from PIL import Image

    assert cli("pretrain", cnn_spec, "--set", "train.steps=1", "--out", "cnn").status == 0
    Image.new("L", (8, 8), 90).save("grey.png")
    found = cli("attend", "cnn", "grey.png", "--ablate", "auto")
    assert (found.status, found.out) == (2, "")
    assert "no attention, and no mixer in its place" in found.err
