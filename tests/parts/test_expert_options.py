"""Options of experts against transformers' modules, with every weight drawn anew."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from transformers import DeepseekV3Config, GptOssConfig, Qwen2MoeConfig
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssMLP
from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeSparseMoeBlock

from bigmodel_cli.parts.context import LayerContext
from bigmodel_cli.parts.moe import MixtureOfExperts, MoEOptions
from bigmodel_cli.roles import EXPERTS, GAIN, OUTER, named_weights

DIM = 10


def drawn(theirs: Any) -> Any:
    """Every weight drawn anew: references start some at zero or leave them unset."""
    torch.manual_seed(5)
    with torch.no_grad():
        for p in theirs.parameters():
            p.normal_(0.0, 0.6)
    return theirs.eval()


def built(state: dict[str, Tensor], **values: Any) -> MixtureOfExperts:
    part = MoEOptions.model_validate(values).build(LayerContext(DIM, 8)).eval()
    part.load_state_dict({"bias": torch.zeros(values["experts"]), **state})
    return part


def agrees(part: MixtureOfExperts, want: Tensor, x: Tensor) -> None:
    torch.testing.assert_close(part(x), want, atol=2e-5, rtol=1e-5)
    flat = x.flatten(0, 1)
    _scores, chosen = part.route(flat)
    rows = flat[chosen.flatten().argsort(stable=True) // part.options.top_k]
    counts = torch.bincount(chosen.flatten(), minlength=part.options.experts)
    torch.testing.assert_close(part.grouped(rows, counts), part.one_by_one(rows, counts))


@torch.no_grad()
def test_biases_and_the_clamp_equal_gpt_oss() -> None:
    config = GptOssConfig(
        hidden_size=DIM, intermediate_size=7, num_local_experts=5, num_experts_per_tok=3,
        swiglu_limit=0.9, swiglu_alpha=1.3,
    )  # fmt: skip
    theirs = drawn(GptOssMLP(config))
    both, bias = theirs.experts.gate_up_proj.mT, theirs.experts.gate_up_proj_bias
    part = built(
        {
            "router.weight": theirs.router.weight, "router.bias": theirs.router.bias,
            "gate": both[:, ::2], "up": both[:, 1::2], "down": theirs.experts.down_proj.mT,
            "gate_bias": bias[:, ::2], "up_bias": bias[:, 1::2],
            "down_bias": theirs.experts.down_proj_bias,
        },
        experts=5, top_k=3, hidden=7, bias=True, clamp={"limit": 0.9, "alpha": 1.3},
    )  # fmt: skip
    x = 2 * torch.randn(2, 11, DIM)
    agrees(part, theirs(x)[0], x)


@torch.no_grad()
@pytest.mark.parametrize("normalize", [True, False])
def test_a_shared_experts_gate_and_width_equal_qwen2s(normalize: bool) -> None:
    config = Qwen2MoeConfig(
        hidden_size=DIM, moe_intermediate_size=6, shared_expert_intermediate_size=13,
        num_experts=4, num_experts_per_tok=2, norm_topk_prob=normalize,
    )  # fmt: skip
    theirs = drawn(Qwen2MoeSparseMoeBlock(config))
    gate, up = theirs.experts.gate_up_proj.chunk(2, 1)
    shared = theirs.shared_expert
    part = built(
        {
            "router.weight": theirs.gate.weight, "gate": gate, "up": up,
            "down": theirs.experts.down_proj, "shared.gate.weight": shared.gate_proj.weight,
            "shared.up.weight": shared.up_proj.weight,
            "shared.down.weight": shared.down_proj.weight,
            "shared_gate.weight": theirs.shared_expert_gate.weight,
        },
        experts=4, hidden=6, shared=1, shared_hidden=13, shared_gate=True, normalize=normalize,
    )  # fmt: skip
    x = torch.randn(3, 5, DIM)
    agrees(part, theirs(x), x)


@torch.no_grad()
@pytest.mark.parametrize(("groups", "taken"), [(2, 1), (3, 2), (4, 2), (4, 4)])
def test_routing_within_groups_equals_deepseek_v3(groups: int, taken: int) -> None:
    config = DeepseekV3Config(
        hidden_size=DIM, moe_intermediate_size=6, n_routed_experts=12, num_local_experts=12,
        num_experts_per_tok=4, n_shared_experts=1, n_group=groups, topk_group=taken,
        routed_scaling_factor=1.7, norm_topk_prob=True,
    )  # fmt: skip
    theirs = drawn(DeepseekV3MoE(config))
    bias = torch.randn(12) - 0.5  # such that scores with it are negative too
    theirs.gate.e_score_correction_bias.copy_(bias)
    gate, up = theirs.experts.gate_up_proj.chunk(2, 1)
    shared = theirs.shared_experts
    part = built(
        {
            "router.weight": theirs.gate.weight, "gate": gate, "up": up, "bias": bias,
            "down": theirs.experts.down_proj, "shared.gate.weight": shared.gate_proj.weight,
            "shared.up.weight": shared.up_proj.weight,
            "shared.down.weight": shared.down_proj.weight,
        },
        experts=12, top_k=4, hidden=6, shared=1, router="sigmoid", balance="bias", scale=1.7,
        groups=groups, top_groups=taken,
    )  # fmt: skip
    x = torch.randn(2, 13, DIM)
    agrees(part, theirs(x), x)


def test_roles_and_first_values_of_what_the_options_add() -> None:
    options = MoEOptions(experts=3, hidden=4, bias=True, shared=2, shared_hidden=5,
     shared_gate=True)  # fmt: skip
    part = options.build(LayerContext(6, 8))
    found = {w.name: w for w in named_weights(part)}
    assert found["shared_gate.weight"].role == found["router.weight"].role == OUTER
    assert found["gate"].role == EXPERTS
    assert found["shared.up.weight"].tensor.shape == (10, 6)
    for name, shape in (("gate_bias", (3, 4)), ("up_bias", (3, 4)), ("down_bias", (3, 6))):
        assert found[name].role == GAIN
        assert torch.equal(found[name].tensor, torch.zeros(shape))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"experts": 6, "groups": 4}, "6 experts are not 4 equal groups"),
        ({"experts": 6, "groups": 3, "top_groups": 4}, "3 equal groups, of which to take 4"),
        ({"experts": 6, "groups": 3, "top_k": 3}, "top_k 3 is more than top_groups 1 hold"),
        ({"experts": 6, "groups": 6, "top_k": 1}, "judged by its best two experts"),
        ({"experts": 6, "shared_gate": True}, "there is none for shared_gate"),
        ({"experts": 6, "shared_hidden": 4}, "there is none for shared_gate or shared_hidden"),
    ],
)
def test_what_does_not_fit_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        MoEOptions.model_validate(values)
