"""Skeletons against the reference implementations in transformers, with the same weights, on tiny
random configurations.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    MarianConfig,
    MarianMTModel,
    ViTConfig,
    ViTForImageClassification,
)

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.errors import SpecError
from bigmodel_cli.models.encoder import Encoder, EncoderOptions
from bigmodel_cli.models.seq2seq import Seq2Seq, Seq2SeqOptions
from bigmodel_cli.models.vit import ViT, ViTOptions

ATTENTION = {"type": "attention", "num_heads": 4}


def randomised(module: Any) -> Any:
    """Every weight drawn anew, evaluating."""
    torch.manual_seed(0)
    for name, p in module.named_parameters():
        if "embed_positions" in name:
            continue  # sines and cosines
        with torch.no_grad():
            p.normal_(1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0, 0.2)
    return module.eval()


def attention(
    theirs: dict[str, Tensor], names: tuple[str, str, str, str], prefix: str
) -> dict[str, Tensor]:
    """Our fused projection from their separate ones."""
    q, k, v, out = names
    state = {}
    for kind in ("weight", "bias"):
        state[f"{prefix}.qkv.{kind}"] = torch.cat([theirs[f"{n}.{kind}"] for n in (q, k, v)])
        state[f"{prefix}.out.{kind}"] = theirs[f"{out}.{kind}"]
    return state


def renamed(theirs: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    """Weights and biases under our names."""
    return {
        f"{a}.{kind}": theirs[f"{b}.{kind}"]
        for a, b in names.items()
        for kind in ("weight", "bias")
    }


def bert(labels: int) -> tuple[Encoder, Any]:
    """Ours and theirs with the same weights; labels 0 for the masked language model."""
    config = BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=24,
        max_position_embeddings=20, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        num_labels=labels or 2,
    )  # fmt: skip
    theirs = randomised((BertForSequenceClassification if labels else BertForMaskedLM)(config))
    layernorm = {"type": "layernorm", "eps": 1e-12}
    options = EncoderOptions.model_validate(
        {
            "dim": 16, "position": {"type": "learned"}, "embedding_norm": layernorm, "norm": None,
            "token_types": 2,
            "pooler": bool(labels),
            "blocks": [
                {"repeat": 2, "mixer": ATTENTION, "ffn": {"type": "gelu", "hidden": 24},
                 "norm": layernorm, "placement": "post"}
            ],
        }
    )  # fmt: skip
    ours = Encoder(
        options, DatasetInfo(vocab_size=30, context=20, classes=tuple("abcdef"[:labels]))
    ).eval()
    weights = theirs.state_dict()
    state = {
        "embedding.weight": weights["bert.embeddings.word_embeddings.weight"],
        "mask": weights["bert.embeddings.word_embeddings.weight"][29],
        "types.weight": weights["bert.embeddings.token_type_embeddings.weight"],
        "position.table.weight": weights["bert.embeddings.position_embeddings.weight"],
        **renamed(weights, {"embedding_norm": "bert.embeddings.LayerNorm"}),
    }
    for i in range(2):
        layer = f"bert.encoder.layer.{i}"
        inner = [
            f"{layer}.attention.{n}"
            for n in ("self.query", "self.key", "self.value", "output.dense")
        ]
        state |= attention(weights, (inner[0], inner[1], inner[2], inner[3]), f"blocks.{i}.mixer")
        state |= renamed(
            weights,
            {
                f"blocks.{i}.mixer_norm": f"{layer}.attention.output.LayerNorm",
                f"blocks.{i}.ffn.up": f"{layer}.intermediate.dense",
                f"blocks.{i}.ffn.down": f"{layer}.output.dense",
                f"blocks.{i}.ffn_norm": f"{layer}.output.LayerNorm",
            },
        )  # fmt: skip
    if labels:
        state |= renamed(weights, {"pooler": "bert.pooler.dense", "head": "classifier"})
    else:
        head = "cls.predictions"
        state |= renamed(
            weights,
            {"head.dense": f"{head}.transform.dense", "head.norm": f"{head}.transform.LayerNorm"},
        )
        state |= {
            "head.logits.weight": state["embedding.weight"],
            "head.logits.bias": weights[f"{head}.bias"],
        }
    ours.load_state_dict(state)
    return ours, theirs


@pytest.mark.parametrize("labels", [0, 3])
def test_equals_bert_of_transformers_also_with_padding(labels: int) -> None:
    ours, theirs = bert(labels)
    tokens = torch.randint(30, (3, 11))
    types = torch.randint(2, (3, 11))
    real = torch.ones(3, 11, dtype=torch.bool)
    real[0, 7:] = real[2, 2:] = False
    with torch.no_grad():
        want = theirs(tokens, attention_mask=real.long(), token_type_ids=types).logits
        got = ours(tokens.masked_fill(~real, -1), types)
    if not labels:
        got, want = got[real], want[real]
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


def test_the_mask_and_logits_of_some_places_equal_bert() -> None:
    ours, theirs = bert(0)
    tokens, masked = torch.randint(29, (3, 11)), torch.rand(3, 11) < 0.4
    at = masked | (torch.rand(3, 11) < 0.2)
    with torch.no_grad():
        want = theirs(tokens.masked_fill(masked, 29)).logits[at]
        got = ours(tokens, torch.zeros_like(tokens), masked=masked, at=at.flatten().nonzero()[:, 0])
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


def test_the_mean_of_an_encoder_leaves_padding_out() -> None:
    options = {
        "dim": 16,
        "pool": "mean",
        "blocks": [{"mixer": ATTENTION, "ffn": {"type": "gelu"}}],
        "init_std": 0.3,
    }
    model = Encoder(
        EncoderOptions.model_validate(options),
        DatasetInfo(vocab_size=9, context=20, classes=("a", "b")),
    ).eval()
    tokens = torch.randint(9, (2, 5))
    with torch.no_grad():
        padded = model(torch.cat((tokens, torch.full((2, 4), -1)), 1))
        torch.testing.assert_close(padded, model(tokens))


def test_equals_vit_of_transformers() -> None:
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24,
        image_size=12, patch_size=4,
        num_channels=3, num_labels=5, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    theirs = randomised(ViTForImageClassification(config))
    layernorm = {"type": "layernorm", "eps": 1e-12}
    blocks = [
        {"repeat": 2, "mixer": ATTENTION, "ffn": {"type": "gelu", "hidden": 24}, "norm": layernorm}
    ]
    options = ViTOptions.model_validate(
        {"dim": 16, "patch": 4, "blocks": blocks, "norm": layernorm}
    )
    ours = ViT(options, DatasetInfo(image_shape=(3, 12, 12), classes=tuple("abcde"))).eval()
    weights = theirs.state_dict()
    state = {
        "cls": weights["vit.embeddings.cls_token"],
        "table": weights["vit.embeddings.position_embeddings"],
        **renamed(
            weights,
            {
                "patches": "vit.embeddings.patch_embeddings.projection",
                "norm": "vit.layernorm",
                "head": "classifier",
            },
        ),
    }
    for i in range(2):
        layer = f"vit.layers.{i}"
        q, k, v, out = (f"{layer}.attention.{n}_proj" for n in "qkvo")
        state |= attention(weights, (q, k, v, out), f"blocks.{i}.mixer")
        names = {
            "mixer_norm": "layernorm_before",
            "ffn_norm": "layernorm_after",
            "ffn.up": "mlp.fc1",
            "ffn.down": "mlp.fc2",
        }
        state |= renamed(
            weights,
            {f"blocks.{i}.{ours_}": f"{layer}.{theirs_}" for ours_, theirs_ in names.items()},
        )
    ours.load_state_dict(state)
    images = torch.randn(3, 3, 12, 12)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images).logits, atol=1e-5, rtol=1e-5)


def test_registers_and_the_mean_of_a_vit() -> None:
    values = {
        "dim": 16,
        "patch": 4,
        "pool": "mean",
        "registers": 3,
        "blocks": [{"mixer": ATTENTION, "ffn": {"type": "gelu"}}],
    }
    model = ViT(
        ViTOptions.model_validate(values), DatasetInfo(image_shape=(1, 8, 8), classes=("a", "b"))
    ).train()
    loss = (
        model(torch.randn(2, 1, 8, 8)).square().sum()
        + model.features(model.patch_vectors(torch.randn(2, 1, 8, 8))).sum()
    )
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    assert model.features(model.patch_vectors(torch.randn(2, 1, 8, 8))).shape == (2, 4, 16)
    with pytest.raises(SpecError, match=r"model.patch: 4 does not divide the image of 10 x 8"):
        ViT(
            ViTOptions.model_validate(values),
            DatasetInfo(image_shape=(1, 10, 8), classes=("a", "b")),
        )


def marian() -> tuple[Seq2Seq, Any]:
    """Ours and theirs with the same weights: post-norm, sinusoidal positions, scaled shared
    embeddings.
    """
    config = MarianConfig(
        vocab_size=30, d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=24, decoder_ffn_dim=24, max_position_embeddings=20,
        activation_function="relu", dropout=0.0,
        scale_embedding=True, pad_token_id=29, decoder_start_token_id=29, eos_token_id=0,
        share_encoder_decoder_embeddings=True,
    )  # fmt: skip
    theirs = randomised(MarianMTModel(config))
    block = {
        "repeat": 2,
        "mixer": ATTENTION,
        "ffn": {"type": "relu", "hidden": 24},
        "placement": "post",
    }
    options = Seq2SeqOptions.model_validate(
        {
            "dim": 16, "position": {"type": "sinusoidal", "layout": "halves"},
            "encoder": [block], "decoder": [{**block, "cross": {"num_heads": 4}}],
        }
    )  # fmt: skip
    ours = Seq2Seq(options, DatasetInfo(vocab_size=30, context=20)).eval()
    weights = theirs.state_dict()
    shared = weights["model.shared.weight"]
    state = {
        "source_embedding.weight": shared,
        "target_embedding.weight": shared,
        "head.weight": shared,
    }
    projections = ("q_proj", "k_proj", "v_proj", "out_proj")
    for side in ("encoder", "decoder"):
        for i in range(2):
            layer = f"model.{side}.layers.{i}"
            q, k, v, out = (f"{layer}.self_attn.{n}" for n in projections)
            state |= attention(weights, (q, k, v, out), f"{side}.{i}.mixer")
            names = {
                f"{side}.{i}.mixer_norm": f"{layer}.self_attn_layer_norm",
                f"{side}.{i}.ffn_norm": f"{layer}.final_layer_norm",
                f"{side}.{i}.ffn.up": f"{layer}.fc1", f"{side}.{i}.ffn.down": f"{layer}.fc2",
            }  # fmt: skip
            if side == "decoder":
                names |= {
                    f"{side}.{i}.cross_norm": f"{layer}.encoder_attn_layer_norm",
                    f"{side}.{i}.cross.q": f"{layer}.encoder_attn.q_proj",
                    f"{side}.{i}.cross.out": f"{layer}.encoder_attn.out_proj",
                }  # fmt: skip
                for kind in ("weight", "bias"):
                    pair = [
                        weights[f"{layer}.encoder_attn.{n}.{kind}"] for n in ("k_proj", "v_proj")
                    ]
                    state[f"{side}.{i}.cross.kv.{kind}"] = torch.cat(pair)
            state |= renamed(weights, names)
    ours.load_state_dict(state)
    return ours, theirs


def test_equals_marian_of_transformers_also_with_padding() -> None:
    ours, theirs = marian()
    source, target = torch.randint(29, (3, 9)), torch.randint(29, (3, 7))
    real = torch.ones(3, 9, dtype=torch.bool)
    real[1, 4:] = real[2, 1:] = False
    with torch.no_grad():
        want = theirs(
            source.masked_fill(~real, 29), attention_mask=real.long(), decoder_input_ids=target
        ).logits
        got = ours(source.masked_fill(~real, -1), target)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


def test_decoding_with_a_cache_equals_decoding_without() -> None:
    ours, _ = marian()
    source, target = torch.randint(29, (3, 9)), torch.randint(29, (3, 7))
    source[1, 4:] = -1
    with torch.no_grad():
        read, cache = ours.encode(source), ours.new_cache(3)
        pieces = [ours.decode(piece, read, cache) for piece in target.split([1, 3, 1, 2], 1)]
        torch.testing.assert_close(torch.cat(pieces, 1), ours(source, target), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoder": [{"mixer": ATTENTION}]}, "no block has cross"),
        ({"encoder": [{"cross": {"num_heads": 4}}]}, "it has no memory to read"),
        (
            {"decoder": [{"cross": {"num_heads": 4}}, {"mixer": {**ATTENTION, "causal": False}}]},
            "decoder.1.mixer.causal: false lets a position see the tokens after it",
        ),
    ],
)
def test_an_encoder_decoder_that_cannot_work_is_refused(
    changes: dict[str, Any], message: str
) -> None:
    values = {
        "dim": 16,
        "encoder": [{"mixer": ATTENTION}],
        "decoder": [{"cross": {"num_heads": 4}}],
        **changes,
    }
    with pytest.raises(ValueError, match=message):
        Seq2SeqOptions.model_validate(values)


def test_a_mixer_that_goes_one_way_is_refused_in_an_encoder() -> None:
    options = EncoderOptions.model_validate({"dim": 16, "blocks": [{"mixer": {"type": "mamba2"}}]})
    with pytest.raises(
        SpecError, match=r"model.blocks.0.mixer.type: mamba2 goes from left to right"
    ):
        Encoder(options, DatasetInfo(vocab_size=9, context=8))
