"""FLOPs of 31 structures equal counts by hand from their papers' dimensions, forward and backward.

Every formula here counts multiply-adds (m), of which each is two FLOPs, of one row of T positions.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bigmodel_cli.config import DatasetInfo, MelConfig
from bigmodel_cli.models import MODELS, build
from bigmodel_cli.models.describe import flops, training_flops, useful_flops
from bigmodel_cli.parts.context import SequenceInfo
from bigmodel_cli.parts.kernels import AttentionSpec, attend

T, S, C, V, ROWS = 37, 23, 48, 59, 3
ALL = T * T
HALF = T * (T + 1) // 2
GPT = 4 * C * C  # qkv and output projections at one position
FFN = {"type": "gelu", "hidden": 5 * C}
ATTENTION = {"type": "attention", "num_heads": 6}


def attention(**options: Any) -> dict[str, Any]:
    return {"mixer": {**ATTENTION, **options}}


def seen(window: int, before: int = T) -> int:
    """Pairs of a query and the last `window` keys, counted one by one."""
    return sum(1 for i in range(T) for j in range(T) if 0 <= i - j < min(window, before))


def near(window: int) -> int:
    """Pairs that are nearer than the window, to both sides."""
    return sum(1 for i in range(T) for j in range(T) if abs(i - j) < window)


def mamba(state: int, inner: int, groups: int, kernel: int, heads: int) -> int:
    """Dao and Gu 2024: projections; the convolution of x, B, C; the state written and read."""
    mixed = inner + 2 * groups * state
    return T * (C * (inner + mixed + heads) + mixed * kernel + 2 * inner * state + inner * C)


def delta(heads: int, key_heads: int, key: int, value: int, kernel: int) -> int:
    """Yang et al. 2025: the state read for k_t, written, and read for q_t."""
    qkv = 2 * key_heads * key + heads * value
    return T * (
        C * (qkv + heads * value + 2 * heads)
        + qkv * kernel
        + 3 * heads * key * value
        + heads * value * C
    )


def latent(heads: int, rank: int, width: int, turned: int, value: int, q: int) -> int:
    """DeepSeek-V2, section 2.1, with keys and values of every head in memory."""
    full = width + turned
    queries = C * q + q * heads * full if q else C * heads * full
    keys = C * (rank + turned) + rank * heads * (width + value)
    return T * (queries + keys + heads * value * C) + heads * HALF * (full + value)


SHORT = {"type": "convolution", "kernel": 3}
MOE = {"type": "moe", "experts": 8, "top_k": 3, "hidden": 20}
DECODERS: dict[str, tuple[dict[str, Any], int]] = {
    "gpt-2": ({**attention(), "ffn": FFN}, T * (GPT + 2 * C * 5 * C) + HALF * 2 * C),
    "llama": (
        {**attention(position={"type": "rotary"}), "ffn": {"type": "swiglu", "hidden": 100}},
        T * (GPT + 3 * C * 100) + HALF * 2 * C,
    ),
    "grouped heads": (attention(kv_heads=2), T * (2 * C * C + 2 * C * 16) + HALF * 2 * C),
    "wide heads": (attention(head_dim=12), T * 4 * C * 72 + HALF * 2 * 72),
    "window": (attention(window=5), T * GPT + seen(5) * 2 * C),
    "window of one": (attention(window=1), T * GPT + T * 2 * C),
    "window that is longer": (attention(window=99), T * GPT + HALF * 2 * C),
    "softcap": (attention(softcap=20.0), T * GPT + HALF * 2 * C),
    "sinks": (attention(sinks=True), T * GPT + HALF * 2 * C),
    "sinks and window": (attention(sinks=True, window=7), T * GPT + seen(7) * 2 * C),
    "alibi": (attention(position={"type": "alibi"}), T * GPT + HALF * 2 * C),
    "t5 bias": (attention(position={"type": "t5"}), T * GPT + HALF * 2 * C),
    "differential": (
        # 3 heads of two maps of width 8; values of 16
        {"mixer": {"type": "differential", "num_heads": 3}},
        T * GPT + 6 * HALF * (8 + 16),
    ),
    "mla": (
        {"mixer": {"type": "mla", "num_heads": 6, "kv_rank": 20, "rotary_dim": 4}},
        latent(6, 20, 8, 4, 8, 0),
    ),
    "mla of narrow queries": (
        {
            "mixer": {
                "type": "mla",
                "num_heads": 5,
                "kv_rank": 12,
                "rotary_dim": 6,
                "head_dim": 10,
                "value_dim": 14,
                "q_rank": 18,
            }
        },
        latent(5, 12, 10, 6, 14, 18),
    ),
    "experts": (
        {**attention(), "ffn": MOE},
        T * (GPT + C * 8 + 3 * 3 * C * 20) + HALF * 2 * C,
    ),
    "shared experts with a gate": (
        {**attention(), "ffn": {**MOE, "shared": 2, "shared_hidden": 28, "shared_gate": True}},
        T * (GPT + C * 8 + 3 * 3 * C * 20 + 3 * C * 56 + C) + HALF * 2 * C,
    ),
    "mamba-2": (
        {"mixer": {"type": "mamba2", "state": 10, "head_dim": 16, "groups": 2, "chunk": 8}},
        mamba(10, 96, 2, 4, 6),
    ),
    "mamba-2 in one chunk": (
        {"mixer": {"type": "mamba2", "state": 10, "head_dim": 16, "groups": 2, "chunk": 999}},
        mamba(10, 96, 2, 4, 6),
    ),
    "gated deltanet": (
        {
            "mixer": {
                "type": "gated_deltanet",
                "num_heads": 4,
                "key_heads": 2,
                "key_dim": 6,
                "value_dim": 14,
                "kernel": 5,
                "chunk": 16,
            }
        },
        delta(4, 2, 6, 14, 5),
    ),
    "retention": (
        {"mixer": {"type": "retention", "num_heads": 3, "value_dim": 20}},
        # queries and keys of C, values and gate of 60, the state written and read, the output
        T * (C * (2 * C + 60) + C * 60 + 2 * C * 20 + 60 * C),
    ),
    "short convolution": ({"mixer": SHORT}, T * (3 * C * C + 3 * C + C * C)),
    "parallel mixers": (
        {"mixer": {"type": "parallel", "mixers": [ATTENTION, SHORT]}},
        T * (GPT + 4 * C * C + 3 * C) + HALF * 2 * C,
    ),
}


def rows(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
    """Zeros on the meta device: tokens, or numbers where a shape has more than two axes."""
    kind = torch.float32 if len(shapes[0]) > 2 else torch.int64
    first = torch.zeros(shapes[0], dtype=kind, device="meta")
    return [first, *(torch.zeros(s, dtype=torch.int64, device="meta") for s in shapes[1:])]


def check(
    values: dict[str, Any],
    info: DatasetInfo,
    shapes: list[tuple[int, ...]],
    products: int,
    free: int = 0,
) -> None:
    """Of one row the model takes so many multiply-adds; `free` of them read what needs no gradient
    (images, frames).
    """
    options = MODELS[values["type"]].model_validate(values)
    model = build(options, info).to("meta")
    example = rows(*shapes)
    assert flops(model, *example) == 2 * ROWS * products
    assert training_flops(model, *example) == 2 * ROWS * (3 * products - free)


@pytest.mark.parametrize(("block", "products"), DECODERS.values(), ids=DECODERS)
def test_two_blocks_of_a_decoder(block: dict[str, Any], products: int) -> None:
    values = {"type": "decoder", "dim": C, "blocks": [{"repeat": 2, **block}]}
    info = DatasetInfo(vocab_size=V, context=T)
    check(values, info, [(ROWS, T)], 2 * products + T * C * V)


def test_an_encoder_sees_both_sides_within_its_window() -> None:
    blocks = [{**attention(), "ffn": {"type": "geglu", "hidden": 40}}, attention(window=4)]
    info = DatasetInfo(vocab_size=V, context=T)
    products = T * (GPT + 3 * C * 40) + ALL * 2 * C + T * GPT + near(4) * 2 * C
    head = T * (C * C + C * V)
    check({"type": "encoder", "dim": C, "blocks": blocks}, info, [(ROWS, T)], products + head)


def test_a_label_is_read_from_one_position() -> None:
    info = DatasetInfo(vocab_size=V, context=T, classes=("a", "b", "c"))
    values = {"type": "encoder", "dim": C, "blocks": [attention()], "pooler": True}
    check(values, info, [(ROWS, T)], T * GPT + ALL * 2 * C + C * C + 3 * C)


def test_a_translator_reads_its_source() -> None:
    cross = {"num_heads": 4, "head_dim": 10}
    values = {
        "type": "seq2seq",
        "dim": C,
        "max_len": 40,
        "encoder": [{**attention(), "ffn": FFN}],
        "decoder": [{**attention(), "cross": cross, "ffn": FFN}],
    }
    wide = 2 * C * 5 * C
    source = S * (GPT + wide) + S * S * 2 * C
    target = T * (GPT + wide + 2 * C * 40) + HALF * 2 * C + S * 2 * C * 40 + T * S * 2 * 40
    info = DatasetInfo(vocab_size=V, context=T)
    check(values, info, [(ROWS, S), (ROWS, T)], source + target + T * C * V)


def test_an_image_in_patches() -> None:
    values = {"type": "vit", "patch": 4, "dim": C, "blocks": [{**attention(), "ffn": FFN}]}
    info = DatasetInfo(image_shape=(3, 20, 12), classes=("a", "b"))
    patches, length = 15 * 48 * C, 16
    block = length * (GPT + 2 * C * 5 * C) + length**2 * 2 * C
    check(values, info, [(ROWS, 3, 20, 12)], patches + block + 2 * C, patches)


def test_a_masked_autoencoder_sees_a_few_patches() -> None:
    light = {"dim": 24, "blocks": [{"mixer": {"type": "attention", "num_heads": 3}}]}
    values = {"type": "vit", "patch": 4, "dim": C, "blocks": [attention()], "reconstruct": light}
    info = DatasetInfo(image_shape=(3, 20, 12))
    patches, visible = 15 * 48 * C, 6
    encoder = (visible + 1) * GPT + (visible + 1) ** 2 * 2 * C
    decoder = (visible + 1) * C * 24 + 16 * 4 * 24 * 24 + 16**2 * 2 * 24 + 15 * 24 * 48
    shapes = [(ROWS, 3, 20, 12), (ROWS, visible)]
    check(values, info, shapes, patches + encoder + decoder, patches)


def test_sound_through_convolutions() -> None:
    values = {
        "type": "encoder",
        "dim": C,
        "blocks": [attention()],
        "frontend": {"type": "conv", "stride": 4, "channels": 32},
    }
    sound = MelConfig(16000, 400, 160, 20, 0.0, 8000.0)
    info = DatasetInfo(context=40, frame_width=20, classes=("a", "b"), sound=sound)
    first = 40 * 32 * 20 * 3  # of stride 1
    later = 20 * 32 * 32 * 3 + 10 * C * 32 * 3
    products = first + later + 10 * GPT + 100 * 2 * C + 2 * C
    check(values, info, [(ROWS, 40, 20)], products, first)


def test_convolutions_in_groups() -> None:
    layers = [
        {"type": "conv", "channels": 12, "kernel": 5, "stride": 2, "padding": 2, "norm": "batch"},
        {
            "type": "residual",
            "layers": [
                {"type": "conv", "channels": 12, "groups": 4, "padding": "same"},
            ],
        },
        {"type": "pool"},
        {"type": "flatten"},
        {"type": "dense", "units": "classes"},
    ]
    info = DatasetInfo(image_shape=(3, 16, 24), classes=("a", "b", "c", "d"))
    first = 8 * 12 * 12 * 75
    products = first + 8 * 12 * 12 * 3 * 9 + 4 * 6 * 12 * 4
    check({"type": "cnn", "layers": layers}, info, [(ROWS, 3, 16, 24)], products, first)


def test_alexnet() -> None:
    """Krizhevsky 2014 ("one weird trick"), as torchvision has it, at 224 x 224."""
    info = DatasetInfo(image_shape=(3, 224, 224), classes=tuple(f"c{i}" for i in range(7)))
    first = 55 * 55 * 64 * 3 * 121
    later = 27 * 27 * 192 * 64 * 25 + 13 * 13 * 9 * (384 * 192 + 256 * 384 + 256 * 256)
    dense = 9216 * 4096 + 4096 * 4096 + 4096 * 7
    values = {"type": "torchvision", "name": "alexnet"}
    check(values, info, [(ROWS, 3, 224, 224)], first + later + dense, first)


@pytest.mark.parametrize(("wanted", "gradients"), [("q", 2), ("k", 2), ("v", 1), ("qk", 3)])
def test_gradients_that_nobody_wants_do_not_count(wanted: str, gradients: int) -> None:
    """Values need their own; queries and keys each theirs, and the weights' between them."""
    shape = ROWS, 6, T, C // 6
    inputs = [torch.zeros(shape, device="meta", requires_grad=name in wanted) for name in "qkv"]

    def both() -> None:
        y = attend(inputs[0], inputs[1], inputs[2], AttentionSpec(causal=True))
        torch.autograd.grad(y, [x for x in inputs if x.requires_grad], torch.empty_like(y))

    assert useful_flops(both, gradients=True) == 2 * ROWS * (2 + gradients) * HALF * C


def test_a_step_of_generation_reads_what_is_cached() -> None:
    """37 queries after none, then one after them; a state is passed as often as in training."""
    mixers = [ATTENTION, {**ATTENTION, "window": 5}, {"type": "retention", "num_heads": 3}]
    values = {"type": "decoder", "dim": C, "blocks": [{"mixer": mixer} for mixer in mixers]}
    info = DatasetInfo(vocab_size=V, context=T + 1)
    model = build(MODELS["decoder"].model_validate(values), info).to("meta").eval()
    cache = [block.mixer.new_cache(ROWS, T + 1) for block in model.get_submodule("blocks")]
    x = torch.zeros(ROWS, T + 1, C, device="meta")
    found = []
    for part in (slice(0, T), slice(T, None)):
        for block, kept in zip(model.get_submodule("blocks"), cache, strict=True):
            mixer, sequence = block.mixer, SequenceInfo(offset=part.start)
            found.append(useful_flops(lambda m=mixer, p=part, s=sequence, k=kept: m(x[:, p], s, k)))
    dense = C * (2 * C + C) + C * C + 2 * C * 16 + C * C  # retention at a position
    hand = [
        *(T * GPT + HALF * 2 * C, T * GPT + seen(5) * 2 * C, T * dense),
        *(GPT + (T + 1) * 2 * C, GPT + 5 * 2 * C, dense),
    ]
    assert found == [2 * ROWS * products for products in hand]
