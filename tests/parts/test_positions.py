"""What tells positions apart, against the reference implementations: scaled angles, ALiBi and T5 on
odd sizes, MLA with YaRN.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from test_references import causal_mask, close, randomised, turned_rows
from torch import Tensor
from transformers import DeepseekV3Config, LlamaConfig, StableLmConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.deepseek_v3 import modeling_deepseek_v3 as deepseek_v3
from transformers.models.stablelm.modeling_stablelm import (
    StableLmAttention,
    StableLmRotaryEmbedding,
)
from transformers.models.t5.modeling_t5 import T5Attention

from bigmodel_cli.parts.attention import AttentionOptions
from bigmodel_cli.parts.context import LayerContext, SequenceInfo
from bigmodel_cli.parts.latent import LatentAttentionOptions
from bigmodel_cli.parts.position import (
    AlibiOptions,
    LearnedOptions,
    NoPositionOptions,
    RotaryOptions,
    T5Options,
)
from bigmodel_cli.parts.rotary import LinearScaling, NTKScaling, YarnScaling

LONG = 700
"""Positions, ten times what the models here are said to be trained with."""


def reference_table(
    kind: str, width: int, base: float, seq_len: int | None = None, **given: Any
) -> tuple[Tensor, float]:
    """(angle per position, size) of transformers for heads of this width."""
    parameters = {
        "rope_type": kind,
        "rope_theta": base,
        "original_max_position_embeddings": 64,
        **given,
    }
    config = LlamaConfig(
        hidden_size=2 * width,
        num_attention_heads=2,
        head_dim=width,
        max_position_embeddings=64,
        rope_parameters=parameters,
    )
    return ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"), seq_len=seq_len)


def table_is(options: RotaryOptions, width: int, rate: Tensor, size: float) -> None:
    """The cosines and sines are those of these angles, over LONG positions."""
    part = options.rotary(width, LONG)
    angle = torch.outer(torch.arange(LONG, dtype=torch.float64), rate.double())
    half = angle.shape[1]
    assert part.turned == 2 * half
    torch.testing.assert_close(part.cos[:, :half], (angle.cos() * size).float(), atol=5e-5, rtol=0)
    torch.testing.assert_close(part.sin[:, half:], (angle.sin() * size).float(), atol=5e-5, rtol=0)


@pytest.mark.parametrize(
    "mscales",
    [
        {},
        {"mscale": 0.707, "mscale_all_dim": 0.707},
        {"mscale": 1.0, "mscale_all_dim": 0.5},
        {"attention_factor": 1.3},
    ],
)
@pytest.mark.parametrize("width", [2, 6, 34])
@pytest.mark.parametrize("truncate", [True, False])
def test_yarn_equals_transformers(mscales: dict[str, float], width: int, truncate: bool) -> None:
    rate, size = reference_table(
        "yarn", width, 777.0, factor=10.0, beta_fast=9, beta_slow=2, truncate=truncate, **mscales
    )
    scaling = YarnScaling(factor=10.0, trained=64, fast=9.0, slow=2.0, truncate=truncate, **mscales)
    table_is(RotaryOptions(base=777.0, scaling=scaling), width, rate, size)


def test_yarns_mscale_alone_is_the_authors() -> None:
    # transformers overlooks mscale where mscale_all_dim is not given; DeepSeek's own code takes 0
    # for it
    part = RotaryOptions(scaling=YarnScaling(factor=4.0, trained=64, mscale=0.5)).rotary(8, 2)
    assert float(part.cos[0, 0]) == pytest.approx(0.05 * math.log(4) + 1)


@pytest.mark.parametrize("fraction", [0.25, 0.5, 1.0])
def test_linear_and_ntk_scaling_of_a_part_of_the_channels(fraction: float) -> None:
    rate, size = reference_table("linear", 24, 500.0, factor=7.0, partial_rotary_factor=fraction)
    table_is(
        RotaryOptions(base=500.0, fraction=fraction, scaling=LinearScaling(factor=7.0)),
        24,
        rate,
        size,
    )
    # transformers' dynamic form is NTK with the factor that the length asks for
    rate, size = reference_table(
        "dynamic", 24, 500.0, 640, factor=3.0, partial_rotary_factor=fraction
    )
    scaling = NTKScaling(factor=3.0 * 640 / 64 - 2.0)
    table_is(RotaryOptions(base=500.0, fraction=fraction, scaling=scaling), 24, rate, size)


def test_angles_of_far_positions_are_exact() -> None:
    part = RotaryOptions(base=10000.0).rotary(6, 100_003)
    for t in (99_999, 100_002):
        for i in range(3):
            angle = t * 10000 ** (-2 * i / 6)
            assert float(part.cos[t, i]) == pytest.approx(math.cos(angle), abs=1e-6)
            assert float(part.sin[t, 3 + i]) == pytest.approx(math.sin(angle), abs=1e-6)


@pytest.mark.parametrize(
    ("scaling", "fraction", "message"),
    [
        (NTKScaling(factor=2.0), 0.25, "position.scaling: ntk keeps the fastest pair"),
        (None, 0.4, "3 of 8 are to be turned"),
        (None, 0.0, "0 of 8 are to be turned"),
    ],
)
def test_turned_channels_that_cannot_be_are_refused(
    scaling: Any, fraction: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        AttentionOptions(
            num_heads=2, position=RotaryOptions(scaling=scaling, fraction=fraction)
        ).build(LayerContext(16, 8))


@pytest.mark.parametrize("values", [{"fast": 1.0}, {"slow": 40.0}, {"trained": 6}])
def test_yarn_without_room_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"slow|trained"):
        YarnScaling(**{"factor": 2.0, "trained": 64, **values})


def test_attention_turned_in_part_equals_stablelm() -> None:
    torch.manual_seed(0)
    config = StableLmConfig(
        hidden_size=36, num_attention_heads=3, num_key_value_heads=1, max_position_embeddings=64,
        use_qkv_bias=True,
        attn_implementation="eager",
        rope_parameters={"rope_type": "linear", "rope_theta": 300.0, "factor": 3.0,
         "partial_rotary_factor": 0.5},
    )  # fmt: skip
    theirs = randomised(StableLmAttention(config, 0))
    position = RotaryOptions(base=300.0, fraction=0.5, scaling=LinearScaling(factor=3.0))
    options = AttentionOptions(num_heads=3, kv_heads=1, position=position)
    ours = options.build(LayerContext(36, 128)).eval()
    projections = (theirs.q_proj, theirs.k_proj, theirs.v_proj)
    ours.load_state_dict(
        {
            "qkv.weight": torch.cat([p.weight for p in projections]),
            "qkv.bias": torch.cat([p.bias for p in projections]),
            "out.weight": theirs.o_proj.weight, "out.bias": torch.zeros(36),
        }
    )  # fmt: skip
    x = torch.randn(2, 97, 36)
    with torch.no_grad():
        tables = StableLmRotaryEmbedding(config)(x, torch.arange(97)[None])
        close(ours(x), theirs(x, attention_mask=causal_mask(97), position_embeddings=tables)[0])


@pytest.mark.parametrize(
    "mscale", [{}, {"mscale": 1.0, "mscale_all_dim": 1.0}, {"mscale": 0.707, "mscale_all_dim": 1.3}]
)
@pytest.mark.parametrize("compressed", [True, False])
def test_latent_attention_with_yarn_equals_deepseek_v3(
    mscale: dict[str, float], compressed: bool
) -> None:
    torch.manual_seed(1)
    yarn = {
        "rope_type": "yarn",
        "rope_theta": 900.0,
        "factor": 40.0,
        "original_max_position_embeddings": 16,
        **mscale,
    }
    config = DeepseekV3Config(
        hidden_size=18, num_attention_heads=3, num_key_value_heads=3,
        q_lora_rank=7 if compressed else None, kv_lora_rank=5,
        qk_nope_head_dim=9, qk_rope_head_dim=6, v_head_dim=11, max_position_embeddings=640,
        attn_implementation="eager",
        rope_parameters={**yarn, "beta_fast": 4, "beta_slow": 1},
    )  # fmt: skip
    theirs = randomised(deepseek_v3.DeepseekV3Attention(config, 0))
    scaling = YarnScaling(factor=40.0, trained=16, fast=4.0, slow=1.0, **mscale)
    options = LatentAttentionOptions(
        num_heads=3, kv_rank=5, q_rank=7 if compressed else None, head_dim=9, rotary_dim=6,
        value_dim=11,
        position=RotaryOptions(base=900.0, scaling=scaling),
    )  # fmt: skip
    ours = options.build(LayerContext(18, 128)).eval()
    state = {
        "q_up.weight": turned_rows((theirs.q_b_proj if compressed else theirs.q_proj).weight, 3, 9,
         6),
        "kv_down.weight": turned_rows(theirs.kv_a_proj_with_mqa.weight, 1, 5, 6),
        "kv_norm.weight": theirs.kv_a_layernorm.weight, "kv_up.weight": theirs.kv_b_proj.weight,
        "out.weight": theirs.o_proj.weight,
    }  # fmt: skip
    if compressed:
        state |= {
            "q_down.weight": theirs.q_a_proj.weight,
            "q_norm.weight": theirs.q_a_layernorm.weight,
        }
    ours.load_state_dict(state)
    x = torch.randn(2, 50, 18)
    with torch.no_grad():
        tables = deepseek_v3.DeepseekV3RotaryEmbedding(config)(x, torch.arange(50)[None])
        want = theirs(x, attention_mask=causal_mask(50), position_embeddings=tables)[0]
        close(ours(x), want)
        cache = ours.new_cache(2, 64)
        pieces = [ours(x[:, a:b], SequenceInfo(a), cache) for a, b in ((0, 20), (20, 21), (21, 50))]
        # from the compressed cache: the other way of computing it
        close(torch.cat(pieces, 1), want)


@pytest.mark.parametrize("heads", [1, 2, 3, 5, 6, 7, 8, 12, 20])
def test_alibi_equals_bloom(heads: int) -> None:
    part = AlibiOptions().bias(heads, True)
    for queries, keys in ((1, 1), (9, 9), (2, 9)):
        got = part(queries, keys)
        # slope * j
        ramp = build_alibi_tensor(torch.ones(1, keys), heads, torch.float32).view(heads, 1, keys)
        own = torch.arange(keys - queries, keys)
        want = ramp - ramp[:, 0, own][..., None]  # a row's constant changes no weight
        seen = torch.ones(queries, keys).tril(keys - queries).bool()
        torch.testing.assert_close(got[:, seen], want.expand(heads, queries, keys)[:, seen])


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("buckets", [2, 3, 4, 5, 7, 10, 33])
@pytest.mark.parametrize("max_distance", [1, 2, 3, 5, 16, 17, 40])
def test_t5_buckets_equal_transformers_or_are_refused(
    causal: bool, buckets: int, max_distance: int
) -> None:
    options = T5Options(buckets=buckets, max_distance=max_distance)
    exact = (buckets if causal else buckets // 2) // 2
    if exact < 1 or max_distance <= exact:  # theirs divides by zero, or counts downwards
        with pytest.raises(ValueError, match=r"position\.(buckets|max_distance)"):
            options.bias(3, causal)
        return
    back = torch.arange(0 if causal else -60, 61)
    got = options.bias(3, causal).bucket(back)
    want = T5Attention._relative_position_bucket(-back, not causal, buckets, max_distance)
    assert torch.equal(got, want)
    assert int(got.max()) < buckets


def test_the_simplest_t5_bias_is_within_attention() -> None:
    torch.manual_seed(0)
    part = (
        AttentionOptions(num_heads=3, position=T5Options(buckets=3, max_distance=2))
        .build(LayerContext(12, 9))
        .eval()
    )
    x = torch.randn(2, 9, 12)
    q, k, v = part.qkv(x).unflatten(-1, (9, 4)).transpose(1, 2).split(3, 1)
    number = torch.tensor([[0 if i <= j else min(i - j, 2) for j in range(9)] for i in range(9)])
    scores = (
        q @ k.transpose(-1, -2) / 2
        + part.bias.table.weight[number].permute(2, 0, 1)
        + causal_mask(9)
    )
    want = part.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(part(x), want, atol=1e-5, rtol=1e-5)


def test_learned_positions_are_a_table_and_none_is_nothing() -> None:
    part: Any = LearnedOptions().build(6, 9)
    segments = torch.tensor([[0, 0, 1, 1, 1, 2, 2]])
    x = torch.randn(1, 7, 6)
    want = x[0] + torch.stack([part.table.weight[i] for i in (0, 1, 0, 1, 2, 0, 1)])
    torch.testing.assert_close(part(x, SequenceInfo(0, segments))[0], want)
    torch.testing.assert_close(
        part(x[:, :1], SequenceInfo(8))[0, 0], x[0, 0] + part.table.weight[8]
    )
    assert NoPositionOptions().build(6, 9) is None
    blind = AttentionOptions(num_heads=2).build(LayerContext(6, 9, causal=False)).eval()
    # the order makes no difference
    torch.testing.assert_close(blind(x.flip(1)).flip(1), blind(x), atol=1e-6, rtol=1e-5)
