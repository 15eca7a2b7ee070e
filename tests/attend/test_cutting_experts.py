"""What an expert is worth, and what heads are worth on texts longer than the context."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import Result

from bigmodel_cli.attend.choosing import chosen_cuts
from bigmodel_cli.attend.cutting import AblateOptions, ablate
from bigmodel_cli.attend.looking import look_at
from bigmodel_cli.attend.worth import Expert, Head
from bigmodel_cli.data import load_tokenizer
from bigmodel_cli.errors import SpecError
from bigmodel_cli.loaded import Loaded, load_checkpoint
from bigmodel_cli.models import build
from bigmodel_cli.models.decoder import DecoderOptions

TEXT = "a rose is a rose"


@pytest.fixture
def mixture(base: Path) -> Loaded:
    """Three blocks, two of them with experts, and random weights."""
    loaded = load_checkpoint(base, "cpu", tell=lambda text: None)
    torch.manual_seed(5)
    mixer = {"type": "attention", "num_heads": 2}
    moe = {"type": "moe", "experts": 5, "top_k": 3, "hidden": 7, "shared": 1, "bias": True}
    blocks = [{"mixer": mixer, "ffn": ffn} for ffn in (moe, "gelu", {**moe, "experts": 4})]
    options = DecoderOptions.model_validate({"type": "decoder", "dim": 18, "blocks": blocks})
    model = build(options, loaded.info)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return replace(loaded, model=model.eval())


def nats(model: Any, tokens: list[int]) -> torch.Tensor:
    """(T - 1) of each token but the first."""
    row = torch.tensor([tokens])
    with torch.no_grad():
        return F.cross_entropy(model(row[:, :-1])[0].double(), row[0, 1:], reduction="none")


def without(model: Any, block: int, expert: int) -> Any:
    """A copy whose expert gives zeros: which tokens choose it is decided before."""
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed.blocks[block].ffn.down[expert] = 0
        changed.blocks[block].ffn.down_bias[expert] = 0
    return changed


def test_worth_of_an_expert_is_the_loss_with_its_output_zero(mixture: Loaded) -> None:
    model, tokens = mixture.model, load_tokenizer(mixture.assets).encode(TEXT)
    found = ablate(mixture, [TEXT], AblateOptions("experts"), look_at(mixture, TEXT))
    assert {each.name for each in found.heads} == {
        *(f"0.e{e}" for e in range(5)),
        *(f"1.e{e}" for e in range(4)),
    }
    whole = float(nats(model, tokens).mean())
    for each in found.heads:
        (one,) = each.heads
        changed = without(model, (0, 2)[one.layer], one.number)
        assert each.worth == pytest.approx(float(nats(changed, tokens).mean()) - whole, abs=1e-5)
        assert 0 <= each.figures["load"] <= 1
    assert sum(e.figures["load"] for e in found.heads) == pytest.approx(2)
    assert "expert" in found.to_text().splitlines()[2]
    both = ablate(mixture, [TEXT], AblateOptions("1.e2,0.e4,0.1")).together
    assert both is not None
    changed = without(without(model, 2, 2), 0, 4)
    with torch.no_grad():
        changed.blocks[0].mixer.out.weight[:, 9:] = 0
    assert both.worth == pytest.approx(float(nats(changed, tokens).mean()) - whole, abs=1e-5)
    assert all(part.routing_watcher is None for part in (model.blocks[0].ffn, model.blocks[2].ffn))  # type: ignore[union-attr, index]


def test_experts_that_are_not_there_are_named(mixture: Loaded) -> None:
    assert chosen_cuts("0.e1,1.0,0.e1", [1, 2], [2]) == [Expert(0, 1), Head(1, 0)]
    both = chosen_cuts("0.e1,0.1,0.e1,0.1", [2], [2])  # alike but for their kind
    assert [str(cut) for cut in both] == ["0.e1", "0.1"]
    assert chosen_cuts("experts", [], [1, 2], [1]) == [Expert(1, 0), Expert(1, 1)]
    for given, experts, layers, said in (
        ("0.e2", [2], None, "0.e2: the experts of layer 0 are 0 to 1"),
        ("1.e0", [2], None, "1.e0: the layers with experts are 0 to 0"),
        ("0.e0", [], None, "0.e0: this model has no experts"),
        ("experts", [], None, "experts: this model has no experts"),
        ("0.e0", [2, 2], [1], "--layers 1 leaves layer 0 out"),
        ("experts", [2], [3], "the layers with experts are 0 to 0"),
        ("0.x1", [2], None, "experts as LAYER.eEXPERT"),
    ):
        with pytest.raises(SpecError, match=said):
            chosen_cuts(given, [1], experts, layers)
    with pytest.raises(SpecError, match="mean is of heads"):
        ablate(mixture, [TEXT], AblateOptions("0.e0", mean=True))


def test_a_long_text_is_judged_in_all_its_windows(
    base: Path, cli: Callable[..., Result], capfd: pytest.CaptureFixture[str]
) -> None:
    loaded = load_checkpoint(base, "cpu", tell=lambda text: None)
    limit = loaded.model.limit
    assert limit is not None
    text = (TEXT + " ") * 3 * limit
    tokens = load_tokenizer(loaded.assets).encode(text)[: 2 * limit + limit // 2]
    text = load_tokenizer(loaded.assets).decode(tokens)
    first = limit // 2  # is the shorter one
    parts = [tokens[:first], tokens[first : first + limit], tokens[first + limit :]]
    found = ablate(loaded, [text], AblateOptions("1.0"))
    assert "read in up to 3 windows" in capfd.readouterr().err
    changed = copy.deepcopy(loaded.model)
    matrix = changed.blocks[1].mixer.out.weight  # type: ignore[union-attr, index]
    with torch.no_grad():
        matrix[:, : matrix.shape[1] // 2] = 0
    whole, cut = (
        float(torch.cat([nats(model, part) for part in parts]).mean())
        for model in (loaded.model, changed)
    )
    assert found.loss == pytest.approx(whole, abs=1e-5)
    assert found.heads[0].worth == pytest.approx(cut - whole, abs=1e-5)
    done = cli("attend", base, text, "a rose", "--ablate", "1.0", "--json")
    assert done.status == 0, done.err
    values = json.loads(done.out)
    assert values["titles"][1] == "a rose"
    assert values["checkpoint"].startswith(str(base))
