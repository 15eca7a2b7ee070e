"""A decoder's multipliers of embeddings and logits, by formula."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.models.decoder import Decoder, DecoderOptions


def decoder(**values: Any) -> Decoder:
    torch.manual_seed(6)
    options = {"dim": 9, "blocks": [{"ffn": "relu"}], "vocab_size": 13, **values}
    return Decoder(DecoderOptions.model_validate(options), DatasetInfo(context=8)).eval()


@pytest.mark.parametrize(("scale", "factor"), [(False, 1.0), (True, 3.0), (12.5, 12.5), (7, 7.0)])
@torch.no_grad()
def test_embeddings_are_multiplied(scale: Any, factor: float) -> None:
    model, tokens = decoder(scale_embeddings=scale, logit_scale=0.3), torch.tensor([[4, 0, 12]])
    x = factor * model.embedding.weight[tokens]
    for block in model.blocks:
        x = block(x)
    assert model.norm is not None
    torch.testing.assert_close(model(tokens), 0.3 * (model.norm(x) @ model.embedding.weight.T))


@torch.no_grad()
def test_logits_are_multiplied_before_they_are_squashed() -> None:
    plain, tokens = decoder(), torch.tensor([[1, 2, 3, 4]])
    want = 2.0 * (0.3 * plain(tokens) / 2.0).tanh()
    torch.testing.assert_close(decoder(logit_scale=0.3, logit_softcap=2.0)(tokens), want)
