"""Graphs of every kind of network: onnxruntime gives what the model gives of each row alone, at
sizes that it was not recorded at.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.errors import SpecError
from bigmodel_cli.export.graphs import graphs_of
from bigmodel_cli.export.recording import difference, record
from bigmodel_cli.export.source import Source
from bigmodel_cli.lazy import load_torch
from bigmodel_cli.models.cnn import CNNOptions
from bigmodel_cli.models.decoder import DecoderOptions
from bigmodel_cli.models.encoder import EncoderOptions
from bigmodel_cli.models.seq2seq import Seq2SeqOptions
from bigmodel_cli.models.torchvision import TorchvisionOptions
from bigmodel_cli.models.vit import ViTOptions
from bigmodel_cli.parts.contract import grow_tables

pytestmark = pytest.mark.no_cover
load_torch()
ROTARY = {"type": "attention", "num_heads": 4, "kv_heads": 2, "position": {"type": "rotary"}}
PLAIN = {"type": "attention", "num_heads": 2}
FFN = {"type": "swiglu", "hidden": 24}
TOKENS = DatasetInfo(vocab_size=31, context=96)


def slow(*names: str) -> list[Any]:
    """Further cases, which the whole suite leaves out."""
    return [pytest.param(name, marks=pytest.mark.slow) for name in names]


def source(options: Any, info: DatasetInfo, headless: bool = False) -> Source:
    """A checkpoint of a network with random weights, none of them at a special start."""
    torch.manual_seed(0)
    model = options.build(info).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.1)
    grow_tables(model, model.max_len)
    spec: Any = SimpleNamespace(model=options)
    return Source(Path("none"), spec, info, model, {}, 0, "", headless, "", {})


def sessions(given: Source, folder: Path) -> dict[str, Any]:
    """Each graph in onnxruntime, compared by the export's own check too."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    library = pytest.importorskip("onnxruntime")
    found = {}
    for graph in graphs_of(given):
        record(graph, folder)
        checked = difference(graph, folder)
        assert checked is not None
        assert checked < 1e-5
        options = library.SessionOptions()
        options.intra_op_num_threads = 1
        found[graph.file] = library.InferenceSession(str(folder / graph.file), options)
    return found


def run(session: Any, **given: torch.Tensor) -> dict[str, torch.Tensor]:
    names = [one.name for one in session.get_outputs()]
    outputs = session.run(names, {name: t.numpy() for name, t in given.items()})
    return dict(zip(names, map(torch.from_numpy, outputs), strict=True))


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


def encoder(**options: Any) -> EncoderOptions:
    values = {"dim": 16, "blocks": [{"mixer": PLAIN, "ffn": FFN}], **options}
    return EncoderOptions.model_validate(values)


IMAGES = {
    "cnn": (
        CNNOptions.model_validate(
            {
                "layers": [
                    {"type": "conv", "channels": 4, "norm": "batch"},
                    {"type": "residual", "layers": [{"type": "conv", "channels": 4, "padding": 1}]},
                    {"type": "pool"},
                    {"type": "flatten"},
                    {"type": "dense", "units": "classes"},
                ]
            }
        ),
        (1, 12, 10),
    ),
    "vit": (
        ViTOptions.model_validate(
            {"dim": 16, "patch": 4, "registers": 2, "blocks": [{"mixer": PLAIN, "ffn": FFN}]}
        ),
        (3, 12, 8),
    ),
    "torchvision": (TorchvisionOptions(name="squeezenet1_1"), (3, 48, 48)),
}


@pytest.mark.parametrize("name", ["cnn", *slow("vit", "torchvision")])
def test_images(name: str, tmp_path: Path) -> None:
    options, shape = IMAGES[name]
    given = source(options, DatasetInfo(image_shape=shape, classes=("a", "b", "c")))
    session = sessions(given, tmp_path)["model.onnx"]
    images = torch.randn(5, *shape)
    close(run(session, pixel_values=images)["logits"], given.model(images))


TEXTS: dict[str, tuple[EncoderOptions, DatasetInfo]] = {
    "masked_lm": (encoder(position={"type": "learned"}, token_types=2), TOKENS),
    "classes": (
        encoder(pool="mean", blocks=[{"mixer": {**PLAIN, "position": {"type": "t5"}}}]),
        DatasetInfo(vocab_size=31, context=40, classes=("a", "b", "c")),
    ),
    "numbers": (
        encoder(pooler=True, blocks=[{"mixer": ROTARY, "ffn": FFN}]),
        DatasetInfo(
            vocab_size=31, context=40, targets=("x", "y"), target_mean=(5.0, -2.0),
            target_std=(3.0, 0.5),
        ),
    ),
    "tags": (
        encoder(blocks=[{"mixer": {**PLAIN, "window": 3}}], position={"type": "sinusoidal"}),
        DatasetInfo(vocab_size=31, context=40, classes=("a", "b"), tagged=True),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ["masked_lm", *slow("classes", "numbers", "tags")])
def test_texts(name: str, tmp_path: Path) -> None:
    options, info = TEXTS[name]
    given = source(options, info)
    session = sessions(given, tmp_path)["model.onnx"]
    tokens, mask = torch.randint(31, (3, 13)), torch.ones(3, 13, dtype=torch.int64)
    mask[1, 4:] = mask[2, 1:] = 0
    inputs = {"input_ids": tokens, "attention_mask": mask}
    types = torch.randint(2, (3, 13))
    named = options.token_types > 1
    outputs = run(session, **inputs, **({"token_type_ids": types} if named else {}))["logits"]
    for row, length in enumerate((13, 4, 1)):
        expected = given.model(
            tokens[row : row + 1, :length], types[row : row + 1, :length] if named else None
        )
        if info.targets:
            expected = expected * torch.tensor([3.0, 0.5]) + torch.tensor([5.0, -2.0])
        one = outputs[row : row + 1]
        close(one if expected.dim() == 2 else one[:, :length], expected)


def test_vectors_of_texts(tmp_path: Path) -> None:
    given = source(encoder(pool="mean"), TOKENS, headless=True)
    session = sessions(given, tmp_path)["model.onnx"]
    tokens, mask = torch.randint(31, (2, 9)), torch.ones(2, 9, dtype=torch.int64)
    mask[1, 5:] = 0
    outputs = run(session, input_ids=tokens, attention_mask=mask)
    close(outputs["sentence_embedding"][1:], given.model.row_vectors(tokens[1:, :5]))
    assert outputs["last_hidden_state"].shape == (2, 9, 16)


@pytest.mark.parametrize("spelling", slow("characters", ""))
def test_sounds(spelling: Any, tmp_path: Path) -> None:
    info = DatasetInfo(frame_width=6, context=64, classes=("a", "b"), spelling=spelling)
    options = encoder(
        frontend={"type": "conv", "stride": 4}, pool="mean", blocks=[{"mixer": ROTARY}]
    )
    given = source(options, info)
    session = sessions(given, tmp_path)["model.onnx"]
    frames, mask = torch.randn(2, 30, 6), torch.ones(2, 30, dtype=torch.int64)
    mask[1, 17:] = 0
    outputs = run(session, input_features=frames, attention_mask=mask)["logits"]
    for row, length in enumerate((30, 17)):
        expected = given.model(frames[row : row + 1, :length])
        one = outputs[row : row + 1]
        close(one[:, : -(-length // 4)] if spelling else one, expected)


DECODERS: dict[str, dict[str, Any]] = {
    "attention": {"blocks": [{"mixer": {**ROTARY, "window": 9, "sinks": True}, "ffn": FFN}]},
    "mixers": {
        "position": {"type": "learned"},
        "blocks": [
            {"mixer": {"type": "gated_deltanet", "num_heads": 2}},
            {"mixer": {"type": "mla", "num_heads": 2, "kv_rank": 6, "rotary_dim": 4}},
            {
                "mixer": {"type": "convolution"},
                "ffn": {"type": "moe", "experts": 4, "hidden": 8, "shared": 1},
            },
            {"mixer": {"type": "differential", "num_heads": 2}},
        ],
    },
    "parallel": {
        "blocks": [
            {
                "mixer": {
                    "type": "parallel",
                    "mixers": [
                        {**PLAIN, "position": {"type": "alibi"}},
                        {"type": "mamba2", "state": 4, "head_dim": 8},
                    ],
                }
            },
            {"mixer": {"type": "retention", "num_heads": 2}},
        ]
    },
}


def empty(session: Any, rows: int) -> dict[str, torch.Tensor]:
    sizes = {"batch_size": rows, "past_sequence_length": 0}
    return {
        one.name: torch.zeros([sizes.get(n, n) for n in one.shape])
        for one in session.get_inputs()
        if one.name.startswith("past")
    }


@pytest.mark.parametrize("name", ["attention", *slow("mixers", "parallel")])
def test_a_decoder_continues_rows_of_several_lengths_as_each_alone(
    name: str, tmp_path: Path
) -> None:
    given = source(DecoderOptions.model_validate({"dim": 16, **DECODERS[name]}), TOKENS)
    session = sessions(given, tmp_path)["model.onnx"]
    prompts = [torch.randint(31, (1, n)) for n in (11, 4, 1)]
    real = torch.tensor([[0] * (11 - p.shape[1]) + [1] * p.shape[1] for p in prompts])
    new = torch.cat([torch.nn.functional.pad(p, (11 - p.shape[1], 0)) for p in prompts])
    states, written = empty(session, 3), list[torch.Tensor]()
    for _ in range(64):
        outputs = run(session, input_ids=new, attention_mask=real, **states)
        new = outputs.pop("logits")[:, -1].argmax(-1, keepdim=True)
        written.append(new)
        states = dict(zip(states, outputs.values(), strict=True))
        real = torch.cat((real, torch.ones_like(real[:, :1])), 1)
    for row, prompt in enumerate(prompts):  # the model without a cache
        for step in range(64):
            logits = given.model(prompt)[0, -1]
            prompt = torch.cat((prompt, logits.argmax().view(1, 1)), 1)
            assert int(written[step][row]) == int(prompt[0, -1]), (row, step)


def test_an_encoder_decoder_in_three_graphs(tmp_path: Path) -> None:
    options = Seq2SeqOptions.model_validate(
        {
            "dim": 16,
            "encoder": [{"mixer": PLAIN, "ffn": FFN}],
            "decoder": [{"mixer": PLAIN, "cross": {"num_heads": 2, "kv_heads": 1}, "ffn": FFN}],
        }
    )
    given = source(options, TOKENS)
    found = sessions(given, tmp_path)
    tokens, mask = torch.randint(31, (2, 9)), torch.ones(2, 9, dtype=torch.int64)
    mask[1, 3:] = 0
    memory = run(found["encoder_model.onnx"], input_ids=tokens, attention_mask=mask)
    read = {
        "encoder_hidden_states": memory["last_hidden_state"],
        "encoder_attention_mask": mask,
    }
    new = torch.tensor([[1], [1]])
    empty = {**read, "encoder_attention_mask": mask * torch.tensor([[1], [0]])}
    filled = run(found["decoder_model.onnx"], input_ids=new, **empty)
    assert all(bool(t.isfinite().all()) for t in filled.values())  # a row of padding alone
    outputs = run(found["decoder_model.onnx"], input_ids=new, **read)
    close(filled["logits"][:1], outputs["logits"][:1])
    states = {n.replace("present", "past_key_values"): t for n, t in outputs.items() if "." in n}
    del read["encoder_hidden_states"]
    target = new
    for _ in range(64):
        for row, length in enumerate((9, 3)):
            expected = given.model(tokens[row : row + 1, :length], target[row : row + 1])
            close(outputs["logits"][row : row + 1], expected[:, -1:])
        new = outputs["logits"].argmax(-1)
        target = torch.cat((target, new), 1)
        outputs = run(found["decoder_with_past_model.onnx"], input_ids=new, **read, **states)
        states |= {
            n.replace("present", "past_key_values"): t for n, t in outputs.items() if "." in n
        }


@pytest.mark.slow
def test_an_encoder_of_sound_and_a_decoder_of_text(tmp_path: Path) -> None:
    info = DatasetInfo(frame_width=6, context=40, vocab_size=31, text_context=12)
    options = Seq2SeqOptions.model_validate(
        {
            "dim": 16,
            "frontend": {"type": "conv", "stride": 2},
            "encoder": [{"mixer": PLAIN, "ffn": FFN}],
            "decoder": [{"mixer": PLAIN, "cross": {"num_heads": 2}, "ffn": FFN}],
        }
    )
    given = source(options, info)
    found = sessions(given, tmp_path)
    frames, mask = torch.randn(2, 21, 6), torch.ones(2, 21, dtype=torch.int64)
    mask[1, 8:] = 0
    memory = run(found["encoder_model.onnx"], input_features=frames, attention_mask=mask)
    read = {
        "encoder_hidden_states": memory["last_hidden_state"],
        "encoder_attention_mask": memory["encoder_attention_mask"],
    }
    target = torch.randint(31, (2, 7))
    logits = run(found["decoder_model.onnx"], input_ids=target, **read)["logits"]
    for row, length in enumerate((21, 8)):
        expected = given.model(frames[row : row + 1, :length], target[row : row + 1])
        close(logits[row : row + 1], expected)


def test_a_cache_that_is_not_tensors_is_refused_by_its_part(tmp_path: Path) -> None:
    given = source(DecoderOptions.model_validate({"dim": 16, **DECODERS["attention"]}), TOKENS)

    class Own(torch.nn.Module):
        def new_cache(self, batch: int, max_len: int) -> list[Any]:
            return []

    given.model.get_submodule("blocks.0").mixer = Own()  # type: ignore[union-attr]
    with pytest.raises(SpecError, match=r"^model\.blocks\.0\.mixer: Own does not say which tensor"):
        graphs_of(given)


def test_a_wrong_graph_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    options, shape = IMAGES["cnn"]
    given = source(options, DatasetInfo(image_shape=shape, classes=("a", "b", "c")))
    (graph,) = graphs_of(given)
    record(graph, tmp_path)
    content = (tmp_path / "model.onnx").read_bytes()  # which says nothing of this machine
    assert str(Path(np.__file__).parents[1]).encode() not in content
    assert str(Path(__file__).parents[2]).encode() not in content
    next(given.model.parameters()).mul_(1.1)
    with pytest.raises(SpecError, match=r"gives other numbers in onnxruntime .* nothing is"):
        difference(graph, tmp_path)


def test_a_way_that_depends_on_numbers_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    options, shape = IMAGES["cnn"]
    given = source(options, DatasetInfo(image_shape=shape, classes=("a", "b", "c")))
    (graph,) = graphs_of(given)
    graph.model.register_forward_hook(lambda m, i, y: y if float(y.sum()) > 0 else -y)
    with pytest.raises(SpecError, match=r"^--to onnx: model\.onnx cannot be recorded as a graph"):
        record(graph, tmp_path)
