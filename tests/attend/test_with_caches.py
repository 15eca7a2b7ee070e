"""A look while a model generates: each step's weights are the rows of the whole text's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bigmodel_cli.attend.capture import watch
from bigmodel_cli.attend.layers import row_of, sizes_of
from bigmodel_cli.attend.stream import Stream
from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.models.decoder import Decoder, DecoderOptions
from bigmodel_cli.parts.contract import Attends
from bigmodel_cli.parts.watched import AttentionCall

LENGTH, FIRST = 22, 18
MIXERS: dict[str, dict[str, Any]] = {
    "grouped": {"type": "attention", "num_heads": 6, "kv_heads": 2},
    "window": {"type": "attention", "num_heads": 3, "window": 5},
    "sinks and rotary": {
        "type": "attention", "num_heads": 3, "sinks": True, "position": {"type": "rotary"},
    },
    "alibi": {"type": "attention", "num_heads": 3, "position": {"type": "alibi"}},
    "latent": {"type": "mla", "num_heads": 3, "kv_rank": 14, "rotary_dim": 4, "value_dim": 7},
    "latent of the values' width": {
        "type": "mla", "num_heads": 3, "kv_rank": 9, "rotary_dim": 4, "value_dim": 9,
    },
    "differential": {"type": "differential", "num_heads": 3},
}  # fmt: skip


@pytest.mark.parametrize("name", MIXERS)
def test_steps_with_a_cache_show_what_the_whole_text_does(name: str) -> None:
    torch.manual_seed(3)
    blocks = [{"repeat": 2, "mixer": MIXERS[name], "ffn": "gelu"}]
    values = {"dim": 36, "vocab_size": 31, "blocks": blocks}
    model = Decoder(DecoderOptions.model_validate(values), DatasetInfo(context=40)).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    tokens = torch.randint(31, (1, LENGTH))
    rows, sizes = dict[str, list[Tensor]](), dict[str, Tensor]()

    def each(name: str, part: Attends, call: AttentionCall) -> None:
        stream = Stream(call)
        rows.setdefault(name, []).extend(row_of(stream, i) for i in range(stream.queries))
        lengths = sizes_of(part, call)
        if lengths is not None:
            sizes[name] = lengths

    with torch.inference_mode(), watch(model, each):
        model(tokens)
        want, wanted = dict(rows), dict(sizes)
        rows.clear()
        cache = model.new_cache(1, LENGTH)
        model(tokens[:, :FIRST], cache)
        for place in range(FIRST, LENGTH):
            model(tokens[:, place : place + 1], cache)
    assert len(want) == 2
    assert set(sizes) == (set() if name == "differential" else set(want))
    for part, found in rows.items():
        assert len(found) == LENGTH
        for place, (one, all_) in enumerate(zip(found, want[part], strict=True)):
            end = min(LENGTH, place + 1)
            own = one[:, -min(one.shape[1], end) :] if place >= FIRST else one[:, :end]
            torch.testing.assert_close(own, all_[:, end - own.shape[1] : end], atol=1e-5, rtol=0)
            assert bool((all_[:, : end - own.shape[1]] == 0).all())
    for part, lengths in sizes.items():
        keys = lengths.shape[1]
        torch.testing.assert_close(lengths, wanted[part][:, -keys:], atol=1e-5, rtol=1e-4)
