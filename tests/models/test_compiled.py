"""A compiled network goes the ways of the network itself, not those of a recorded graph."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch._dynamo.testing import EagerAndRecordGraphs

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.models import MODELS
from bigmodel_cli.parts import rotary
from bigmodel_cli.parts.context import recorded, recording


def decoder(length: int, **more: Any) -> Any:
    block = {"mixer": {"type": "attention", "num_heads": 2, **more}, "ffn": "gelu"}
    options = {"type": "decoder", "dim": 24, "max_len": length, "blocks": [block]}
    torch.manual_seed(5)
    return MODELS["decoder"].model_validate(options).build(DatasetInfo(vocab_size=31))


def test_attention_is_the_fused_kernel() -> None:
    model, graphs = decoder(40).train(), EagerAndRecordGraphs()
    model.compile(backend=graphs)
    model(torch.randint(31, (3, 37)))
    code = "".join(graph.code for graph in graphs.graphs)
    assert "scaled_dot_product_attention" in code
    assert "softmax" not in code


def test_only_an_export_is_a_recording() -> None:
    def told(x: torch.Tensor) -> torch.Tensor:
        return x + 1 if recorded() else x - 1

    compiled = torch.compile(told, backend="eager")
    assert float(compiled(torch.zeros(()))) == -1
    with recording():
        assert float(compiled(torch.zeros(()))) == 1
    assert float(compiled(torch.zeros(()))) == -1


def test_a_table_of_angles_grows_in_a_compiled_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rotary, "AT_ONCE", 12 * 8)
    whole = decoder(60, position={"type": "rotary"}).eval()
    assert len(whole.blocks[0].mixer.rotary.cos) == 8
    compiled = copy.deepcopy(whole)
    compiled.compile(backend="eager")
    for length in (5, 23, 60, 7):
        tokens = torch.randint(31, (2, length))
        torch.testing.assert_close(compiled(tokens), whole(tokens))
