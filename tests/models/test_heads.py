"""What an encoder ends in: the layer before labels, dropout, and the token that hides others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.errors import OptionError
from bigmodel_cli.models import any_encoder
from bigmodel_cli.models.encoder import Encoder, EncoderOptions

LABELS = DatasetInfo(vocab_size=11, context=5, classes=("a", "b", "c"))
TAGS = DatasetInfo(vocab_size=11, context=5, classes=("a", "b", "c"), tagged=True)
TOKENS = DatasetInfo(vocab_size=11, context=5)


def build(info: DatasetInfo, **more: Any) -> Encoder:
    torch.manual_seed(0)
    values = {"dim": 6, "blocks": [{"ffn": {"type": "gelu", "hidden": 4}}], "dropout": 0.1, **more}
    return Encoder(EncoderOptions.model_validate(values), info)


@pytest.mark.parametrize(
    ("info", "options", "want"),
    [
        (LABELS, {"pooler": True}, [0.1, 0.0, 0.1]),
        (LABELS, {"pooler": {"dropout": 0.3}, "head_dropout": 0.2}, [0.1, 0.3, 0.2]),
        (LABELS, {"head_dropout": 0.0}, [0.1, 0.0]),
        (TAGS, {"pooler": True}, [0.1, 0.0]),  # as it was before head_dropout
        (TAGS, {"pooler": True, "head_dropout": 0.2}, [0.1, 0.2]),
        (TAGS, {"pooler": {"dropout": 0.3, "tags": True}, "head_dropout": 0.2}, [0.1, 0.3, 0.2]),
    ],
)
def test_what_is_dropped_before_labels(
    info: DatasetInfo, options: dict[str, Any], want: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []

    def dropout(x: Tensor, p: float, training: bool) -> Tensor:
        assert training
        seen.append(p)
        return x

    monkeypatch.setattr(any_encoder, "dropout", dropout)
    build(info, **options).train()(torch.randint(11, (2, 4)))
    assert seen == want


@pytest.mark.parametrize("activation", ["tanh", "relu", "gelu"])
@pytest.mark.parametrize("info", [LABELS, TAGS])
def test_the_layer_before_labels_is_its_formula(activation: str, info: DatasetInfo) -> None:
    pooler = {"activation": activation, "bias": False, "tags": True}
    pooler["norm"] = {"type": "rmsnorm", "eps": 0.1}
    model = build(info, pooler=pooler, pool="mean").eval()
    tokens = torch.tensor([[3, 1, 4, -1], [5, 9, -1, -1]])
    x = model.features(tokens)
    if info is LABELS:
        x = torch.stack((x[0, :3].mean(0), x[1, :2].mean(0)))
    y = x @ model.pooler.weight.T
    if activation == "gelu":
        y = y * (1 + torch.erf(y / 2**0.5)) / 2
    else:
        y = y.tanh() if activation == "tanh" else y.clamp(min=0)
    assert model.pooler_norm is not None
    y = y / (y.square().mean(-1, keepdim=True) + 0.1).sqrt() * model.pooler_norm.weight
    want = y @ model.head.weight.T + model.head.bias  # type: ignore[union-attr, operator]
    torch.testing.assert_close(model(tokens), want)


def test_a_token_hides_others() -> None:
    own = build(TOKENS, mask_token=7).eval()
    assert own.mask is None
    tokens, masked = torch.randint(7, (2, 5)), torch.rand(2, 5) < 0.5
    want = own(torch.where(masked, 7, tokens))
    torch.testing.assert_close(own(tokens, masked=masked), want)
    with pytest.raises(OptionError, match=r"model.mask_token: 11 is not one of 11 tokens"):
        build(TOKENS, mask_token=11)


def test_the_head_of_tokens_without_a_bias() -> None:
    model = build(TOKENS, head_bias=False)
    assert "head.dense.bias" not in dict(model.named_parameters())
    assert "head.logits.bias" in dict(model.named_parameters())
