"""Layer-wise decay and gradual unfreezing, against rates and updates worked out anew."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from bigmodel_cli.adapters import ADAPTERS, attach
from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.depths import by_depth, rated
from bigmodel_cli.errors import SpecError
from bigmodel_cli.models import MODELS, build
from bigmodel_cli.optim import OPTIMIZERS
from bigmodel_cli.recipe import TrainOptions
from bigmodel_cli.roles import MATRIX, Role, Weight, named_weights

MIXER = {"type": "attention", "num_heads": 2}
BLOCK = {"mixer": MIXER, "ffn": {"type": "gelu", "hidden": 6}}
TEXT = DatasetInfo(vocab_size=11, context=5)
IMAGES = DatasetInfo(image_shape=(1, 8, 8), classes=("a", "b", "c"))
CASES: dict[str, tuple[dict[str, Any], DatasetInfo, dict[str, int]]] = {
    # of names' beginnings, how often the rate is multiplied by the decay
    "encoder": (
        {"type": "encoder", "dim": 4, "blocks": [{**BLOCK, "repeat": 2}, BLOCK], "pooler": True,
         "position": {"type": "learned"}, "embedding_norm": {"type": "layernorm"}},
        DatasetInfo(vocab_size=11, context=5, classes=("a", "b")),
        {"embedding": 4, "mask": 4, "position": 4, "embedding_norm": 4, "blocks.0": 3,
         "blocks.1": 2, "blocks.2": 1, "norm": 0, "pooler": 0, "head": 0},
    ),
    "decoder, tied": (
        {"type": "decoder", "dim": 4, "blocks": [BLOCK] * 2}, TEXT,
        {"embedding": 3, "blocks.0": 2, "blocks.1": 1, "norm": 0},
    ),
    "seq2seq": (
        {"type": "seq2seq", "dim": 4, "encoder": [BLOCK] * 2, "norm": {"type": "layernorm"},
         "decoder": [{**BLOCK, "cross": {"num_heads": 2}}], "share_embeddings": False},
        DatasetInfo(vocab_size=11, source_vocab_size=9, context=5),
        {"source_embedding": 4, "target_embedding": 4, "encoder.0": 3, "encoder.1": 2,
         "encoder_norm": 2, "decoder.0": 1, "decoder_norm": 0, "head": 0},
    ),
    "vit": (
        {"type": "vit", "dim": 4, "patch": 4, "blocks": [BLOCK]}, IMAGES,
        {"": 2, "blocks.0": 1, "norm": 0, "head": 0},
    ),
    "cnn": (
        {"type": "cnn", "layers": [
            {"type": "conv", "channels": 3, "norm": "batch"}, "pool",
            {"type": "conv", "channels": 2},
            "flatten", {"type": "dense", "units": "classes"},
        ]}, IMAGES,
        {"layers.0": 2, "layers.2": 1, "layers.4": 0},
    ),
}  # fmt: skip


def options(**given: Any) -> TrainOptions:
    return TrainOptions.model_validate({"steps": 1, **given})


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_rates_by_depth(case: tuple[dict[str, Any], DatasetInfo, dict[str, int]]) -> None:
    values, info, powers = case
    model = build(MODELS[values["type"]].model_validate(values), info)
    found = by_depth(model, named_weights(model), options(layer_decay=0.7, unfreeze_every=10))
    assert [w.name for w in found] == [name for name, _ in model.named_parameters()]
    for weight in found:
        longest = max((p for p in powers if f"{weight.name}.".startswith(f"{p}." if p else "")),
                      key=len)  # fmt: skip
        assert weight.rate == pytest.approx(0.7 ** powers[longest]), weight.name
        assert weight.start == 10 * powers[longest], weight.name
    assert {w.rate for w in by_depth(model, named_weights(model), options())} == {1.0}


def test_a_network_without_blocks_is_refused() -> None:
    resnet = MODELS["torchvision"].model_validate({"type": "torchvision", "name": "resnet18"})
    with torch.device("meta"):
        model = build(resnet, DatasetInfo(image_shape=(3, 64, 64), classes=("a", "b")))
    with pytest.raises(SpecError, match=r"train.layer_decay: this network is not made of blocks"):
        by_depth(model, named_weights(model), options(layer_decay=0.9))


GAIN = Role()
TORCH = {
    "adamw": lambda groups: torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8),
    "sgd": lambda groups: torch.optim.SGD(groups, momentum=0.9),
}


@pytest.mark.parametrize("kind", TORCH)
def test_updates_equal_those_of_torchs_groups(kind: str) -> None:
    torch.manual_seed(0)
    shapes = [(5, 3), (4,), (2, 7), (3,)]
    kinds = [(MATRIX, 0.3), (GAIN, 0.3), (MATRIX, 1.0), (GAIN, 0.0625)]
    start = [torch.randn(shape) for shape in shapes]
    ours = [nn.Parameter(t.clone()) for t in start]
    theirs = [nn.Parameter(t.clone()) for t in start]
    values = {"type": kind, "lr": 0.01, "weight_decay": 0.2}
    values |= {"momentum": 0.9, "nesterov": False} if kind == "sgd" else {}
    optimizer = (
        OPTIMIZERS[kind]
        .model_validate(values)
        .build(
            Weight(str(i), p, role, rate)
            for i, (p, (role, rate)) in enumerate(zip(ours, kinds, strict=True))
        )
    )
    reference = TORCH[kind](
        [
            {"params": [p], "lr": 0.01 * rate, "weight_decay": 0.2 if role.decayed else 0.0}
            for p, (role, rate) in zip(theirs, kinds, strict=True)
        ]
    )
    for _ in range(5):
        for p, q in zip(ours, theirs, strict=True):
            q.grad = torch.randn_like(q)
            p.grad = 3 * q.grad
        optimizer.step(0.01, 3.0)
        reference.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["muon", "schedule_free_adamw"])
def test_a_rate_is_a_smaller_learning_rate(kind: str) -> None:
    torch.manual_seed(1)
    start, gradients = torch.randn(4, 6), torch.randn(4, 4, 6)

    def moved(lr: float, rate: float) -> torch.Tensor:
        p = nn.Parameter(start.clone())
        values = {"type": kind, "lr": 0.05, "weight_decay": 0.1}
        optimizer = OPTIMIZERS[kind].model_validate(values).build([Weight("w", p, MATRIX, rate)])
        for gradient in gradients:
            p.grad = gradient.clone()
            optimizer.step(lr, 1.0)
        return p.detach()

    torch.testing.assert_close(moved(0.05, 0.25), moved(0.0125, 1.0))


def test_the_dry_run_shows_the_rates_and_a_resume_is_exact(cli: Any, decoder_spec: Path) -> None:
    decay = ["--set", "train.layer_decay=0.5", "--set", "train.validate_every=null"]
    shown = cli("pretrain", decoder_spec, "--dry-run", *decay)
    assert (
        "learning rates by depth: multiplied by 1, 0.5, 0.25, 0.125 (the head first)" in shown.out
    ), shown.err
    found = json.loads(cli("pretrain", decoder_spec, "--dry-run", "--json", *decay).out)["weights"]
    assert {w["name"].partition(".")[0]: w["rate"] for w in found}["embedding"] == 0.125

    def trained(out: str, steps: int, *more: str) -> bytes:
        steps_of = ("--set", f"train.steps={steps}")
        result = cli("pretrain", decoder_spec, "--out", out, *steps_of, *more)
        assert result.status == 0, result.err
        assert "by depth" in result.err
        return (Path(result.out.strip()) / "model.safetensors").read_bytes()

    whole = trained("whole", 6, *decay)
    trained("run", 3, *decay)
    assert trained("run", 6, *decay, "--resume") == whole
    assert trained("other", 6, "--set", "train.layer_decay=0.6") != whole


@pytest.mark.parametrize("kind", ["adamw", "sgd", "muon"])
def test_a_weight_that_starts_later_is_updated_as_if_it_were_new(kind: str) -> None:
    """Nothing moves it before: neither its decay nor, later, what it would have gathered."""
    torch.manual_seed(2)
    start, gradients = torch.randn(4, 6), torch.randn(5, 4, 6)

    def moved(after: int, role: Role) -> torch.Tensor:
        p, other = nn.Parameter(start.clone()), nn.Parameter(torch.randn(3))
        values = {"type": kind, "lr": 0.05, "weight_decay": 0.1}
        optimizer = (
            OPTIMIZERS[kind]
            .model_validate(values)
            .build([Weight("w", p, role, 1.0, after), Weight("o", other, GAIN)])
        )
        for step in range(after + 5):
            optimizer.wake()
            assert p.requires_grad == (step >= after)
            if step < after:
                assert torch.equal(p, start)
            p.grad = gradients[step - after].clone() if step >= after else None
            optimizer.step(0.05, 1.0)
            optimizer.clear()
        return p.detach()

    for role in (MATRIX, GAIN):
        assert torch.equal(moved(3, role), moved(0, role))
        assert not torch.equal(moved(0, role), start)


def test_gradual_unfreezing_is_shown_and_a_resume_is_exact(cli: Any, decoder_spec: Path) -> None:
    gradual = ["--set", "train.unfreeze_every=2", "--set", "train.validate_every=null"]
    gradual += ["--set", "model.tie_embeddings=false"]
    shown = cli("pretrain", decoder_spec, "--dry-run", *gradual)
    assert "trained by depth: from steps 1, 3, 5, 7 (the head first)" in shown.out, shown.err

    def trained(out: str, steps: int, *more: str) -> dict[str, torch.Tensor]:
        words = ("--set", f"train.steps={steps}", *gradual, *more)
        result = cli("pretrain", decoder_spec, "--out", out, *words)
        assert result.status == 0, result.err
        return load_file(Path(result.out.strip()) / "model.safetensors")

    none, whole = trained("none", 1, "--set", "train.optimizer.lr=1e-30"), trained("whole", 8)
    early = trained("run", 3)
    for name, tensor in early.items():
        later = name.startswith(("embedding", "position", "blocks.0"))
        assert torch.equal(tensor, none[name]) == later, name
    again = trained("run", 8, "--resume")
    assert all(torch.equal(again[name], tensor) for name, tensor in whole.items())
    assert all(not torch.equal(whole[name], tensor) for name, tensor in none.items())


def test_unfreezing_what_cannot_be_is_refused(cli: Any, decoder_spec: Path) -> None:
    changes = ["train.unfreeze_every=2", "model.norm=null"]
    words = [word for change in changes for word in ("--set", change)]
    found = cli("pretrain", decoder_spec, "--dry-run", *words)
    assert found.status == 2
    assert "train.unfreeze_every: nothing after the last block is trained" in found.err
    averaged = ("--set", "train.optimizer={type: schedule_free_adamw, lr: 1e-3}")
    found = cli("pretrain", decoder_spec, "--dry-run", *words[:2], *averaged)
    assert found.status == 2
    assert "unfreeze_every: schedule_free_adamw averages all weights" in found.err


DECODER_NAMES = {"type": "decoder", "dim": 4, "blocks": [BLOCK] * 2, "tie_embeddings": False}


def scaled(values: dict[str, Any], info: DatasetInfo, **given: Any) -> dict[str, float]:
    model = build(MODELS[values["type"]].model_validate(values), info)
    return {w.name: w.rate for w in rated(model, named_weights(model), options(**given))}


def test_factors_by_name_multiply_with_each_other_and_the_depths() -> None:
    given = {"lr_scale": {"head": 10, "*.bias": 0.5, "blocks.1.*": 3}, "layer_decay": 0.5}
    found = scaled(DECODER_NAMES, TEXT, **given)
    for name, rate in found.items():
        depth = 3 if name.startswith("embedding") else 2 if ".0." in name else 1
        expected = 1.0 if name.startswith(("head", "norm")) else 0.5**depth
        expected *= 10 if name.startswith("head") else 1
        expected *= 0.5 if name.endswith(".bias") else 1
        expected *= 3 if name.startswith("blocks.1.") else 1
        assert rate == pytest.approx(expected), name
    # of a tied matrix either name
    tied = {**DECODER_NAMES, "tie_embeddings": True}
    found = scaled(tied, TEXT, lr_scale={"head": 7})
    assert {name for name, rate in found.items() if rate == 7} == {"embedding.weight"}


def test_factors_of_adapters_by_their_short_names() -> None:
    model = build(MODELS["decoder"].model_validate(DECODER_NAMES), TEXT)
    lora = {"rank": 2, "targets": ["*.qkv", "*.ffn.up"]}
    attach(model, ADAPTERS["lora"].model_validate(lora).low_rank(), fill=True)
    scale = {"*.lora_B": 4, "blocks.0.mixer.qkv.q.lora_A": 3, "*.up": 5, "*.up.lora_B": 0.1}
    found = rated(model, named_weights(model), options(lr_scale=scale))
    for weight in found:
        expected = 4.0 if weight.name.endswith("lora_B") else 1.0
        first = weight.name.startswith("blocks.0.mixer.qkv") and ".q.lora_A" in weight.name
        expected *= 3 if first else 1
        expected *= 5 if ".up." in weight.name else 1
        expected *= 0.1 if ".up." in weight.name and weight.name.endswith("lora_B") else 1
        assert weight.rate == pytest.approx(expected), weight.name


def test_a_model_is_trained_as_with_torchs_groups_by_hand() -> None:
    torch.manual_seed(3)
    ours = build(MODELS["decoder"].model_validate(DECODER_NAMES), TEXT)
    theirs = copy.deepcopy(ours)
    scale = {"head": 10, "blocks.0": 0.25}
    weights = rated(ours, named_weights(ours), options(lr_scale=scale))
    optimizer = OPTIMIZERS["adamw"].model_validate({"lr": 1e-2}).build(weights)
    groups: dict[float, list[Any]] = {1e-1: [], 2.5e-3: [], 1e-2: []}
    for name, p in theirs.named_parameters():
        head, first = name.startswith("head."), name.startswith("blocks.0.")
        groups[1e-1 if head else 2.5e-3 if first else 1e-2].append(p)
    assert all(groups.values())
    listed = [{"params": group, "lr": lr} for lr, group in groups.items()]
    reference = torch.optim.AdamW(listed, weight_decay=0.0)
    for step in range(4):
        tokens = torch.randint(11, (3, 5), generator=torch.Generator().manual_seed(step))
        ours.zero_grad()
        nn.functional.cross_entropy(ours(tokens).flatten(0, 1), tokens.roll(1).flatten()).backward()
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            q.grad = None if p.grad is None else p.grad.clone()
        optimizer.step(1e-2, 1.0)
        reference.step()
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5, msg=name)


def test_a_run_tells_its_rates_resumes_exactly_and_refuses_others(
    cli: Any, decoder_spec: Path
) -> None:
    scale = ["--set", "train.lr_scale={norm: 10, 'blocks.0': 0.5}"]
    fast = [*scale, "--set", "train.validate_every=2"]
    shown = cli("pretrain", decoder_spec, "--dry-run", *fast)
    assert "learning rate times 10: 2 tensors (32 numbers): norm.weight, norm.bias" in shown.out
    assert "learning rate times 0.5: 12 tensors" in shown.out
    whole = cli("pretrain", decoder_spec, "--out", "whole", *fast, "--set", "train.steps=4")
    assert "learning rate times 10: 2 tensors" in whole.err
    half = cli("pretrain", decoder_spec, "--out", "half", *fast, "--set", "train.steps=2")
    assert half.status == 0, half.err
    other = ["--set", "train.lr_scale.norm=9", "--set", "train.steps=4"]
    refused = cli("pretrain", "--resume", "--out", "half", *other)
    assert refused.status == 2
    assert "train.lr_scale.norm" in refused.err
    again = cli("pretrain", "--resume", "--out", "half", "--set", "train.steps=4")
    paths = [Path(result.out.strip()) / "model.safetensors" for result in (whole, again)]
    one, two = map(load_file, paths)
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("lr_scale: {haed: 10}", "train.lr_scale.haed: matches no weight; those"),
        ("lr_scale: {'norm.weigth': 10}", "did you mean norm.weight?"),
        (
            "lr_scale: {embedding: 2}",
            "matches only weights that are not trained, such as embedding",
        ),
        ("lr_scale: {norm: -1}", "train.lr_scale.norm: "),
        ("lr_scale: {norm: 0}", "train.lr_scale.norm: "),
    ],
)
@pytest.mark.parametrize("dry", [True, False])
def test_patterns_that_mean_nothing_have_a_place(
    line: str, text: str, dry: bool, cli: Any, decoder_spec: Path
) -> None:
    content = decoder_spec.read_text().replace("train:\n", f"train:\n  {line}\n")
    decoder_spec.write_text(content + "\ninit: {freeze: [embedding]}\n")
    number = content.splitlines().index(f"  {line}") + 1
    found = cli("pretrain", decoder_spec, "--out", "run", *(["--dry-run"] if dry else []))
    assert found.status == 2
    assert text in found.err
    assert f"{decoder_spec.name}:{number}:" in found.err
    assert not Path("run").exists()
