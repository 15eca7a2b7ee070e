"""The decoder equals reference implementations with the same weights; generation is consistent."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.errors import SpecError
from bigmodel_cli.generation.sampling import Sampling, Seen, generate, keep_likely, sample
from bigmodel_cli.models import build
from bigmodel_cli.models.decoder import Decoder, DecoderOptions
from bigmodel_cli.models.describe import flops, training_flops
from bigmodel_cli.spec import load

FACTS = DatasetInfo(vocab_size=50, context=24)


def decoder(seed: int = 0, **changes: Any) -> Decoder:
    values: dict[str, Any] = {
        "type": "decoder",
        "dim": 32,
        "blocks": [
            {"repeat": 2, "mixer": {"type": "attention", "num_heads": 4}, "ffn": {"type": "gelu"}}
        ],
        "position": {"type": "learned"},
        **changes,
    }
    torch.manual_seed(seed)
    model = build(DecoderOptions.model_validate(values), FACTS)
    assert isinstance(model, Decoder)
    for p in model.parameters():  # large enough that a mistake shows
        torch.nn.init.normal_(p, std=0.3)
    return model.eval()


def test_equals_gpt2_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    ours = decoder(blocks=[{"repeat": 2, "mixer": {"type": "attention", "num_heads": 4},
                            "ffn": {"type": "gelu", "approximate": "tanh"}}])  # fmt: skip
    config = transformers.GPT2Config(vocab_size=50, n_positions=24, n_embd=32, n_layer=2, n_head=4)
    theirs = transformers.GPT2LMHeadModel(config).eval()
    state: dict[str, Tensor] = {
        "transformer.wte.weight": ours.embedding.weight,
        "transformer.wpe.weight": ours.position.table.weight,
    }
    state |= {"transformer.ln_f.weight": ours.norm.weight, "transformer.ln_f.bias": ours.norm.bias}
    for i, block in enumerate(ours.blocks):
        for name, part in (
            ("attn.c_attn", block.mixer.qkv), ("attn.c_proj", block.mixer.out),
            ("mlp.c_fc", block.ffn.up), ("mlp.c_proj", block.ffn.down),
        ):  # fmt: skip
            state[f"transformer.h.{i}.{name}.weight"], state[f"transformer.h.{i}.{name}.bias"] = (
                part.weight.T,
                part.bias,
            )
        for name, norm in (("ln_1", block.mixer_norm), ("ln_2", block.ffn_norm)):
            state[f"transformer.h.{i}.{name}.weight"], state[f"transformer.h.{i}.{name}.bias"] = (
                norm.weight,
                norm.bias,
            )
    missing = theirs.load_state_dict(
        {n: t.detach().clone() for n, t in state.items()}, strict=False
    )
    assert not missing.unexpected_keys
    tokens = torch.randint(50, (3, 24))
    with torch.no_grad():
        expected = theirs(tokens).logits
        assert float((ours(tokens) - expected).abs().max()) <= 1e-5 * max(
            1.0, float(expected.abs().max())
        )


def test_equals_llama_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    attention = {
        "type": "attention",
        "num_heads": 4,
        "kv_heads": 2,
        "position": {"type": "rotary"},
        "bias": False,
    }
    norm = {"type": "rmsnorm", "eps": 1e-5}
    ours = decoder(
        position={"type": "none"}, tie_embeddings=False, norm=norm,
        blocks=[{"repeat": 2, "mixer": attention, "ffn": {"type": "swiglu", "hidden": 48},
         "norm": norm}],
    )  # fmt: skip
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2,
        rms_norm_eps=1e-5, max_position_embeddings=24, tie_word_embeddings=False,
    )  # fmt: skip
    theirs = transformers.LlamaForCausalLM(config).eval()
    state = {"model.embed_tokens.weight": ours.embedding.weight, "lm_head.weight": ours.head.weight}
    state["model.norm.weight"] = ours.norm.weight
    for i, block in enumerate(ours.blocks):
        at = f"model.layers.{i}."
        q, k, v = block.mixer.qkv.weight.split([32, 16, 16])
        state |= {
            at + "self_attn.q_proj.weight": q,
            at + "self_attn.k_proj.weight": k,
            at + "self_attn.v_proj.weight": v,
        }
        state |= {
            at + "self_attn.o_proj.weight": block.mixer.out.weight,
            at + "mlp.gate_proj.weight": block.ffn.gate.weight,
        }
        state |= {
            at + "mlp.up_proj.weight": block.ffn.up.weight,
            at + "mlp.down_proj.weight": block.ffn.down.weight,
        }
        state |= {at + "input_layernorm.weight": block.mixer_norm.weight}
        state |= {at + "post_attention_layernorm.weight": block.ffn_norm.weight}
    theirs.load_state_dict({n: t.detach().clone() for n, t in state.items()})
    tokens = torch.randint(50, (3, 24))
    with torch.no_grad():
        expected = theirs(tokens).logits
        assert float((ours(tokens) - expected).abs().max()) <= 1e-5 * max(
            1.0, float(expected.abs().max())
        )


def test_post_norm_and_the_size_of_the_presets() -> None:
    from conftest import ROOT

    model = decoder(
        blocks=[{"mixer": {"type": "attention", "num_heads": 4}, "placement": "post"}], norm=None
    )
    tokens = torch.randint(50, (1, 8))
    block = model.blocks[0]
    x = model.embedding(tokens) + model.position.table.weight[:8]
    expected = model.head(block.mixer_norm(x + block.mixer(x)))
    torch.testing.assert_close(model(tokens), expected)
    with torch.device("meta"):
        gpt2 = build(
            load(ROOT / "sample_configs" / "gpt2.yaml").model,
            DatasetInfo(vocab_size=50257, context=1024),
        )
    assert sum(p.numel() for p in gpt2.parameters()) == 124_439_808


@pytest.mark.parametrize("position", ["learned", "sinusoidal", "none"])
def test_changing_a_token_changes_nothing_before_it_and_every_gradient_is_finite(
    position: str,
) -> None:
    model = decoder(position={"type": position})
    tokens = torch.randint(50, (1, 24))
    changed = tokens.clone()
    changed[0, 10] = (changed[0, 10] + 1) % 50
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :10], after[:, :10], rtol=0, atol=1e-6)
    assert not torch.allclose(before[:, 10:], after[:, 10:])
    before.square().mean().backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert bool(p.grad.isfinite().all()), name
        assert bool((p.grad != 0).any()), name


@pytest.mark.parametrize(
    "position", [{"type": "learned"}, {"type": "sinusoidal"}, {"type": "none"}]
)
@pytest.mark.parametrize("rotary", [False, True])
def test_generation_with_a_cache_equals_generation_without(
    position: dict[str, Any], rotary: bool
) -> None:
    mixer: dict[str, Any] = {"type": "attention", "num_heads": 4, "kv_heads": 2}
    if rotary:
        mixer["position"] = {"type": "rotary"}
    model = decoder(
        position=position, blocks=[{"repeat": 2, "mixer": mixer, "ffn": {"type": "swiglu"}}]
    )
    prompt = torch.randint(50, (3, 5))
    made = torch.stack(list(generate(model, prompt, max_new_tokens=19)), 1)
    tokens = prompt
    for _ in range(19):
        with torch.no_grad():
            tokens = torch.cat((tokens, model(tokens)[:, -1:].argmax(-1)), 1)
    assert torch.equal(made, tokens[:, 5:])


def test_a_cache_is_as_long_as_the_generated_text() -> None:
    """A context of a billion tokens, which costs no weight, costs no memory either."""
    model = decoder(max_len=10**9, position={"type": "none"})
    prompt = torch.randint(50, (2, 5))
    made = torch.stack(list(generate(model, prompt, max_new_tokens=9)), 1)
    short = decoder(max_len=24, position={"type": "none"})
    short.load_state_dict(model.state_dict())
    assert torch.equal(made, torch.stack(list(generate(short, prompt, max_new_tokens=9)), 1))


def test_generation_goes_on_beyond_the_longest_sequence_and_stops_at_the_end() -> None:
    model = decoder()
    prompt = torch.randint(50, (2, 40))  # longer than max_len 24: cut from the left
    made = torch.stack(list(generate(model, prompt, max_new_tokens=60)), 1)
    assert made.shape == (2, 60)
    first = model(prompt[:, -24:])[:, -1].argmax(-1)
    assert torch.equal(made[:, 0], first)
    stop = int(made[0, 3])
    alone = list(generate(model, prompt[:1], max_new_tokens=60, stop=stop))
    assert len(alone) == made[0].tolist().index(stop) + 1


def test_sampling_is_repeatable_and_filters_as_it_says() -> None:
    model = decoder()
    prompt = torch.randint(50, (1, 4))

    def draw(seed: int) -> list[int]:
        draws = torch.rand(1, 15, generator=torch.Generator().manual_seed(seed))
        return [int(t) for t in generate(model, prompt, Sampling(), max_new_tokens=15, draws=draws)]

    assert draw(1) == draw(1) != draw(2)
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    for sampling, kept in (
        (Sampling(top_k=2), [True, True, False, False]),
        (Sampling(top_p=0.79), [True, True, False, False]),
        (Sampling(top_p=0.81), [True, True, True, False]),
        (Sampling(top_p=0.01), [True, False, False, False]),
        (Sampling(top_k=3, top_p=0.5), [True, False, False, False]),
        (Sampling(min_p=0.29), [True, True, True, False]),
        (Sampling(min_p=0.31), [True, True, False, False]),
        (Sampling(min_p=1.0), [True, False, False, False]),
    ):
        assert (keep_likely(logits, sampling) > -1e9).tolist() == [kept], sampling
    draws = torch.rand(20_000, generator=torch.Generator().manual_seed(0))
    for sampling, wanted in (
        (Sampling(), [0.5, 0.3, 0.15, 0.05]),
        (Sampling(0.5), [0.25 / 0.365, 0.09 / 0.365, 0.0225 / 0.365, 0.0025 / 0.365]),
        (Sampling(top_k=2), [0.625, 0.375, 0.0, 0.0]),
    ):
        drawn = sample(logits.repeat(20_000, 1), sampling, draws)
        counts = torch.bincount(drawn, minlength=4) / 20_000
        torch.testing.assert_close(counts, torch.tensor(wanted), atol=0.015, rtol=0)
    ends = sample(logits.repeat(2, 1), Sampling(top_k=2), torch.tensor([0.0, 1.0 - 2**-24]))
    assert ends.tolist() == [0, 1]  # never beyond what is likely


def test_ties_go_to_the_lower_token_and_no_temperature_overflows() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0, 3.0, 0.0, 3.0], [2.0, 2.0, 2.0, 2.0, 2.0, 2.0]])
    draws = torch.rand(2, generator=torch.Generator().manual_seed(0))
    for k, rows in (
        (1, ([1], [0])),
        (2, ([1, 2], [0, 1])),
        (4, ([1, 2, 3, 5], [0, 1, 2, 3])),
        (5, ([0, 1, 2, 3, 5],) * 1),
    ):
        for kept, want in zip(keep_likely(logits, Sampling(top_k=k)), rows, strict=False):
            assert kept.isfinite().nonzero().flatten().tolist() == want
    assert (
        sample(logits, Sampling(1.0, top_k=1), draws).tolist()
        == sample(logits, Sampling(0.0), None).tolist()
        == [1, 0]
    )
    assert (
        keep_likely(logits, Sampling(top_p=0.5))[1].isfinite().tolist() == [True] * 3 + [False] * 3
    )
    assert keep_likely(logits, Sampling(min_p=1.0))[0].isfinite().nonzero().flatten().tolist() == [
        1,
        2,
        3,
        5,
    ]
    huge = torch.tensor([[1e30, 3e38, -3e38, 0.0], [5.0, 4.0, 3.0, 5.1]])
    for temperature in (1e-320, 1e-40, 1e-3):
        assert sample(huge, Sampling(temperature), torch.tensor([0.999, 0.999])).tolist() == [1, 3]


@pytest.mark.parametrize("seed", range(5))
def test_sampling_filters_equal_those_of_transformers(seed: int) -> None:
    from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = 3 * torch.randn(7, 40, generator=torch.Generator().manual_seed(seed))
    k, p, least = seed * 4 + 2, 0.3 + 0.15 * seed, 0.02 * seed + 0.01
    want: torch.Tensor = logits
    for warper in (TopKLogitsWarper(k), TopPLogitsWarper(p), MinPLogitsWarper(least)):
        want = warper(None, want)
    assert torch.equal(keep_likely(logits, Sampling(1.0, k, p, least)).isfinite(), want.isfinite())


def test_a_rows_text_does_not_depend_on_other_rows() -> None:
    model = decoder()
    prompt, draws = torch.randint(50, (4, 5)), torch.rand(4, 12)
    sampling = Sampling(0.9, top_k=20, repetition_penalty=1.3)
    together = torch.stack(
        list(generate(model, prompt, sampling, max_new_tokens=12, draws=draws)), 1
    )
    for i in range(4):
        own = {"max_new_tokens": 12, "draws": draws[i : i + 1]}
        alone = torch.stack(list(generate(model, prompt[i : i + 1], sampling, **own)), 1)
        assert torch.equal(alone[0], together[i])


def test_repetition_is_penalised_as_in_transformers() -> None:
    from transformers import RepetitionPenaltyLogitsProcessor

    logits, prompt = torch.randn(3, 30), torch.randint(30, (3, 9))
    want = RepetitionPenaltyLogitsProcessor(1.7)(prompt, logits.clone())
    torch.testing.assert_close(Seen(prompt, None).penalised(logits, 1.7), want)
    padded = torch.cat((torch.full((3, 4), 29), prompt), 1)  # padding is not repeated
    real = torch.arange(13).expand(3, 13) >= 4
    torch.testing.assert_close(Seen(padded, real).penalised(logits, 1.7), want)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 20}, "model.vocab_size: 20 is less than the tokenizer's 50"),
        ({"max_len": 10}, "model.max_len: 10 is shorter than the data's context 24"),
        ({"dim": 33}, r"model.blocks.0.mixer.num_heads: 4 heads do not divide dim 33"),
    ],
)
def test_decoder_options_that_do_not_fit_are_reported_with_their_path(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        decoder(**changes)


@pytest.mark.parametrize("kind", ["attention", "differential"])
def test_a_decoder_without_a_causal_mask_is_refused(kind: str) -> None:
    mixer = {"type": kind, "num_heads": 2}
    values = {"dim": 16, "blocks": [{"mixer": {**mixer, "causal": True}}, {"mixer": mixer}]}
    assert len(DecoderOptions.model_validate(values).blocks) == 2
    values["blocks"] = [{"mixer": mixer}, {"mixer": {**mixer, "causal": False}}]
    with pytest.raises(
        ValueError, match=r"blocks\.1\.mixer\.causal: false lets a position see the tokens after it"
    ):
        DecoderOptions.model_validate(values)


@pytest.mark.parametrize(
    "mixer",
    [{"type": "attention", "num_heads": 2}, {"type": "attention", "num_heads": 2, "window": 4}],
)
def test_a_decoders_training_takes_three_times_its_forward_pass(mixer: dict[str, Any]) -> None:
    """Attention's scores and sums of pairs that see one another count among them; what its kernel
    does twice does not.
    """
    dim, length = 16, 12
    model = decoder(dim=dim, blocks=[{"mixer": mixer}], position={"type": "none"}).to("meta")
    tokens = torch.zeros(1, length, dtype=torch.int64, device="meta")
    pairs = 10 + 8 * 4 if "window" in mixer else 78
    assert flops(model, tokens) == 2 * length * dim * (4 * dim + 50) + 2 * 2 * pairs * dim
    assert training_flops(model, tokens) == 3 * flops(model, tokens)


def test_the_last_logits_alone_are_those_of_all_positions() -> None:
    """With a cache and without one."""
    model = decoder(logit_softcap=3.0).eval()
    tokens = torch.randint(model.options.vocab_size or 11, (3, 5))
    with torch.no_grad():
        every = model(tokens)
        torch.testing.assert_close(model(tokens, last=True), every[:, -1:])
        cache = model.new_cache(3)
        model(tokens[:, :2], cache, last=True)
        found = model(tokens[:, 2:], cache, last=True)
    torch.testing.assert_close(found, every[:, -1:])


@pytest.mark.parametrize("more", [{}, {"top_p": 0.7}, {"min_p": 0.2, "temperature": 1.7}])
def test_drawing_among_the_likeliest_equals_drawing_with_the_others_excluded(
    more: dict[str, Any],
) -> None:
    """To the token, with ties at the last place and with excluded tokens too."""
    sampling, draw = Sampling(**{"temperature": 0.6, "top_k": 4, **more}), torch.Generator()
    logits = torch.randn(64, 23, generator=draw.manual_seed(3)) * 2
    logits[::7] = logits[::7].round()
    logits[5, 3:] = -torch.inf
    for _ in range(20):
        draws = torch.rand(64, generator=draw)
        for row in range(64):
            known = logits[row].double() / sampling.temperature
            order = sorted(range(23), key=lambda i: (-float(known[i]), i))[: sampling.top_k]
            weights = {i: math.exp(float(known[i] - known[order[0]])) for i in order}
            if sampling.top_p < 1:
                total, before, kept = sum(weights.values()), 0.0, {}
                for i in order:
                    if before < sampling.top_p:
                        kept[i] = weights[i]
                    before += weights[i] / total
                weights = kept
            weights = {
                i: w for i, w in weights.items() if w >= sampling.min_p * max(weights.values())
            }
            place, reached = float(draws[row]) * sum(weights.values()), 0.0
            for token in sorted(weights):
                reached += weights[token]
                if place < reached:
                    break
            one = slice(row, row + 1)
            assert int(sample(logits[one], sampling, draws[one])) == token
