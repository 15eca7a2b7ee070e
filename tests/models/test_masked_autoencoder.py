"""The masked autoencoder against transformers' ViTMAE with the same weights and the same hidden
patches.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from conftest import loss_of
from torch import Tensor, nn
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.data.order import keys_of
from bigmodel_cli.draw import KEY
from bigmodel_cli.errors import SpecError
from bigmodel_cli.models.vit import ViT, ViTOptions
from bigmodel_cli.parts.grid import sines_of_grid
from bigmodel_cli.tasks.masked_image import MaskedImageOptions

LAYERNORM = {"type": "layernorm", "eps": 1e-12}
FACTS = DatasetInfo(image_shape=(3, 16, 16))


def blocks(heads: int, hidden: int, count: int = 2) -> list[dict[str, Any]]:
    """Blocks as ViTMAE's."""
    mixer = {"type": "attention", "num_heads": heads}
    return [
        {
            "repeat": count,
            "mixer": mixer,
            "ffn": {"type": "gelu", "hidden": hidden},
            "norm": LAYERNORM,
        }
    ]


def options(**changes: Any) -> ViTOptions:
    """A small autoencoder."""
    decoder = {"dim": 12, "blocks": blocks(3, 20, 1), "norm": LAYERNORM}
    values = {
        "dim": 16,
        "patch": 4,
        "blocks": blocks(4, 24),
        "norm": LAYERNORM,
        "position": "sines",
    }
    return ViTOptions.model_validate({**values, "reconstruct": decoder, **changes})


def layers(theirs: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    """Our names for the weights of their blocks; names are prefixes."""
    state: dict[str, Tensor] = {}
    inner = {
        "mixer.out": "attention.o_proj", "mixer_norm": "layernorm_before",
        "ffn_norm": "layernorm_after",
        "ffn.up": "mlp.fc1", "ffn.down": "mlp.fc2",
    }  # fmt: skip
    for ours, other in names.items():
        for kind in ("weight", "bias"):
            qkv = [theirs[f"{other}.attention.{n}_proj.{kind}"] for n in "qkv"]
            state[f"{ours}.mixer.qkv.{kind}"] = torch.cat(qkv)
            state |= {f"{ours}.{a}.{kind}": theirs[f"{other}.{b}.{kind}"] for a, b in inner.items()}
    return state


def pair(normalize: bool) -> tuple[ViT, Any]:
    """Ours and theirs, every weight but the positions drawn anew."""
    config = ViTMAEConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24,
        image_size=16, patch_size=4,
        decoder_hidden_size=12, decoder_num_hidden_layers=1, decoder_num_attention_heads=3,
        decoder_intermediate_size=20,
        mask_ratio=0.75, norm_pix_loss=normalize, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    theirs = ViTMAEForPreTraining(config).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            if "pos" not in name:
                p.normal_(1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.2)
    weights = theirs.state_dict()
    whole = {
        "patches": "vit.embeddings.patch_embeddings.projection", "norm": "vit.layernorm",
        "decoder.enter": "decoder.decoder_embed", "decoder.norm": "decoder.decoder_norm",
        "decoder.pixels": "decoder.decoder_pred",
    }  # fmt: skip
    state = {
        f"{a}.{kind}": weights[f"{b}.{kind}"]
        for a, b in whole.items()
        for kind in ("weight", "bias")
    }
    state |= {
        "cls": weights["vit.embeddings.cls_token"],
        "decoder.mask": weights["decoder.mask_token"].flatten(),
    }
    named = {f"blocks.{i}": f"vit.layers.{i}" for i in range(2)} | {
        "decoder.blocks.0": "decoder.decoder_layers.0"
    }
    ours = ViT(options(), FACTS).eval()
    ours.load_state_dict(state | layers(weights, named))
    with torch.no_grad():  # some versions of theirs leave the positions at zero
        theirs.vit.embeddings.position_embeddings.copy_(ours.table)
        theirs.decoder.decoder_pos_embed.copy_(ours.decoder.table)
    return ours, theirs


def test_positions_are_sines_and_cosines_of_column_and_row() -> None:
    table = sines_of_grid((3, 5), 8, first=1)
    assert table.shape == (1 + 15, 8)
    assert not table[0].any()
    for row in range(3):
        for column in range(5):
            x, y = column / 100.0, row / 100.0  # the slower of two rates is 10000^(-1/2)
            want = [math.sin(column), math.sin(x), math.cos(column), math.cos(x)]
            want += [math.sin(row), math.sin(y), math.cos(row), math.cos(y)]
            torch.testing.assert_close(table[1 + 5 * row + column], torch.tensor(want))


@pytest.mark.parametrize("normalize", [True, False])
def test_equals_vitmae_of_transformers(normalize: bool) -> None:
    ours, theirs = pair(normalize)
    images, keys = torch.randn(5, 3, 16, 16), keys_of(7, 1, np.arange(5))
    task = MaskedImageOptions(normalize=normalize).build()
    pixels, logits, hidden = task.forward(ours, {"image": images, KEY: keys})
    mask = torch.zeros(5, 16).scatter(1, hidden, 1.0)
    want = theirs(images, noise=mask)  # the patches of lowest noise are visible
    torch.testing.assert_close(mask, want.mask)
    torch.testing.assert_close(logits, want.logits, atol=1e-5, rtol=1e-5)
    errors = task.errors(pixels, logits, hidden)
    torch.testing.assert_close(errors.sum() / 5, want.loss, atol=1e-5, rtol=1e-5)
    errors.sum().backward()
    (5 * want.loss).backward()
    torch.testing.assert_close(ours.patches.weight.grad,
     theirs.vit.embeddings.patch_embeddings.projection.weight.grad,
                               atol=1e-4, rtol=1e-4)  # fmt: skip
    torch.testing.assert_close(
        ours.decoder.mask.grad, theirs.decoder.mask_token.grad.flatten(), atol=1e-4, rtol=1e-4
    )


def test_the_encoder_sees_the_visible_patches_alone() -> None:
    torch.manual_seed(0)
    model = ViT(options(registers=2), FACTS).eval()
    lengths: list[int] = []
    model.blocks[0].register_forward_hook(
        lambda module, inputs, output: lengths.append(output.shape[1])
    )
    images, visible = torch.randn(2, 3, 16, 16), torch.tensor([[0, 5, 6, 15], [1, 2, 3, 9]])
    with torch.no_grad():
        before = model(images, visible)
        pixels = model.patchify(images)
        seen = torch.zeros(2, 16, dtype=torch.bool).scatter(1, visible, True)
        other = model.unpatchify(torch.where(seen[..., None], pixels, torch.randn_like(pixels)))
        torch.testing.assert_close(model(other, visible), before)
        turned = visible.flip(1)
        # each at its own place
        torch.testing.assert_close(model(images, turned), before, atol=1e-5, rtol=1e-5)
    assert set(lengths) == {1 + 4 + 2}
    assert torch.equal(model.unpatchify(pixels), images)


@pytest.mark.parametrize("changes", [{}, {"pool": "mean", "registers": 1}, {"position": "learned"}])
def test_every_weight_learns(changes: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = ViT(options(**changes), FACTS).train()
    loss, count = loss_of(
        MaskedImageOptions().build(),
        model,
        {"image": torch.randn(8, 3, 16, 16), "key": torch.arange(8)},
    )
    loss.backward()
    assert int(count) == 8
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
        assert p.grad.abs().sum() > 0, name


def test_the_labelling_network_has_the_same_weights_but_the_head() -> None:
    mae = ViT(options(), FACTS)
    labels = ViT(
        options(reconstruct=None), DatasetInfo(image_shape=(3, 16, 16), classes=("a", "b"))
    )
    names, others = set(mae.state_dict()), set(labels.state_dict())
    assert {n.split(".")[0] for n in names - others} == {"decoder"}
    assert others - names == {"head.weight", "head.bias"}
    assert all(mae.state_dict()[n].shape == labels.state_dict()[n].shape for n in names & others)


@pytest.mark.parametrize(
    ("changes", "shape", "message"),
    [
        ({}, (3, 16, 18), r"model.patch: 4 does not divide the image of 16 x 18"),
        ({"dim": 18, "blocks": blocks(2, 8)}, (3, 16, 16), r"model.dim: 18 is not a multiple of 4"),
        ({"reconstruct": {"dim": 6, "blocks": blocks(2, 8)}}, (3, 16, 16),
         r"model.reconstruct.dim: 6 is not a multiple of 4"),
        ({"reconstruct": {"dim": 8, "blocks": blocks(3, 8)}}, (3, 16, 16),
         r"model.reconstruct.blocks.0.mixer.num_heads: 3 heads"),
        ({"reconstruct": None}, (3, 16, 16), r"vit labels images, and the data has no labels"),
        ({}, None, r"vit reads images, and the data has none"),
    ],
)  # fmt: skip
def test_what_cannot_be_built_is_refused(changes: dict[str, Any], shape: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        ViT(options(**changes), DatasetInfo(image_shape=shape))


def test_a_masked_autoencoder_cannot_classify() -> None:
    model: nn.Module = ViT(options(), FACTS)
    with pytest.raises(SpecError, match=r"has no head to label them; finetune it first"):
        model(torch.randn(1, 3, 16, 16))
