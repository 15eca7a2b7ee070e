"""Adapters against PEFT's own layers, and against formulas written anew where it has none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from bigmodel_cli.adapters import ADAPTERS, adapters, attach, merged
from bigmodel_cli.adapters.product import LowRank
from bigmodel_cli.errors import OptionError
from bigmodel_cli.parts.context import LayerContext
from bigmodel_cli.parts.moe import MoEOptions

KINDS = ("lora", "rslora", "dora", "pissa")


class Layers(nn.Module):
    """One layer of each kind that PEFT has.

    PEFT 0.21 forgets the dilation of a convolution, and gives outputs of another size.
    """

    def __init__(self, dilation: int = 2) -> None:
        super().__init__()
        self.table = nn.Embedding(13, 7)
        self.linear = nn.Linear(7, 10)
        self.narrow = nn.Linear(10, 5, bias=False)
        self.line = nn.Conv1d(5, 6, 3, stride=2, padding=1, dilation=dilation)
        self.plane = nn.Conv2d(3, 5, (3, 2), stride=(1, 2), padding="valid", bias=False)

    def forward(self, tokens: Any, image: Any) -> tuple[Any, Any]:
        x = self.narrow(self.linear(self.table(tokens)))
        return self.line(x.transpose(1, 2)), self.plane(image)


def moved(module: nn.Module, seed: int = 5) -> None:
    """Draw every trained number anew, as after some training."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            if p.requires_grad:
                p += 0.3 * torch.randn(p.shape, generator=generator)


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return (
        torch.randint(13, (3, 9), generator=generator),
        torch.randn(2, 3, 6, 7, generator=generator),
    )


def attached(model: nn.Module, kind: str, *targets: str, **options: Any) -> nn.Module:
    given = {"rank": 3, "alpha": 7.0, "targets": list(targets or ("*",)), **options}
    attach(model, ADAPTERS[kind].model_validate(given).low_rank(), fill=True)
    return model


@pytest.mark.parametrize("kind", ["lora", "rslora", "dora"])
def test_layers_equal_pefts(kind: str) -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(1)
    model = Layers(dilation=1)
    names = ["table", "linear", "narrow", "line", "plane"]
    config = peft.LoraConfig(
        r=3,
        lora_alpha=7,
        target_modules=names,
        use_dora=kind == "dora",
        use_rslora=kind == "rslora",
    )
    theirs = peft.inject_adapter_in_model(config, Layers(dilation=1))
    for name in names:
        layer = theirs.get_submodule(name)
        layer.base_layer.load_state_dict(model.get_submodule(name).state_dict())
    ours = attached(model, kind)
    moved(ours)
    with torch.no_grad():
        for name, adapter in adapters(ours).items():
            layer = theirs.get_submodule(name.removesuffix(".weight"))
            (own,) = adapter.factors().values()
            if name == "table.weight":
                layer.lora_embedding_A["default"].copy_(own.lora_B.T)
                layer.lora_embedding_B["default"].copy_(own.lora_A.T)
            else:
                a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
                a.copy_(own.lora_A.view_as(a))
                b.copy_(own.lora_B.view_as(b))
            if kind == "dora":
                magnitude = layer.lora_magnitude_vector["default"].weight
                magnitude.copy_(own.magnitudes().view_as(magnitude))
    found, expected = ours(*inputs()), theirs(*inputs())
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    sum(y.square().sum() for y in found).backward()
    sum(y.square().sum() for y in expected).backward()
    linear = adapters(ours)["linear.weight"].factors()["whole"]
    for ours_, theirs_ in (
        (linear.lora_A, theirs.linear.lora_A["default"].weight),
        (linear.lora_B, theirs.linear.lora_B["default"].weight),
    ):
        torch.testing.assert_close(ours_.grad, theirs_.grad, rtol=1e-4, atol=1e-4)


def test_pissa_begins_as_pefts_does() -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(12, 9))
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=["0"], init_lora_weights="pissa")
    theirs = nn.Sequential(nn.Linear(12, 9))
    theirs.load_state_dict(model.state_dict())
    theirs = peft.inject_adapter_in_model(config, theirs)
    ours = attached(model, "pissa", rank=4, alpha=6.0)
    own = adapters(ours)["0.weight"].factors()["whole"]
    layer = theirs.get_submodule("0")
    product = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    torch.testing.assert_close(own.lora_B @ own.lora_A, product, rtol=1e-4, atol=1e-5)
    residual = ours[0].parametrizations.weight.original - own.scale * own.lora_B @ own.lora_A
    torch.testing.assert_close(residual, layer.base_layer.weight, rtol=1e-4, atol=1e-5)


def dense(kind: str, weight: Any, own: Any, lookup: bool = False) -> Any:
    """The adapted matrices (..., M, N) by the papers' formulas."""
    scale = 7.0 / (3**0.5 if kind == "rslora" else 3)
    change = scale * torch.einsum("...mr,...rn->...mn", own.lora_B, own.lora_A)
    if kind == "pissa":
        change = change - scale * own.first_B @ own.first_A
    total = weight + change
    if kind == "dora":
        axis = -2 if lookup else -1
        lengths = own.magnitude.unsqueeze(axis)
        total = lengths * total / total.square().sum(axis, keepdim=True).sqrt()
    return total


@pytest.mark.parametrize("kind", KINDS)
def test_each_expert_has_factors_of_its_own(kind: str) -> None:
    torch.manual_seed(3)
    options = MoEOptions(experts=4, top_k=2, hidden=9)
    moe = options.build(LayerContext(dim=6, max_len=8))
    plain = options.build(LayerContext(dim=6, max_len=8))
    state = {name: tensor.clone() for name, tensor in moe.state_dict().items()}
    attached(moe, kind, "gate", "up", "down")
    moved(moe)
    for name in ("gate", "up", "down"):
        own = adapters(moe)[name].factors()["whole"]
        assert own.lora_A.shape[0] == 4
        state[name] = dense(kind, state[name], own)
    plain.load_state_dict(state)
    x = torch.randn(2, 5, 6)
    moe.eval(), plain.eval()
    torch.testing.assert_close(moe(x), plain(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_router_in_bf16_is_read_in_fp32_through_its_factors(kind: str) -> None:
    torch.manual_seed(6)
    options = MoEOptions(experts=5, top_k=2, hidden=4)
    moe = options.build(LayerContext(dim=8, max_len=8)).bfloat16()
    stored = moe.router.weight.detach().clone()
    dropout = {} if kind == "dora" else {"dropout": 0.4}  # DoRA's norm needs the whole weight
    attached(moe, kind, "router", **dropout)
    moved(moe)
    x = torch.randn(30, 8).bfloat16()
    with torch.no_grad():
        own = adapters(moe.router)["weight"].factors()["whole"]
        weight = dense(kind, stored.float(), own).double()
        want = (x.double() @ weight.T).softmax(-1).topk(2)
    moe.eval()
    found, chosen = moe.route(x)
    assert torch.equal(chosen, want.indices)
    shares = want.values / want.values.sum(-1, keepdim=True)
    torch.testing.assert_close(found.double(), shares, rtol=1e-4, atol=1e-5)
    weight = moe.router.weight
    for other in (weight.to("cpu", torch.float64), weight.to(dtype=torch.float64)):  # the sum
        torch.testing.assert_close(other, dense(kind, stored.double(), own), rtol=1e-2, atol=1e-2)
    moe.train()
    assert not torch.equal(moe.route(x)[0], found) or not dropout  # and dropped in training


@pytest.mark.parametrize("kind", KINDS)
def test_parts_of_a_fused_projection_alone(kind: str) -> None:
    """Queries (10 rows) and values (4) are adapted, keys (4) are not."""
    from bigmodel_cli.parts.attention import AttentionOptions

    torch.manual_seed(4)
    options = AttentionOptions(num_heads=5, kv_heads=1, head_dim=4, bias=False)
    layer = LayerContext(dim=7, max_len=8)
    part, plain = options.build(layer), options.build(layer)
    state = {name: tensor.clone() for name, tensor in part.state_dict().items()}
    attached(part, kind, "qkv.q", "qkv.v")
    moved(part)
    own = adapters(part)["qkv.weight"].factors()
    assert list(own) == ["q", "v"]
    for name, rows in (("q", slice(0, 20)), ("v", slice(24, 28))):
        state["qkv.weight"][rows] = dense(kind, state["qkv.weight"][rows], own[name]).detach()
    plain.load_state_dict(state)
    x = torch.randn(2, 6, 7)
    torch.testing.assert_close(part(x), plain(x), rtol=1e-5, atol=1e-5)


class Tied(nn.Module):
    """A table that is also the output layer."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(11, 6), nn.Linear(6, 11, bias=False)
        self.head.weight = self.table.weight

    def forward(self, tokens: Any) -> Any:
        return self.head(self.table(tokens).tanh())


@pytest.mark.parametrize("kind", KINDS)
def test_a_tied_embedding_stays_tied(kind: str) -> None:
    torch.manual_seed(5)
    model = Tied()
    weight = model.table.weight.detach().clone()
    attached(model, kind, "head")  # by either name
    assert list(adapters(model)) == ["table.weight"]
    moved(model)
    total = dense(kind, weight, adapters(model)["table.weight"].factors()["whole"], lookup=True)
    tokens = torch.tensor([[1, 4, 10], [0, 0, 3]])
    torch.testing.assert_close(model(tokens), total[tokens].tanh() @ total.T, rtol=1e-5, atol=1e-4)
    found = merged(model)
    assert found["table.weight"] is found["head.weight"]
    torch.testing.assert_close(found["table.weight"], total, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_changes_before_the_first_step_and_merged_is_equal(kind: str) -> None:
    torch.manual_seed(6)
    model, plain = Layers(), Layers()
    plain.load_state_dict(model.state_dict())
    attached(model, kind)
    for one, other in zip(model(*inputs()), plain(*inputs()), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    moved(model)
    weights = merged(model)
    plain.load_state_dict(weights)
    for one, other in zip(model(*inputs()), plain(*inputs()), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    plain.load_state_dict({name: tensor.bfloat16().float() for name, tensor in weights.items()})
    for one, other in zip(model(*inputs()), plain(*inputs()), strict=True):
        difference = (one - other).detach().abs().max() / one.detach().abs().max()
        assert float(difference) < 1e-2


@pytest.mark.parametrize("kind", KINDS)
def test_no_sum_and_no_gradient_of_a_frozen_weight(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LowRank, "dense", lambda self: pytest.fail("the sum was computed"))
    model = attached(Layers(), kind, dropout=0.25)
    sum(y.sum() for y in model(*inputs())).backward()
    for name, p in model.named_parameters():
        trained = ".0.parts." in name
        assert p.requires_grad == trained
        assert (p.grad is not None) == trained, name


def test_inputs_of_the_factors_are_dropped_and_those_of_the_weight_are_not() -> None:
    torch.manual_seed(7)
    model = attached(nn.Sequential(nn.Linear(50, 40)), "lora", dropout=0.5)
    own = adapters(model)["0.weight"].factors()["whole"]
    x = torch.randn(2000, 50)
    base = x @ model[0].parametrizations.weight.original.T + model[0].bias
    assert torch.equal(model(x), base)  # B is zero
    moved(model)
    change = own.scale * x @ own.lora_A.T @ own.lora_B.T
    dropped = model.train()(x) - base
    assert not torch.allclose(dropped, change, atol=0.1)
    torch.testing.assert_close(dropped.mean(0), change.mean(0), rtol=0, atol=1.5)
    torch.testing.assert_close(model.eval()(x) - base, change, rtol=1e-4, atol=1e-4)
    with pytest.raises(Exception, match="no input can be dropped"):
        model.train()[0].weight + 0


def test_rows_of_zeros_have_no_direction() -> None:
    """Their length is 0, and nothing becomes NaN."""
    model = nn.Sequential(nn.Linear(4, 3))
    with torch.no_grad():
        model[0].weight[1] = 0
    attached(model, "dora")
    y = model(torch.randn(5, 4))
    y.sum().backward()
    assert y.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.grouped = nn.Conv2d(4, 4, 3, groups=2)
        self.back = nn.ConvTranspose2d(4, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.recurrent = nn.LSTM(4, 4)
        self.small, self.proj = nn.Linear(2, 8), nn.Linear(8, 8)


@pytest.mark.parametrize(
    ("targets", "more", "text"),
    [
        (["grouped"], {}, r"targets: 'grouped' matches no weight.* such are small, proj"),
        (["q_proj"], {}, r"targets: 'q_proj' matches no weight .*; did you mean proj\?"),
        (["recurrent"], {}, "matches no weight that can be adapted"),
        (["small"], {}, "rank: 3 is more than small has, 2"),
        (["proj", "nrom"], {}, "'nrom' matches no weight"),
        (["proj"], {"modules_to_save": ["nrom"]}, "modules_to_save: 'nrom' matches no weight"),
        (["proj"], {"modules_to_save": ["proj"]}, "modules_to_save: 'proj' means proj.weight too"),
    ],
)
def test_patterns_that_mean_nothing(targets: list[str], more: dict[str, Any], text: str) -> None:
    with pytest.raises(OptionError, match=rf"^adapter\.{text}" if ":" in text[:20] else text):
        attached(Grouped(), "lora", *targets, **more)


def test_what_has_less_than_the_rank_is_told() -> None:
    options = ADAPTERS["lora"](rank=3, targets=["*"]).low_rank()
    assert attach(Grouped(), options, fill=True) == ["small"]


def test_torchs_own_attention_reads_the_adapted_matrices() -> None:
    """Its fast path, and its function, take the matrices themselves."""
    torch.manual_seed(8)
    model, plain = (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True) for _ in range(2))
    attached(model, "lora")
    moved(model)
    plain.load_state_dict(merged(model))
    x = torch.randn(2, 5, 8)
    model.eval(), plain.eval()
    torch.testing.assert_close(model(x), plain(x), rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(model(x), plain(x), rtol=1e-5, atol=1e-5)
