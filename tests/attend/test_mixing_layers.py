"""Mixers that are not attention, as layers of a look."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bigmodel_cli.attend.layers import Found, Wanted, found_in
from bigmodel_cli.attend.look import Side
from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.errors import SpecError
from bigmodel_cli.models.decoder import Decoder, DecoderOptions
from bigmodel_cli.models.encoder import Encoder, EncoderOptions

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


@pytest.mark.parametrize("length", [2, 65, 130])  # chunks of 64 do not divide them
@pytest.mark.parametrize(
    "mixer",
    [
        {"type": "mamba2", "head_dim": 2, "state": 4, "groups": 3, "chunk": 5},
        {"type": "gated_deltanet", "num_heads": 6, "key_heads": 3, "key_dim": 2, "value_dim": 3},
        {"type": "retention", "num_heads": 3, "value_dim": 5},
    ],
    ids=lambda mixer: mixer["type"],
)
def test_a_layers_matrix_is_the_derivative_of_its_output_by_its_values(
    mixer: dict[str, Any], length: int
) -> None:
    """Unit vectors at values: the part itself, run again with values moved by one, gates held."""
    torch.manual_seed(3)
    options = DecoderOptions.model_validate({"dim": 6, "blocks": [{"mixer": mixer}]})
    model = Decoder(options, DatasetInfo(vocab_size=7, context=256)).double().eval()
    ids = torch.randint(7, (1, length))
    side = Side("text", [str(i) for i in ids[0].tolist()], ids[0].tolist())
    wanted = Wanted(dense=True, resolution=length, query=-1)
    with torch.no_grad():
        ((layer, _),) = found_in(model, lambda: model(ids), lambda *_: (side, side), wanted).layers
    calls: list[Any] = []
    model.blocks[0].mixer.mixing_watcher = calls.append
    with torch.no_grad():
        model(ids)
    (call,) = calls
    assert layer.weights is not None
    weights = layer.weights[1].double()
    assert weights.shape == (call.v.shape[1], length, length)
    for place in {0, length // 2, length - 1}:
        moved = torch.zeros_like(call.v)
        moved[:, :, place, 0] = 1.0
        got = recurrence(call, moved)[0, :, :, 0]  # linear: what one unit at `place` becomes
        assert torch.allclose(weights[:, :, place], got, atol=2e-6)
    assert layer.difference < 1e-9
    assert torch.allclose(layer.read.double(), weights[:, -1], atol=1e-6)


def recurrence(call: Any, values: Tensor) -> Tensor:
    """The state written out position by position."""
    state = torch.zeros(*call.q.shape[:2], call.q.shape[-1], values.shape[-1]).double()
    outputs = []
    for t in range(values.shape[2]):
        k, v = call.k[:, :, t], values[:, :, t]
        state = state * call.decay[:, :, t].exp()[..., None, None]
        if call.beta is not None:
            v = call.beta[:, :, t, None] * (v - torch.einsum("bhn,bhnp->bhp", k, state))
        state = state + k[..., None] * v[..., None, :]
        y = torch.einsum("bhn,bhnp->bhp", call.q[:, :, t], state)
        outputs.append(y if call.skip is None else y + call.skip[:, None] * values[:, :, t])
    return torch.stack(outputs, 2)


def test_mixers_that_look_back_alone_are_refused_where_positions_see_those_after_them() -> None:
    for name in ("mamba2", "gated_deltanet", "retention", "convolution"):
        mixer = {"type": name, **({} if name in ("mamba2", "convolution") else {"num_heads": 2})}
        options = EncoderOptions.model_validate({"dim": 8, "blocks": [{"mixer": mixer}]})
        with pytest.raises(SpecError, match="mixer"):
            Encoder(options, DatasetInfo(vocab_size=7, context=16))
