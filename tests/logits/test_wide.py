"""Scores of single texts in bf16: logits are in fp32, and neighbours change little."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from bigmodel_cli.generation.beam import Beam, beam_search
from bigmodel_cli.logits import logits_of, wide


def head(stored: torch.dtype, bias: bool) -> tuple[nn.Linear, torch.Tensor, torch.Tensor]:
    """A head, hidden states that bf16 holds exactly, and their logits in float64."""
    torch.manual_seed(3)
    layer = nn.Linear(72, 301, bias=bias)
    with torch.no_grad():
        layer.weight.copy_(layer.weight.bfloat16() * 8)
    hidden = torch.randn(7, 5, 72).bfloat16()
    exact = hidden.double() @ layer.weight.detach().double().T
    if layer.bias is not None:
        layer.bias.data = layer.bias.data.bfloat16().float()
        exact += layer.bias.detach().double()
    return layer.to(stored), hidden, exact


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_logits_that_are_scored_are_as_good_as_in_fp32(stored: torch.dtype, bias: bool) -> None:
    layer, hidden, exact = head(stored, bias)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        plain = logits_of(hidden, layer, 301)
        with wide():
            found = logits_of(hidden, layer, 301)
            alone = logits_of(hidden[2:3, 4:], layer, 301)
    assert plain.dtype == torch.bfloat16
    assert float((plain - exact).abs().max()) > 0.02
    assert found.dtype == torch.float32
    assert found.shape == (7, 5, 301)
    assert float((found - exact).abs().max()) < 1e-3
    torch.testing.assert_close(alone[0, 0], found[2, 4], atol=1e-3, rtol=0)


def test_what_is_learnt_or_watched_stays_the_head_s_own_product() -> None:
    layer, hidden, _ = head(torch.float32, True)
    with torch.autocast("cpu", torch.bfloat16), wide():
        assert logits_of(hidden, layer, 301).dtype == torch.bfloat16
        with torch.no_grad():
            layer.register_forward_hook(lambda m, args, y: torch.zeros_like(y))
            assert not logits_of(hidden, layer, 301).any()


class Kept:
    """A cache of nothing."""

    length = 0

    def select(self, rows: torch.Tensor, memory: torch.Tensor | None = None) -> None:
        """Nothing depends on rows."""


@dataclass
class Bigram:
    """Logits of the next token from the last alone."""

    table: torch.Tensor
    layer: nn.Linear
    limit: int = 40

    def eval(self) -> None:
        """Nothing to do."""

    def new_cache(self, batch: int, max_len: int | None = None) -> Kept:
        return Kept()

    def __call__(self, tokens: Any, cache: Any, segments: Any = None, last: bool = True) -> Any:
        return logits_of(self.table[tokens][:, -1:], self.layer, self.layer.out_features)


@pytest.mark.parametrize("width", [1, 3])
def test_a_search_in_bf16_sums_what_float64_gives(width: int) -> None:
    layer, _, _ = head(torch.float32, False)
    torch.manual_seed(8)
    table = torch.randn(301, 72).bfloat16()
    logs = (table.double() @ layer.weight.detach().double().T).log_softmax(-1)
    prompt = torch.tensor([[11], [250], [3], [77], [140]])
    model: Any = Bigram(table, layer)
    with torch.autocast("cpu", torch.bfloat16):
        found = beam_search(model, prompt, Beam(width), max_new_tokens=12, stop={0})
        alone = beam_search(model, prompt[1:2], Beam(width), max_new_tokens=12, stop={0})
    for start, row in zip(prompt[:, 0].tolist(), found, strict=True):
        whole = [start, *row[0].tokens, *([0] if row[0].ended else [])]
        exact = sum(float(logs[a, b]) for a, b in pairwise(whole))
        assert row[0].log_probability == pytest.approx(exact, abs=5e-3)
    assert alone[0][0].tokens == found[1][0].tokens
    assert alone[0][0].log_probability == pytest.approx(found[1][0].log_probability, abs=5e-3)
