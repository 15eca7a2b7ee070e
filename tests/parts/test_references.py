"""Parts against the reference implementations in transformers, with the same weights, on tiny
random configurations.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    DeepseekV2Config,
    DeepseekV3Config,
    DiffLlamaConfig,
    GptOssConfig,
    Lfm2Config,
    LlamaConfig,
    Mamba2Config,
    MixtralConfig,
    Qwen3NextConfig,
    T5Config,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.deepseek_v2 import modeling_deepseek_v2 as deepseek_v2
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE
from transformers.models.diffllama.modeling_diffllama import DiffLlamaAttention
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssAttention
from transformers.models.lfm2.modeling_lfm2 import Lfm2ShortConv
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet
from transformers.models.t5.modeling_t5 import T5Attention

from bigmodel_cli.parts.attention import AttentionOptions
from bigmodel_cli.parts.context import LayerContext
from bigmodel_cli.parts.convolution import ConvolutionOptions
from bigmodel_cli.parts.differential import DifferentialOptions
from bigmodel_cli.parts.gated_deltanet import GatedDeltaNetOptions
from bigmodel_cli.parts.latent import LatentAttentionOptions
from bigmodel_cli.parts.mamba2 import Mamba2Options
from bigmodel_cli.parts.moe import MoEOptions
from bigmodel_cli.parts.position import RotaryOptions, T5Options
from bigmodel_cli.parts.rotary import LinearScaling, YarnScaling

# other tests run these lines; coverage would take half of the time again
pytestmark = pytest.mark.no_cover

some = settings(max_examples=12, deadline=None)
lengths, seeds = st.integers(1, 40), st.integers(0, 999)
TOLERANCE = 1e-5


def randomised(module: Any) -> Any:
    """Every weight drawn anew, since references start some at zero or leave them unset."""
    for name, p in module.named_parameters():
        with torch.no_grad():
            p.normal_(1.0, 0.1) if "norm" in name else p.normal_(0.0, 0.3)
    return module.eval()


def close(got: Tensor, want: Tensor) -> None:
    """The largest absolute difference is within the tolerance, relative to values of about 1."""
    scale = max(1.0, float(want.abs().max()))
    assert float((got - want).abs().max()) / scale <= TOLERANCE


def causal_mask(length: int) -> Tensor:
    """What references add to the scores."""
    return torch.full((length, length), float("-inf")).triu(1)[None, None]


def cos_sin(length: int, width: int, base: float = 10000.0) -> tuple[Tensor, Tensor]:
    """Llama's tables of a batch of one."""
    angle = torch.outer(
        torch.arange(length).float(), base ** (-torch.arange(0, width, 2).float() / width)
    )
    return angle.repeat(1, 2).cos()[None], angle.repeat(1, 2).sin()[None]


def turned_rows(weight: Tensor, heads: int, plain: int, turned: int) -> Tensor:
    """Rows of a projection whose rotary channels lie in neighbouring pairs (DeepSeek), in the order
    of halves (Llama).
    """
    order = torch.cat((torch.arange(0, turned, 2), torch.arange(1, turned, 2)))
    rows = weight.view(heads, plain + turned, -1)
    return torch.cat((rows[:, :plain], rows[:, plain:][:, order]), 1).flatten(0, 1)


@given(length=lengths, groups=st.sampled_from([1, 2]), chunk=st.sampled_from([4, 16]), seed=seeds)
@some
def test_mamba2(length: int, groups: int, chunk: int, seed: int) -> None:
    torch.manual_seed(seed)
    config = Mamba2Config(
        hidden_size=16, num_heads=4, head_dim=8, expand=2, state_size=6, n_groups=groups,
        chunk_size=8, conv_kernel=4,
        num_hidden_layers=1,
    )  # fmt: skip
    theirs = randomised(Mamba2Mixer(config, 0))
    ours = (
        Mamba2Options(state=6, head_dim=8, groups=groups, chunk=chunk)
        .build(LayerContext(16, 64))
        .eval()
    )
    ours.load_state_dict(
        {
            "input.weight": theirs.in_proj.weight, "conv.weight": theirs.conv1d.weight[:, 0],
            "conv.bias": theirs.conv1d.bias, "dt_bias": theirs.dt_bias, "log_a": theirs.A_log,
            "d": theirs.D,
            "norm.weight": theirs.norm.weight, "out.weight": theirs.out_proj.weight,
        }
    )  # fmt: skip
    x = torch.randn(2, length, 16)
    with torch.no_grad():
        close(ours(x), theirs(x))


@given(length=lengths, per_key=st.sampled_from([1, 2]), chunk=st.sampled_from([5, 16]), seed=seeds)
@some
def test_gated_deltanet(length: int, per_key: int, chunk: int, seed: int) -> None:
    torch.manual_seed(seed)
    keys, values = 2, 2 * per_key
    config = Qwen3NextConfig(
        hidden_size=16, linear_num_value_heads=values, linear_num_key_heads=keys,
        linear_key_head_dim=6,
        linear_value_head_dim=8, linear_conv_kernel_dim=4, num_hidden_layers=1,
        layer_types=["linear_attention"],
    )  # fmt: skip
    theirs = randomised(Qwen3NextGatedDeltaNet(config, 0))
    options = GatedDeltaNetOptions(
        num_heads=values, key_heads=keys, key_dim=6, value_dim=8, chunk=chunk
    )
    ours = options.build(LayerContext(16, 64)).eval()
    # each key head with its queries, keys, values and gates
    mixed = theirs.in_proj_qkvz.weight.view(keys, -1, 16)
    q, k, v, gate = (t.flatten(0, 1) for t in mixed.split([6, 6, 8 * per_key, 8 * per_key], 1))
    rates = theirs.in_proj_ba.weight.view(keys, -1, 16).split([per_key, per_key], 1)
    ours.load_state_dict(
        {
            "qkv.weight": torch.cat((q, k, v)), "gate.weight": gate,
            "rates.weight": torch.cat([t.flatten(0, 1) for t in rates]),
            "conv.weight": theirs.conv1d.weight[:, 0],
            "dt_bias": theirs.dt_bias, "log_a": theirs.A_log, "norm.weight": theirs.norm.weight,
            "out.weight": theirs.out_proj.weight,
        }
    )  # fmt: skip
    x = torch.randn(2, length, 16)
    with torch.no_grad():
        close(ours(x), theirs(x))


@given(length=lengths, compressed=st.booleans(), seed=seeds)
@some
def test_latent_attention(length: int, compressed: bool, seed: int) -> None:
    torch.manual_seed(seed)
    config = DeepseekV2Config(
        hidden_size=16, num_attention_heads=2, q_lora_rank=10 if compressed else None,
        kv_lora_rank=6,
        qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=5, attn_implementation="eager",
    )  # fmt: skip
    theirs = randomised(deepseek_v2.DeepseekV2Attention(config, 0))
    options = LatentAttentionOptions(
        num_heads=2,
        kv_rank=6,
        q_rank=10 if compressed else None,
        head_dim=8,
        rotary_dim=4,
        value_dim=5,
    )
    ours = options.build(LayerContext(16, 64)).eval()
    q_up = theirs.q_b_proj.weight if compressed else theirs.q_proj.weight
    kv_down = theirs.kv_a_proj_with_mqa.weight
    state = {
        "q_up.weight": turned_rows(q_up, 2, 8, 4), "kv_down.weight": turned_rows(kv_down, 1, 6, 4),
        "kv_norm.weight": theirs.kv_a_layernorm.weight, "kv_up.weight": theirs.kv_b_proj.weight,
        "out.weight": theirs.o_proj.weight,
    }  # fmt: skip
    if compressed:
        state |= {
            "q_down.weight": theirs.q_a_proj.weight,
            "q_norm.weight": theirs.q_a_layernorm.weight,
        }
    ours.load_state_dict(state)
    x = torch.randn(2, length, 16)
    angle = torch.outer(
        torch.arange(length).float(), 10000.0 ** (-torch.arange(0, 4, 2).float() / 4)
    )
    turns = torch.polar(torch.ones_like(angle), angle)[None]
    with torch.no_grad():
        close(ours(x), theirs(x, causal_mask(length), position_embeddings=turns)[0])


@given(length=lengths, depth=st.integers(0, 5), seed=seeds)
@some
def test_differential_attention(length: int, depth: int, seed: int) -> None:
    torch.manual_seed(seed)
    config = DiffLlamaConfig(
        hidden_size=24, num_attention_heads=4, num_key_value_heads=4, head_dim=6,
        attn_implementation="eager",
        num_hidden_layers=6,
    )  # fmt: skip
    theirs = randomised(DiffLlamaAttention(config, depth))
    options = DifferentialOptions(num_heads=2, position=RotaryOptions())
    ours = options.build(LayerContext(24, 64, layer_index=depth)).eval()

    def by_pair(
        weight: Tensor,
    ) -> Tensor:  # theirs: all first maps, then all second; ours: a head's two maps together
        return weight.view(2, 2, 6, 24).transpose(0, 1).reshape(24, 24)

    ours.load_state_dict(
        {
            "qkv.weight": torch.cat(
                [by_pair(p.weight) for p in (theirs.q_proj, theirs.k_proj, theirs.v_proj)]
            ),
            "out.weight": theirs.o_proj.weight,
            "factors": torch.stack(
                (theirs.lambda_q1, theirs.lambda_k1, theirs.lambda_q2, theirs.lambda_k2)
            ),
        }
    )
    x = torch.randn(2, length, 24)
    with torch.no_grad():
        want = theirs(
            x, position_embeddings=cos_sin(length, 6), attention_mask=causal_mask(length)
        )[0]
        scale = config.rms_norm_eps / 1e-5
        assert scale == pytest.approx(1.0)
        close(ours(x), want)


@given(length=lengths, window=st.sampled_from([None, 3, 8]), seed=seeds)
@some
def test_attention_sinks_and_windows(length: int, window: int | None, seed: int) -> None:
    torch.manual_seed(seed)
    config = GptOssConfig(
        hidden_size=16, num_attention_heads=4, num_key_value_heads=2, head_dim=6,
        num_hidden_layers=1,
        layer_types=["full_attention"], attn_implementation="eager",
    )  # fmt: skip
    theirs = randomised(GptOssAttention(config, 0))
    options = AttentionOptions(
        num_heads=4, kv_heads=2, head_dim=6, window=window, sinks=True, position=RotaryOptions()
    )
    ours = options.build(LayerContext(16, 64)).eval()
    projections = (theirs.q_proj, theirs.k_proj, theirs.v_proj)
    ours.load_state_dict(
        {
            "qkv.weight": torch.cat([p.weight for p in projections]),
            "qkv.bias": torch.cat([p.bias for p in projections]),
            "out.weight": theirs.o_proj.weight, "out.bias": theirs.o_proj.bias,
            "sinks": theirs.sinks,
        }
    )  # fmt: skip
    mask = causal_mask(length)
    if window is not None:
        mask = mask.masked_fill(torch.ones(length, length).tril(-window).bool(), float("-inf"))
    cos, sin = cos_sin(length, 6)
    x = torch.randn(2, length, 16)
    with torch.no_grad():
        close(
            ours(x),
            theirs(x, position_embeddings=(cos[..., :3], sin[..., :3]), attention_mask=mask)[0],
        )


@given(length=st.integers(1, 200), causal=st.booleans(), seed=seeds)
@some
def test_t5_relative_positions(length: int, causal: bool, seed: int) -> None:
    torch.manual_seed(seed)
    config = T5Config(d_model=16, num_heads=2, d_kv=8, is_decoder=causal, dropout_rate=0.0)
    theirs = randomised(T5Attention(config, has_relative_attention_bias=True, layer_idx=0))
    ours = AttentionOptions(num_heads=2, bias=False, scale=1.0, position=T5Options())
    part = ours.build(LayerContext(16, 256, causal=causal)).eval()
    part.load_state_dict(
        {
            "qkv.weight": torch.cat((theirs.q.weight, theirs.k.weight, theirs.v.weight)),
            "out.weight": theirs.o.weight,
            "bias.table.weight": theirs.relative_attention_bias.weight,
        }
    )  # fmt: skip
    with torch.no_grad():
        got = part.bias(length, length)
        want = theirs.compute_bias(length, length)[0]
        seen = (
            torch.ones(length, length).tril().bool()
            if causal
            else torch.ones(length, length).bool()
        )
        assert torch.equal(got[:, seen], want[:, seen])
        x = torch.randn(1, length, 16)
        q, k, v = (
            p(x).view(1, length, 2, 8).transpose(1, 2) for p in (theirs.q, theirs.k, theirs.v)
        )
        scores = q @ k.transpose(-1, -2) + want
        weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
        close(part(x), theirs.o((weights @ v).transpose(1, 2).flatten(2)))


@pytest.mark.parametrize("kind", ["linear", "yarn"])
@pytest.mark.parametrize("factor", [2.0, 8.0])
def test_rotary_scaling(kind: str, factor: float) -> None:
    scaling: Any = (
        LinearScaling(factor=factor) if kind == "linear" else YarnScaling(factor=factor, trained=64)
    )
    rotary = RotaryOptions(base=500.0, scaling=scaling).rotary(32, 256)
    parameters = {
        "rope_type": kind,
        "factor": factor,
        "rope_theta": 500.0,
        "original_max_position_embeddings": 64,
    }
    config = LlamaConfig(
        hidden_size=64,
        num_attention_heads=2,
        max_position_embeddings=round(64 * factor),
        rope_parameters=parameters,
    )
    rate, size = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
    # a rate in float32 is off by up to 1e-7 of it
    angle = torch.outer(torch.arange(256).double(), rate.double())
    torch.testing.assert_close(rotary.cos[:, :16].double(), angle.cos() * size, atol=4e-5, rtol=0)
    torch.testing.assert_close(rotary.sin[:, 16:].double(), angle.sin() * size, atol=4e-5, rtol=0)


def expert_weights(theirs: Any) -> dict[str, Tensor]:
    gate, up = theirs.gate_up_proj.chunk(2, 1)
    return {"gate": gate, "up": up, "down": theirs.down_proj}


@given(length=lengths, top_k=st.integers(1, 4), seed=seeds)
@some
def test_experts_of_mixtral(length: int, top_k: int, seed: int) -> None:
    torch.manual_seed(seed)
    config = MixtralConfig(
        hidden_size=16, intermediate_size=12, num_local_experts=5, num_experts_per_tok=top_k
    )
    theirs = randomised(MixtralSparseMoeBlock(config))
    ours = MoEOptions(experts=5, top_k=top_k, hidden=12).build(LayerContext(16, 64)).eval()
    ours.load_state_dict(
        {
            **expert_weights(theirs.experts),
            "router.weight": theirs.gate.weight,
            "bias": torch.zeros(5),
        }
    )
    x = torch.randn(2, length, 16)
    with torch.no_grad():
        want = theirs(x)
        close(ours(x), want)
        _scores, chosen = ours.route(x.flatten(0, 1))
        rows = x.flatten(0, 1)[chosen.flatten().argsort(stable=True) // top_k]
        counts = torch.bincount(chosen.flatten(), minlength=5)
        close(ours.grouped(rows, counts), ours.one_by_one(rows, counts))  # what CUDA computes


@given(length=lengths, seed=seeds)
@some
def test_experts_of_deepseek_v3(length: int, seed: int) -> None:
    torch.manual_seed(seed)
    config = DeepseekV3Config(
        hidden_size=16, moe_intermediate_size=12, n_routed_experts=6, num_local_experts=6,
        num_experts_per_tok=3,
        n_shared_experts=2, n_group=1, topk_group=1, routed_scaling_factor=2.5, norm_topk_prob=True,
    )  # fmt: skip
    theirs = randomised(DeepseekV3MoE(config))
    bias = 0.3 * torch.randn(6)
    theirs.gate.e_score_correction_bias.copy_(bias)
    options = MoEOptions(
        experts=6, top_k=3, hidden=12, shared=2, router="sigmoid", balance="bias", scale=2.5
    )
    ours = options.build(LayerContext(16, 64)).eval()
    shared = theirs.shared_experts
    ours.load_state_dict(
        {
            **expert_weights(theirs.experts), "router.weight": theirs.gate.weight, "bias": bias,
            "shared.gate.weight": shared.gate_proj.weight,
            "shared.up.weight": shared.up_proj.weight,
            "shared.down.weight": shared.down_proj.weight,
        }
    )  # fmt: skip
    x = torch.randn(2, length, 16)
    with torch.no_grad():
        close(ours(x), theirs(x))


@given(length=lengths, kernel=st.integers(2, 5), seed=seeds)
@some
def test_gated_convolution(length: int, kernel: int, seed: int) -> None:
    torch.manual_seed(seed)
    config = Lfm2Config(
        hidden_size=16,
        conv_L_cache=kernel,
        conv_bias=True,
        num_hidden_layers=1,
        layer_types=["conv"],
    )
    theirs = randomised(Lfm2ShortConv(config, 0))
    ours = ConvolutionOptions(kernel=kernel, bias=True).build(LayerContext(16, 64)).eval()
    ours.load_state_dict(
        {
            "input.weight": theirs.in_proj.weight, "input.bias": theirs.in_proj.bias,
            "conv.weight": theirs.conv.weight[:, 0], "conv.bias": theirs.conv.bias,
            "out.weight": theirs.out_proj.weight, "out.bias": theirs.out_proj.bias,
        }
    )  # fmt: skip
    x = torch.randn(2, length, 16)
    with torch.no_grad():
        close(ours(x), theirs(x))


def test_the_bias_of_a_router_moves_towards_equal_load() -> None:
    part = (
        MoEOptions(experts=4, top_k=1, balance="bias", balance_weight=0.01)
        .build(LayerContext(8, 8))
        .train()
    )
    with torch.no_grad():
        part.router.weight.zero_()
        part.router.weight[2] = 1.0  # every token with a positive sum goes to expert 2
    part(torch.rand(1, 10, 8))
    assert part.statistics() == {"experts.load_max": 4.0, "experts.idle": 0.75}
    part.after_step()
    torch.testing.assert_close(part.bias, torch.tensor([0.01, 0.01, -0.01, 0.01]))
