"""The logit lens, against what follows the blocks, written anew for each kind of model."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import Result
from torch import Tensor
from torch.nn import functional

from bigmodel_cli.attend.layers import Wanted
from bigmodel_cli.attend.lens import BEFORE, lens
from bigmodel_cli.attend.looking import look_at
from bigmodel_cli.attend.runs import prepare
from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.errors import SpecError
from bigmodel_cli.loaded import load_checkpoint
from bigmodel_cli.models.decoder import Decoder, DecoderOptions
from bigmodel_cli.models.encoder import Encoder, EncoderOptions, FrameEncoder
from bigmodel_cli.models.seq2seq import Seq2Seq, Seq2SeqOptions
from bigmodel_cli.models.vit import ViT, ViTOptions

IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2]])
ATTENTION = {"type": "attention", "num_heads": 2}
BLOCKS = [{"repeat": 3, "mixer": ATTENTION, "ffn": {"type": "swiglu", "hidden": 12}}]


def streams_of(blocks: Any, run: Any) -> list[Tensor]:
    """The first block's input and each block's output."""
    found: list[Tensor] = []
    handles = [blocks[0].register_forward_pre_hook(lambda m, given: found.append(given[0]))]
    handles += [b.register_forward_hook(lambda m, given, y: found.append(y)) for b in blocks]
    with torch.no_grad():
        run()
    for handle in handles:
        handle.remove()
    return found


def check(found: dict[str, Any], logits: list[Tensor], positions: list[int]) -> None:
    """`logits` (V) rows of each layer at each of the positions."""
    assert found["difference"] < 1e-6
    assert [layer["name"] for layer in found["layers"]] == [
        "embedding", *(f"block {n}" for n in range(len(logits) - 1))
    ]  # fmt: skip
    for layer, rows in zip(found["layers"], logits, strict=True):
        for at, place in enumerate(positions):
            p = (rows[place] - rows[place].max()).exp()
            p = p / p.sum()
            q = (logits[-1][place] - logits[-1][place].max()).exp()
            q = q / q.sum()
            order = sorted(range(len(p)), key=lambda i: -float(p[i]))
            count = len(layer["choices"][at])
            assert layer["choices"][at] == order[:count]
            assert layer["names"][at] == [f"<{i}>" for i in order[:count]]
            assert layer["probabilities"][at] == pytest.approx([float(p[i]) for i in order[:count]])
            answer = int(q.argmax())
            assert layer["answer"][at] == pytest.approx(float(p[answer]))
            assert layer["rank"][at] == order.index(answer) + 1
            kl = sum(float(b) * math.log(float(b) / float(a)) for a, b in zip(p, q, strict=True))
            assert layer["kl"][at] == pytest.approx(kl, abs=1e-5)


def named(index: int) -> str:
    return f"<{index}>"


@pytest.mark.parametrize(
    "options", [{}, {"logit_softcap": 3.0, "logit_scale": 2.0, "tie_embeddings": False}]
)
def test_decoder(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    made = DecoderOptions.model_validate({"dim": 8, "blocks": BLOCKS, **options})
    model = Decoder(made, DatasetInfo(vocab_size=11, context=16)).eval()
    model.norm.weight.data.uniform_(0.5, 2)
    streams = streams_of(model.blocks, lambda: model(IDS))
    found = lens(model.answer_layers(), lambda: model(IDS), named, top=4, positions=[-1, 2])
    logits = []
    for x in streams:
        y = functional.layer_norm(x, (8,), model.norm.weight, model.norm.bias)
        y = (y @ model.head.weight.T).detach() * options.get("logit_scale", 1.0)
        cap = options.get("logit_softcap")
        logits.append(y[0] if cap is None else cap * torch.tanh(y[0] / cap))
    assert found["positions"] == [6, 2]
    check(found, logits, [6, 2])
    with torch.no_grad():
        assert torch.allclose(model(IDS)[0], logits[-1], atol=1e-5)  # the blocks work again
    assert "forward" not in vars(model.blocks[0])


@pytest.mark.parametrize("labels", [False, True])
def test_encoder_of_tokens_and_of_a_label(labels: bool) -> None:
    torch.manual_seed(1)
    post = [{**BLOCKS[0], "placement": "post"}]
    made = EncoderOptions.model_validate(
        {"dim": 8, "blocks": post, "norm": None, "pool": "mean", "pooler": labels}
    )
    info = DatasetInfo(vocab_size=11, context=16, classes=("a", "b", "c") if labels else ())
    model = Encoder(made, info).eval()
    streams = streams_of(model.blocks, lambda: model(IDS))
    found = lens(model.answer_layers(), lambda: model(IDS), named, top=2)
    logits = []
    for x in streams:
        if labels:
            y = torch.tanh(x.mean(1) @ model.pooler.weight.T + model.pooler.bias)
            logits.append((y @ model.head.weight.T + model.head.bias).detach())
        else:
            y = functional.gelu(x[0] @ model.head.dense.weight.T + model.head.dense.bias)
            y = functional.layer_norm(y, (8,), model.head.norm.weight, model.head.norm.bias)
            logits.append((y @ model.embedding.weight.T + model.head.logits.bias).detach())
    check(found, logits, [0] if labels else list(range(7)))
    assert found["of"] == ("labels" if labels else "positions")
    assert "placement: post" in (model.answer_remark() or "")


def test_decoder_of_an_encoder_decoder() -> None:
    torch.manual_seed(2)
    made = Seq2SeqOptions.model_validate(
        {"dim": 8, "encoder": BLOCKS, "decoder": [{**BLOCKS[0], "cross": {"num_heads": 2}}]}
    )
    model = Seq2Seq(made, DatasetInfo(vocab_size=11, context=16)).eval()
    target = torch.tensor([[0, 7, 5]])
    streams = streams_of(model.decoder, lambda: model(IDS, target))
    found = lens(model.answer_layers(), lambda: model(IDS, target), named)
    check(found, [(x[0] @ model.head.weight.T).detach() for x in streams], [0, 1, 2])


def test_vision_transformer() -> None:
    torch.manual_seed(3)
    made = ViTOptions.model_validate({"dim": 8, "patch": 4, "registers": 1, "blocks": BLOCKS})
    info = DatasetInfo(image_shape=(1, 8, 8), classes=("a", "b", "c"))
    model = ViT(made, info).eval()
    torch.nn.init.normal_(model.head.weight)
    image = torch.randn(1, 1, 8, 8)
    streams = streams_of(model.blocks, lambda: model(image))
    found = lens(model.answer_layers(), lambda: model(image), named, top=3)
    cls = [
        functional.layer_norm(x[:, 0], (8,), model.norm.weight, model.norm.bias) for x in streams
    ]
    check(found, [(y @ model.head.weight.T + model.head.bias).detach() for y in cls], [0])


def test_a_network_without_a_stream_is_refused() -> None:
    with pytest.raises(SpecError, match="no residual stream"):
        lens([], lambda: torch.zeros(1, 3), named)


def test_units_of_a_recording() -> None:
    """An encoder of frames, trained by CTC: every vector's unit, the blank last."""
    torch.manual_seed(4)
    options = {"dim": 8, "blocks": BLOCKS, "frontend": {"type": "conv", "stride": 2}}
    info = DatasetInfo(frame_width=5, context=40, classes=("a", "b", "c"), spelling="characters")
    model = FrameEncoder(EncoderOptions.model_validate(options), info).eval()
    torch.nn.init.normal_(model.head.weight)
    frames, lengths = torch.randn(1, 18, 5), torch.tensor([18])
    streams = streams_of(model.blocks, lambda: model(frames, lengths))
    found = lens(model.answer_layers(), lambda: model(frames, lengths), named, top=4)
    logits = []
    for x in streams:
        y = functional.layer_norm(x[0], (8,), model.norm.weight, model.norm.bias)
        logits.append((y @ model.head.weight.T + model.head.bias).detach())
    assert logits[0].shape == (9, 4)
    check(found, logits, list(range(9)))


def test_of_a_text_in_windows_it_is_of_the_last_one(
    decoder_spec: Path, cli: Callable[..., Result]
) -> None:
    done = cli("pretrain", decoder_spec, "--set", "train.steps=3", "--out", "run")
    assert done.status == 0, done.err
    loaded = load_checkpoint(Path("run"), "cpu", tell=lambda said: None)
    text = "you need a small model " * 7
    windows = prepare(loaded, text, "x").windows
    assert len(windows) > 2
    tokens = windows[-1].batch["tokens"]
    look = look_at(loaded, text, Wanted(lens=True, query=-2))
    named = re.fullmatch(f"window {len(windows)} of {len(windows)}: “([a-z ]+)…?”", look.part)
    assert named is not None
    assert named[1] in text
    found = look.extra["lens"]
    place = tokens.shape[1] - 2
    assert found["positions"] == list(range(max(0, place - BEFORE), place + 1))
    model = loaded.model
    streams = streams_of(model.blocks, lambda: model(tokens))
    for layer, x in zip(found["layers"], streams, strict=True):
        y = functional.layer_norm(x[0], x.shape[-1:], model.norm.weight, model.norm.bias)
        best = (y @ model.head.weight.T).argmax(-1).tolist()
        assert [choices[0] for choices in layer["choices"]] == [
            best[at] for at in found["positions"]
        ]


def test_positions_are_those_of_the_target_whatever_layers_are_looked_at(
    cli: Callable[..., Result],
) -> None:
    heads = {"type": "attention", "num_heads": 2}
    block = {"mixer": heads, "ffn": {"type": "relu"}}
    Path("a.txt").write_text("a longer line of the source\n" * 40)
    Path("b.txt").write_text("short\n" * 40)
    files = {"source": ["a.txt"], "target": ["b.txt"]}
    spec = {
        "model": {"type": "seq2seq", "dim": 8, "encoder": [block],
                  "decoder": [{**block, "cross": {"num_heads": 2}}]},
        "data": {"type": "pairs", **files, "context": 40, "tokenizer": {"type": "bytes"}},
        "task": {"type": "seq2seq"}, "train": {"steps": 1, "batch_size": 4},
    }  # fmt: skip
    Path("spec.yaml").write_text(yaml.safe_dump(spec))
    done = cli("pretrain", "spec.yaml", "--out", "run", "--device", "cpu")
    assert done.status == 0, done.err
    loaded = load_checkpoint(Path("run"), "cpu", tell=lambda said: None)
    given = "a longer line"
    every, some = (
        look_at(loaded, given, Wanted(lens=True, layers=layers), target="short").extra["lens"]
        for layers in (None, [0])
    )
    assert every["tokens"][1:] == ["s", "h", "o", "r", "t"]
    assert some == every
