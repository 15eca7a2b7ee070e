"""What a head is worth: the loss of a model whose output columns of that head are zeros."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import Result, write_text
from looks import made

from bigmodel_cli.attend.choosing import chosen_heads
from bigmodel_cli.attend.cutting import AblateOptions, ablate
from bigmodel_cli.attend.look import Look
from bigmodel_cli.attend.worth import SHOWN, Ablation, Head, Worth
from bigmodel_cli.data import load_tokenizer
from bigmodel_cli.errors import DataError, SpecError
from bigmodel_cli.loaded import Loaded, load_checkpoint
from bigmodel_cli.models import build
from bigmodel_cli.models.decoder import DecoderOptions
from bigmodel_cli.tasks.classification import ClassificationOptions

TEXT = "a rose is a rose is"
MIXERS = {
    "heads of odd width": {"type": "attention", "num_heads": 3, "head_dim": 5},
    "grouped": {"type": "attention", "num_heads": 4, "kv_heads": 2, "position": {"type": "rotary"}},
    "gated by channel": {"type": "attention", "num_heads": 2, "gate": "full", "window": 5},
    "gated by head": {"type": "attention", "num_heads": 2, "gate": "head", "sinks": True},
    "softcapped": {"type": "attention", "num_heads": 2, "softcap": 5.0},
    "latent": {"type": "mla", "num_heads": 2, "kv_rank": 6, "value_dim": 7, "rotary_dim": 4},
    "differential": {"type": "differential", "num_heads": 3, "head_dim": 4},
}


@pytest.fixture
def decoder(base: Path) -> Callable[[dict[str, Any]], Loaded]:
    """A model of two blocks with this mixer and random weights, and the base's tokenizer."""
    loaded = load_checkpoint(base, "cpu", tell=lambda text: None)

    def made_of(mixer: dict[str, Any]) -> Loaded:
        torch.manual_seed(3)
        block = {"repeat": 2, "mixer": mixer, "ffn": {"type": "gelu", "hidden": 16}}
        options = DecoderOptions.model_validate({"type": "decoder", "dim": 16, "blocks": [block]})
        model = build(options, loaded.info)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        return replace(loaded, model=model.eval())

    return made_of


def tokens_of(loaded: Loaded, text: str) -> torch.Tensor:
    return torch.tensor([load_tokenizer(loaded.assets).encode(text)])


def nats_per_token(model: Any, tokens: torch.Tensor) -> float:
    with torch.no_grad():
        return float(F.cross_entropy(model(tokens[:, :-1])[0].double(), tokens[0, 1:]))


def without(model: Any, layer: int, head: int, heads: int) -> Any:
    """A copy that lacks the columns of this head in the last projection of the layer's mixer."""
    changed = copy.deepcopy(model)
    matrix = changed.blocks[layer].mixer.out.weight
    width = matrix.shape[1] // heads
    with torch.no_grad():
        matrix[:, head * width : (head + 1) * width] = 0
    return changed


@pytest.mark.parametrize("name", MIXERS)
def test_a_cut_head_is_one_whose_output_columns_are_zeros(
    name: str, decoder: Callable[[dict[str, Any]], Loaded]
) -> None:
    loaded, heads = decoder(MIXERS[name]), MIXERS[name]["num_heads"]
    tokens = tokens_of(loaded, TEXT[:16])
    found = ablate(loaded, [TEXT[:16]], AblateOptions())
    assert (found.unit, found.inputs, found.probability) == ("nats per token", 1, None)
    assert found.loss == pytest.approx(nats_per_token(loaded.model, tokens), abs=1e-6)
    assert len(found.heads) == 2 * heads
    for each in found.heads:
        ((layer, head),) = each.heads
        want = nats_per_token(without(loaded.model, layer, head, heads), tokens) - found.loss
        assert each.worth == each.loss == pytest.approx(want, abs=1e-6)
    worths = [each.worth for each in found.heads]
    assert worths == sorted(worths, reverse=True)
    assert max(map(abs, worths)) > 1e-3
    assert all(part.watcher is None for part in (block.mixer for block in loaded.model.blocks))


def test_named_heads_are_cut_alone_and_together(
    decoder: Callable[[dict[str, Any]], Loaded],
) -> None:
    loaded = decoder(MIXERS["grouped"])
    tokens = tokens_of(loaded, TEXT[:9])
    found = ablate(loaded, [TEXT[:9]], AblateOptions("0.1, 1.3,0.1"))
    assert {each.name for each in found.heads} == {"0.1", "1.3"}
    both = without(without(loaded.model, 0, 1, 4), 1, 3, 4)
    assert found.together is not None
    assert found.together.name == "0.1,1.3"
    want = nats_per_token(both, tokens) - found.loss
    assert found.together.worth == pytest.approx(want, abs=1e-6)
    assert "together" in found.to_text()
    assert found.to_json()["together"]["head"] == "0.1,1.3"


def test_a_head_may_be_replaced_by_its_mean_over_positions(
    decoder: Callable[[dict[str, Any]], Loaded],
) -> None:
    """The mean of weights times values is that of each position: uniform rows of a matrix."""
    loaded = decoder(MIXERS["heads of odd width"])
    tokens = tokens_of(loaded, TEXT[:13])
    found = ablate(loaded, [TEXT[:13]], AblateOptions("1.2", mean=True))
    part = loaded.model.blocks[1].mixer

    def mixed(module: Any, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        y = inputs[0].clone()
        y[..., 10:15] = y[..., 10:15].mean(1, keepdim=True)
        return (y,)

    hook = part.out.register_forward_pre_hook(mixed)
    want = nats_per_token(loaded.model, tokens)
    hook.remove()
    assert found.heads[0].worth == pytest.approx(want - found.loss, abs=1e-6)
    assert found.to_json()["replaced_by"] == "its mean over positions"


def test_several_inputs_give_the_mean_with_an_interval(
    decoder: Callable[[dict[str, Any]], Loaded],
) -> None:
    from scipy import stats

    loaded, texts = decoder(MIXERS["grouped"]), [TEXT[:7], TEXT[2:13], TEXT[5:14], TEXT[1:9]]
    found = ablate(loaded, texts, AblateOptions("0.2"))
    (each,) = found.heads
    model = without(loaded.model, 0, 2, 4)
    rows = [tokens_of(loaded, text) for text in texts]
    change = [nats_per_token(model, r) - nats_per_token(loaded.model, r) for r in rows]
    low, high = stats.t.interval(0.95, 3, loc=stats.tmean(change), scale=stats.sem(change))
    assert each.worth == pytest.approx(stats.tmean(change), abs=1e-6)
    assert each.half == pytest.approx((high - low) / 2, rel=1e-3)
    assert each.to_json()["low"] == pytest.approx(low, abs=1e-5)
    assert "95 %" in found.to_text()


def test_few_rows_at_once_change_nothing(
    decoder: Callable[[dict[str, Any]], Loaded], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = decoder(MIXERS["differential"])
    whole = ablate(loaded, [TEXT], AblateOptions())
    monkeypatch.setattr("bigmodel_cli.attend.cutting.AT_ONCE", 40)
    few = ablate(loaded, [TEXT], AblateOptions())
    assert [each.name for each in few.heads] == [each.name for each in whole.heads]
    for a, b in zip(few.heads, whole.heads, strict=True):
        assert a.worth == pytest.approx(b.worth, abs=1e-6)


def test_heads_that_are_not_there_are_refused(
    decoder: Callable[[dict[str, Any]], Loaded],
) -> None:
    loaded = decoder(MIXERS["grouped"])
    for given, fault in [
        ("2.0", "the layers with attention are 0 to 1"),
        ("0.4", "the heads of layer 0 are 0 to 3"),
        ("first", "name heads as LAYER.HEAD"),
        ("0.-1", "name heads as LAYER.HEAD"),
        ("", "name heads as LAYER.HEAD"),
    ]:
        with pytest.raises(SpecError, match=fault):
            ablate(loaded, [TEXT], AblateOptions(given))
    with pytest.raises(SpecError, match="no attention, and no mixer"):
        chosen_heads("auto", [])
    with pytest.raises(DataError, match="nothing in it is foretold"):
        ablate(loaded, ["a"], AblateOptions())
    assert chosen_heads("auto", [1, 2], [1]) == [Head(1, 0), Head(1, 1)]


def test_letters_and_statistics_of_a_look_stand_beside_the_worth(
    decoder: Callable[[dict[str, Any]], Loaded],
) -> None:
    loaded = decoder(MIXERS["heads of odd width"])
    look: Look = made(layers=2, heads=3)
    found = ablate(loaded, [TEXT], AblateOptions(), look)
    for each in found.heads:
        ((layer, head),) = each.heads
        assert each.letter == look.layers[layer].letters[head]
        assert each.figures["sink"] == float(look.layers[layer].statistics.sink[head])
    lines = found.to_text().splitlines()
    assert max(map(len, lines)) <= 100
    assert "class" in lines[2]


def test_the_table_names_the_heads_that_are_worth_most() -> None:
    heads = [Worth((Head(0, n),), 1.0 - n, None, 1.0 - n, 0.5) for n in range(SHOWN + 9)]
    found = Ablation("m\x1b", "nats per sample", 0.1, 0.9, ["cat\x1b"], 1, "zeros", heads)
    text = found.to_text()
    assert "\x1b" not in text
    assert "and 9 heads worth less" in text
    assert len(text.splitlines()) < SHOWN + 8
    assert len(found.to_json()["heads"]) == SHOWN + 9


SPECS = {
    "masked_lm": """\
model: {type: encoder, dim: 16, blocks: [{mixer: {type: attention, num_heads: 2}}]}
data: {type: text, files: [text.txt], context: 32, tokenizer: {type: bytes}}
task: {type: masked_lm}
""",
    "classification": """\
model: {type: encoder, dim: 16, blocks: [{mixer: {type: attention, num_heads: 2}}]}
data: {type: table, train: [a.csv], text: [text], label: label, context: 32, tokenizer:
    {type: characters}}
task: {type: classification}
""",
    "regression": """\
model: {type: encoder, dim: 16, blocks: [{mixer: {type: attention, num_heads: 2}}]}
data: {type: table, train: [a.csv], text: [text], targets: [number], context: 32, tokenizer:
    {type: characters}}
task: {type: regression}
""",
    "seq2seq": """\
model: {type: seq2seq, dim: 16, encoder: [{mixer: {type: attention, num_heads: 2}}], decoder:
    [{mixer: {type: attention, num_heads: 2}, cross: {num_heads: 2}}]}
data: {type: pairs, source: [a.txt], target: [b.txt], context: 24, tokenizer: {type: bytes}}
task: {type: seq2seq, beams: 2, max_tokens: 6}
""",
    "vit": """\
model: {type: vit, dim: 16, patch: 4, blocks: [{mixer: {type: attention, num_heads: 2}}]}
data: {type: digits}
task: {type: classification}
""",
    "masked_image": """\
model: {type: vit, dim: 16, patch: 2, pool: mean, blocks: [{mixer: {type: attention, num_heads:
    2}}], reconstruct: {dim: 16, blocks: [{mixer: {type: attention, num_heads: 2}}]}}
data: {type: digits}
task: {type: masked_image}
""",
}
TRAIN = "train: {steps: 1, batch_size: 4, precision: fp32, validate_every: 1}\n"


@pytest.fixture
def trained(cli: Callable[..., Result]) -> Callable[[str], Loaded]:
    """A checkpoint of a step, with weights that are larger than those drawn."""
    from PIL import Image

    write_text(Path("text.txt"))
    rows = [f"{word} {number},{word},{number}" for number in range(9) for word in ("red", "big")]
    Path("a.csv").write_text("\n".join(["text,label,number", *rows]) + "\n")
    Path("a.txt").write_text("one two\nred big\n" * 9)
    Path("b.txt").write_text("two one\nbig red\n" * 9)
    Image.new("L", (8, 8), 90).save("grey.png")

    def train(name: str) -> Loaded:
        Path("spec.yaml").write_text(SPECS[name] + TRAIN)
        result = cli("pretrain", "spec.yaml", "--out", name)
        assert result.status == 0, result.err
        loaded = load_checkpoint(Path(name), "cpu", tell=lambda text: None)
        torch.manual_seed(0)
        with torch.no_grad():
            for parameter in loaded.model.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        return loaded

    return train


def test_answers_of_both_sides_of_an_image_add_no_layers(trained: Callable[[str], Loaded]) -> None:
    """The network is looked into in one pass, whatever evaluation adds to it."""
    loaded = trained("vit")
    options = ClassificationOptions(mirrored=True)
    mirrored = replace(loaded, task=options.build(loaded.info))
    plain, found = (ablate(each, ["grey.png"], AblateOptions()) for each in (loaded, mirrored))
    assert [each.name for each in found.heads] == [each.name for each in plain.heads]
    assert [each.worth for each in found.heads] == [each.worth for each in plain.heads]


@pytest.mark.parametrize("name", SPECS)
def test_every_task_says_what_a_head_is_worth(name: str, trained: Callable[[str], Loaded]) -> None:
    loaded = trained(name)
    given = "grey.png" if "image" in name or name == "vit" else "red big"
    found = ablate(loaded, [given], AblateOptions())
    layers = [m for m in loaded.model.modules() if getattr(m, "value_sizes", None) is not None]
    assert len(found.heads) == 2 * len(layers)
    assert max(abs(each.worth) for each in found.heads) > 1e-5
    sure = name in ("classification", "vit")
    assert (found.probability is not None) == sure
    assert (found.answers != [""]) == (name in ("classification", "vit", "regression", "seq2seq"))
    if name == "regression":
        assert found.answers[0].startswith("number ")
        float(found.answers[0].removeprefix("number "))
        assert found.to_text().startswith(f"{found.model}: loss 0.0000 per sample (“number ")
        assert "worth: how much the loss per sample rises without it" in found.to_text()
    if sure:
        best = next(each for each in found.heads if each.name == "0.1")
        changed = copy.deepcopy(loaded)
        (mixer,) = [m for m in changed.model.modules() if getattr(m, "value_sizes", None)]
        with torch.no_grad():
            mixer.out.weight[:, 8:] = 0
        from bigmodel_cli.predict import label_items

        (before,), (after,) = (
            list(label_items(x, [given], len(x.info.classes))) for x in (loaded, changed)
        )
        assert found.answers == [before["label"]]
        mine = next(t["probability"] for t in after["top"] if t["label"] == before["label"])
        assert best.probability == pytest.approx(mine, abs=2e-6)
        assert best.worth == pytest.approx(before["probability"] - mine, abs=3e-6)


def test_an_encoder_decoder_is_judged_on_a_given_target(
    trained: Callable[[str], Loaded],
) -> None:
    loaded = trained("seq2seq")
    found = ablate(loaded, ["one two"], AblateOptions("1.1", target="two one"))
    tokenizer = load_tokenizer(loaded.assets)
    start, end = tokenizer.target_start, tokenizer.end_of_text
    source = torch.tensor([[*tokenizer.encode("one two"), end]])
    target = torch.tensor([[start, *tokenizer.encode("two one"), end]])

    def nats(model: Any) -> float:
        with torch.no_grad():
            return float(F.cross_entropy(model(source, target[:, :-1])[0].double(), target[0, 1:]))

    assert found.loss == pytest.approx(nats(loaded.model), abs=5e-6)
    changed = copy.deepcopy(loaded.model)
    with torch.no_grad():  # the second part that attends is the decoder's own attention
        changed.decoder[0].mixer.out.weight[:, 8:] = 0
    assert found.heads[0].worth == pytest.approx(nats(changed) - found.loss, abs=1e-5)
    assert found.answers == [""]
    with pytest.raises(DataError, match="--target: the model has room for"):
        ablate(loaded, ["one two"], AblateOptions("1.1", target="two one " * 9))
