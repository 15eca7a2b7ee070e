"""Options of norms against transformers' modules, with weights drawn anew."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextRMSNorm

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.models.decoder import Decoder, DecoderOptions
from bigmodel_cli.parts.norm import NoNormOptions, RMSNormOptions
from bigmodel_cli.roles import GAIN, named_weights


@pytest.mark.parametrize("theirs", [Gemma3RMSNorm, Qwen3NextRMSNorm])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_a_norm_with_an_offset_equals_gemmas(theirs: type[nn.Module], kind: torch.dtype) -> None:
    torch.manual_seed(1)
    ours, norm = RMSNormOptions(eps=3e-4, offset=True).build(13), theirs(13, eps=3e-4)
    assert torch.equal(ours.weight, torch.zeros(13))
    weight = 0.01 * torch.randn(13)  # in bf16, 1 + weight would lose most of its digits
    ours.weight.data, norm.weight.data = weight.to(kind), weight.to(kind)
    x = (2 * torch.randn(3, 5, 13) + 1).to(kind)
    want = norm(x)
    assert ours(x).dtype == want.dtype == kind
    torch.testing.assert_close(ours(x), want, atol=1e-6 if kind == torch.float32 else 0, rtol=0)


def test_a_norms_offset_is_neither_stored_nor_decayed() -> None:
    norm = {"type": "rmsnorm", "offset": True}
    values = {"dim": 6, "norm": norm, "blocks": [{"ffn": "gelu", "norm": norm}], "vocab_size": 7}
    model = Decoder(DecoderOptions.model_validate(values), DatasetInfo(context=4))
    found = {w.name: w for w in named_weights(model) if "norm" in w.name}
    assert found.keys() == {"blocks.0.ffn_norm.weight", "norm.weight"}
    for weight in found.values():
        assert weight.role == GAIN
        assert torch.equal(weight.tensor, torch.zeros(6))


def test_no_norm_is_nothing() -> None:
    x = torch.randn(2, 5)
    assert torch.equal(NoNormOptions().build(5)(x), x)
