"""Mixers that are not attention, as layers of a look."""

from __future__ import annotations

import torch
from torch import Tensor

from bigmodel_cli.attend.layers import Found, Wanted, found_in
from bigmodel_cli.attend.look import Side
from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.models.decoder import Decoder, DecoderOptions

IDS = torch.tensor([[5, 1, 5, 2, 3, 5, 1, 4, 0, 2, 1, 5, 2, 3, 6, 6, 1]])


def decoder() -> Decoder:
    torch.manual_seed(0)
    mamba = {"type": "mamba2", "head_dim": 4, "state": 3}
    attention = {"type": "attention", "num_heads": 2}
    mixers = [
        mamba,
        {"type": "gated_deltanet", "num_heads": 2},
        {"type": "parallel", "mixers": [attention, mamba], "scales": [1.0, 0.5]},
        {"type": "convolution"},
        {"type": "retention", "num_heads": 2},
    ]
    blocks = [{"mixer": mixer} for mixer in mixers]
    options = DecoderOptions.model_validate({"dim": 8, "blocks": blocks})
    return Decoder(options, DatasetInfo(vocab_size=7, context=32)).double().eval()


def looked(model: Decoder, **wanted: object) -> Found:
    side = Side("text", [str(i) for i in IDS[0].tolist()], IDS[0].tolist())
    with torch.no_grad():
        return found_in(
            model, lambda: model(IDS), lambda name, call: (side, side), Wanted(**wanted)
        )


def test_each_mixer_is_a_layer_in_the_order_of_the_forward_pass() -> None:
    found = looked(decoder())
    names = [layer.name for layer, _ in found.layers]
    assert names == [
        "blocks.0.mixer", "blocks.1.mixer", "blocks.2.mixer.mixers.0", "blocks.2.mixer.mixers.1",
        "blocks.3.mixer", "blocks.4.mixer",
    ]  # fmt: skip
    kinds = [(layer.kind, layer.signed, layer.heads) for layer, _ in found.layers]
    assert kinds == [
        ("mixing", True, 4), ("mixing", True, 2), ("self", False, 2), ("mixing", True, 4),
        ("mixing", True, 1), ("mixing", True, 2),
    ]  # fmt: skip
    assert all(layer.difference < 1e-12 for layer, _ in found.layers)


def test_watching_changes_no_output_and_ends() -> None:
    model = decoder()
    with torch.no_grad():
        plain = model(IDS)
    assert torch.equal(looked(model).output, plain)
    assert model.blocks[0].mixer.mixing_watcher is None


def test_figures_are_shares_of_absolute_weights() -> None:
    """Against the dense matrix, from the model's derivative of the mixer's output by values."""
    model = decoder()
    layer = looked(model, query=9, key=2, top=2).layers[0][0]
    weights = layer.blocks.most.nan_to_num().double()  # (H, T, T)
    length = weights.shape[1]
    assert bool((weights < 0).any())
    share = weights.abs() / weights.abs().sum(-1, keepdim=True)
    place = torch.arange(length)
    back = (place[:, None] - place[None]).double()
    own, previous = share.diagonal(0, 1, 2).mean(-1), share.diagonal(-1, 1, 2).sum(-1)
    assert close(layer.statistics.own, own)
    assert close(layer.statistics.previous, previous / (length - 1))
    assert close(layer.statistics.distance, (share * back.abs()).sum(-1).mean(-1))
    assert close(layer.statistics.sink, share[:, :, 0].mean(-1))
    assert close(layer.read, weights[:, 9])
    assert close(layer.readers, weights[:, :, 2])
    assert torch.isnan(layer.blocks.most[:, 0, 1:]).all()
    assert layer.moved is None
    chosen = weights[:, 9].gather(-1, layer.top[0][:, 9])
    assert close(layer.top[1][:, 9], chosen)
    assert close(chosen.abs().amax(-1), weights[:, 9].abs().amax(-1))


def close(got: Tensor, want: Tensor) -> bool:
    return torch.allclose(got.double(), want, atol=1e-5)


def test_a_sample_of_queries_has_intervals() -> None:
    layer = looked(decoder(), rows=6).layers[1][0]
    assert layer.sampled is not None
    assert len(layer.sampled) == 6
    assert set(layer.statistics.half) >= {"own", "previous", "distance"}
