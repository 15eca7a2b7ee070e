"""Rotary tables that grow and are shared, Llama 3's scaling, and axial positions of images."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from test_positions import reference_table, table_is
from test_references import close, randomised
from transformers import DINOv3ViTConfig
from transformers.models.dinov3_vit.modeling_dinov3_vit import (
    DINOv3ViTAttention,
    DINOv3ViTRopePositionEmbedding,
)

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.errors import OptionError
from bigmodel_cli.models import MODELS, build
from bigmodel_cli.parts import rotary
from bigmodel_cli.parts.attention import AttentionOptions
from bigmodel_cli.parts.context import SINGLE_DOCUMENT, LayerContext, SequenceInfo
from bigmodel_cli.parts.position import AxialOptions, RotaryOptions
from bigmodel_cli.parts.rotary import Llama3Scaling

pytestmark = pytest.mark.no_cover

ROTARY = {"type": "rotary", "base": 700.0}
MIXER = {"type": "attention", "num_heads": 2, "head_dim": 6, "position": ROTARY}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables begin with few rows."""
    monkeypatch.setattr(rotary, "AT_ONCE", 30)


def whole(max_len: int) -> Any:
    """The table of all positions, computed at once."""
    part = RotaryOptions(base=700.0).rotary(6, max_len)
    part.grow(max_len)
    assert len(part.cos) == max_len
    return part


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_table_that_grew_is_to_the_bit_the_one_computed_at_once(dtype: torch.dtype) -> None:
    part, all_at_once = RotaryOptions(base=700.0).rotary(6, 41).to(dtype), whole(41).to(dtype)
    assert len(part.cos) == 5
    segments = torch.tensor([[0] * 7 + [1] * 4, [0] * 11])
    for length, sequence in (
        (5, SINGLE_DOCUMENT),
        (3, SequenceInfo(4)),
        (11, SequenceInfo(0, segments)),
        (1, SequenceInfo(40)),
    ):
        x = torch.randn(2, 3, length, 6, dtype=dtype)
        assert torch.equal(part(x, sequence), all_at_once(x, sequence))
    assert len(part.cos) == 41
    assert part.cos.dtype == dtype
    assert not part.state_dict()


@pytest.mark.usefixtures("small")
def test_a_table_that_grew_while_generating_is_used_in_training() -> None:
    part = RotaryOptions(base=700.0).rotary(6, 41)
    x = torch.randn(1, 2, 9, 6)
    with torch.inference_mode():
        want = part(x, SINGLE_DOCUMENT).clone()
    x.requires_grad_()
    y = copy.deepcopy(part)(x, SINGLE_DOCUMENT)
    y.sum().backward()
    assert torch.equal(y.detach(), want.clone())
    assert part(torch.empty(1, 2, 3, 6, device="cpu"), SequenceInfo(5)).shape[2] == 3


@pytest.mark.usefixtures("small")
def test_a_table_grows_on_the_meta_device() -> None:
    with torch.device("meta"):
        part = RotaryOptions(base=700.0).rotary(6, 41)
        part(torch.empty(1, 2, 9, 6), SINGLE_DOCUMENT)
    assert part.cos.is_meta
    assert len(part.cos) == 10


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_a_table_grows_while_compiled() -> None:
    part = RotaryOptions(base=700.0).rotary(6, 41)
    compiled = torch.compile(part, backend="eager")
    for length in (4, 9, 30):
        x = torch.randn(1, 2, length, 6)
        assert torch.equal(compiled(x, SINGLE_DOCUMENT), whole(41)(x, SINGLE_DOCUMENT))


def decoder(mixers: list[dict[str, Any]], **more: Any) -> Any:
    values = {"type": "decoder", "dim": 12, "blocks": [{"mixer": m} for m in mixers], **more}
    return build(MODELS["decoder"].model_validate(values), DatasetInfo(vocab_size=13, context=8))


def test_layers_share_the_tables_of_one_kind_and_width() -> None:
    other = {**MIXER, "position": {"type": "rotary", "base": 701.0}}
    wide = {**MIXER, "head_dim": 8}
    model = decoder([MIXER, other, MIXER, wide], max_len=131_072)
    turned = [block.mixer.rotary for block in model.blocks]
    assert turned[0] is turned[2]
    assert len({id(t) for t in turned}) == 3
    assert not [name for name in model.state_dict() if "rotary" in name]
    assert sum(b.numel() for b in model.buffers()) <= 3 * 2 * rotary.AT_ONCE
    # each model has its own
    assert decoder([MIXER]).blocks[0].mixer.rotary is not turned[0]
    copied = copy.deepcopy(model).bfloat16()
    assert copied.blocks[0].mixer.rotary is copied.blocks[2].mixer.rotary
    assert turned[0].cos.dtype == torch.float32


@pytest.mark.usefixtures("small")
def test_a_decoder_reads_further_than_its_first_table() -> None:
    torch.manual_seed(0)
    model = decoder([MIXER, MIXER], max_len=300).eval()
    tokens = torch.randint(0, 13, (2, 37))
    with torch.no_grad():
        want = model(tokens)
        cache = model.new_cache(2)
        pieces = [model(piece, cache) for piece in tokens.split([3, 1, 20, 13], 1)]
    torch.testing.assert_close(torch.cat(pieces, 1), want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("fraction", [0.5, 1.0])
@pytest.mark.parametrize(
    ("trained", "low", "high", "factor"),
    [(64, 1.0, 4.0, 8.0), (8192, 1.0, 4.0, 32.0), (100, 0.5, 20.0, 3.5), (64, 3.0, 6.0, 2.0)],
)
def test_llama3_scaling_equals_transformers(
    trained: int, low: float, high: float, factor: float, fraction: float
) -> None:
    rate, size = reference_table(
        "llama3", 44, 5000.0, factor=factor, low_freq_factor=low, high_freq_factor=high,
        original_max_position_embeddings=trained, partial_rotary_factor=fraction,
    )  # fmt: skip
    scaling = Llama3Scaling(
        factor=factor, trained=trained, low_freq_factor=low, high_freq_factor=high
    )
    table_is(RotaryOptions(base=5000.0, fraction=fraction, scaling=scaling), 44, rate, size)
    with pytest.raises(ValueError, match="are not fewer than high_freq_factor"):
        Llama3Scaling(factor=2.0, trained=64, low_freq_factor=high, high_freq_factor=low)


@pytest.mark.parametrize("registers", [0, 3])
@pytest.mark.parametrize("biases", [{"key_bias": False}, {"query_bias": False, "key_bias": True}])
def test_axial_positions_equal_dinov3(registers: int, biases: dict[str, bool]) -> None:
    torch.manual_seed(0)
    config = DINOv3ViTConfig(
        hidden_size=40, num_attention_heads=2, image_size=(12, 20), patch_size=4, rope_theta=37.0,
        num_register_tokens=registers, attn_implementation="eager", **biases,
    )  # fmt: skip
    theirs = randomised(DINOv3ViTAttention(config))
    missing = "k" if not biases["key_bias"] else "q"
    options = AttentionOptions(
        num_heads=2, bias=[p for p in "qkvo" if p != missing], position=AxialOptions(base=37.0)
    )
    layer = LayerContext(40, 1 + 15 + registers, causal=False, grid=(3, 5), first=1)
    ours = options.build(layer).eval()
    named = dict(zip("qkv", (theirs.q_proj, theirs.k_proj, theirs.v_proj), strict=True))
    ours.load_state_dict(
        {
            "qkv.weight": torch.cat([p.weight for p in named.values()]),
            **{f"{n}_bias": p.bias for n, p in named.items() if n != missing},
            "out.weight": theirs.o_proj.weight, "out.bias": theirs.o_proj.bias,
        }
    )  # fmt: skip
    x = torch.randn(2, 1 + registers + 15, 40)  # theirs: class token, registers, patches
    order = [0, *range(1 + registers, 16 + registers), *range(1, 1 + registers)]
    with torch.no_grad():
        tables = DINOv3ViTRopePositionEmbedding(config).eval()(torch.zeros(1, 3, 12, 20))
        want = theirs(x, position_embeddings=tables)[0]
        close(ours(x[:, order]), want[:, order])


def test_a_vit_with_axial_positions_alone_tells_places_apart() -> None:
    images = DatasetInfo(image_shape=(3, 8, 12), classes=tuple("abc"))
    mixer = {"type": "attention", "num_heads": 2, "position": "axial"}
    values: dict[str, Any] = {
        "type": "vit", "dim": 8, "patch": 4, "registers": 1, "blocks": [{"mixer": mixer}] * 2,
    }  # fmt: skip
    model = build(MODELS["vit"].model_validate({**values, "position": "none"}), images).eval()
    assert not [name for name in model.state_dict() if "table" in name]
    torch.manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0, 0.5)
        x = torch.randn(2, 3, 8, 12)
        assert not torch.allclose(model(x), model(x.flip(3).roll(4, 2)), atol=1e-3)
    for changed in (
        {"reconstruct": {"dim": 8, "blocks": [{}]}},
        {"dim": 12},  # heads of 6 channels
    ):
        with pytest.raises(OptionError, match="axial"):
            build(MODELS["vit"].model_validate({**values, **changed}), images)
    with pytest.raises(OptionError, match="axial needs a grid of patches"):
        decoder([mixer])
