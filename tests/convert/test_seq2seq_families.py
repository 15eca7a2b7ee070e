"""Marian and T5 of transformers, in and out: logits, padding, greedy text and beams equal."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Result
from published import drawn, off, read, saved, settings, tensors, written
from torch import Tensor

from bigmodel_cli.assemble import outline
from bigmodel_cli.convert import opening
from bigmodel_cli.errors import CheckpointError, SpecError
from bigmodel_cli.generation.beam import Beam, beam_search
from bigmodel_cli.generation.excluding import Excluding
from bigmodel_cli.generation.sampling import Sampling, generate
from bigmodel_cli.spec import from_dict

transformers = pytest.importorskip("transformers")

MARIAN: dict[str, Any] = {
    "vocab_size": 37, "d_model": 24, "encoder_layers": 3, "decoder_layers": 2,
    "encoder_attention_heads": 3, "decoder_attention_heads": 4, "encoder_ffn_dim": 20,
    "decoder_ffn_dim": 28, "max_position_embeddings": 70, "pad_token_id": 36, "eos_token_id": 0,
    "decoder_start_token_id": 36, "forced_eos_token_id": None,
}  # fmt: skip
T5: dict[str, Any] = {
    "vocab_size": 41, "d_model": 20, "d_kv": 6, "d_ff": 36, "num_layers": 2,
    "num_decoder_layers": 3, "num_heads": 3, "relative_attention_num_buckets": 10,
    "relative_attention_max_distance": 17, "layer_norm_epsilon": 1e-3, "n_positions": 70,
}  # fmt: skip
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "marian, swish": ("MarianMTModel", {**MARIAN, "activation_function": "swish"}),
    "marian, scaled": (
        "MarianMTModel",
        {**MARIAN, "activation_function": "relu", "scale_embedding": True},
    ),
    "t5": ("T5ForConditionalGeneration", T5),
    "t5, gated": (
        "T5ForConditionalGeneration",
        {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    ),
    "t5, gated silu": (
        "T5ForConditionalGeneration",
        {**T5, "feed_forward_proj": "gated-silu"},
    ),
}


def published(folder: Path, name: str) -> Any:
    kind, options = FAMILIES[name]
    cls = getattr(transformers, kind)
    model = drawn(cls(cls.config_class(**options)), 0.15)
    with torch.no_grad():
        if name.startswith("marian"):
            model.final_logits_bias.normal_()
    saved(model, folder)
    return cls.from_pretrained(folder).eval()  # whose sines are not drawn


def batch(vocab: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sources, which of their places are real, targets."""
    draw = torch.Generator().manual_seed(2)
    source = torch.randint(1, vocab - 1, (3, 11), generator=draw)
    real = torch.ones(3, 11, dtype=torch.bool)
    real[1, 7:] = real[2, 2:] = False
    return source, real, torch.randint(1, vocab - 1, (3, 9), generator=draw)


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_equal_and_what_is_written_is_what_was_read(name: str, tmp_path: Path) -> None:
    theirs = published(tmp_path / "theirs", name)
    ours, _ = read(tmp_path / "theirs")
    source, real, target = batch(theirs.config.vocab_size)
    padded = source.masked_fill(~real, -1)
    out = written(tmp_path / "theirs", ours, tmp_path / "ours")
    again = type(theirs).from_pretrained(out).eval()
    inputs = {"input_ids": source, "attention_mask": real.long(), "decoder_input_ids": target}
    with torch.no_grad():
        want = theirs(**inputs).logits
        assert off(ours(padded, target), want) < 1e-5
        assert off(again(**inputs).logits, want) < 1e-6
        for row, length in enumerate((11, 7, 2)):  # padded = alone
            alone = ours(source[row : row + 1, :length], target[row : row + 1])
            assert off(alone, want[row : row + 1]) < 1e-5
        with torch.autocast("cpu", torch.bfloat16):
            assert off(ours(padded, target).float(), theirs(**inputs).logits.float()) < 2e-2
    before, after = tensors(tmp_path / "theirs"), tensors(out)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[n], after[n]) for n in after)
    assert settings(again.config) == settings(
        type(theirs).from_pretrained(tmp_path / "theirs").config
    )


@pytest.mark.parametrize("name", ["marian, swish", "t5, gated"])
def test_greedy_text_and_beams_equal(name: str, tmp_path: Path) -> None:
    theirs = published(tmp_path, name)
    ours, _ = read(tmp_path)
    source, real, _ = batch(theirs.config.vocab_size)
    config = theirs.config
    start, pad = getattr(config, "decoder_start_token_id", 0), config.pad_token_id
    shared = {
        "input_ids": source.masked_fill(~real, pad), "attention_mask": real.long(),
        "max_new_tokens": 64, "bad_words_ids": [[pad]], "forced_eos_token_id": None,
        "decoder_start_token_id": start, "eos_token_id": None, "use_cache": False,
    }  # fmt: skip
    with torch.no_grad():
        reading = Excluding(ours.generator(source.masked_fill(~real, -1)), [pad])
    prompt = torch.full((3, 1), start)
    want = theirs.generate(**shared, num_beams=1, do_sample=False)[:, 1:]
    steps = generate(reading, prompt, Sampling(temperature=0.0), max_new_tokens=64)
    got = torch.stack(list(steps), 1)
    assert got.shape == (3, 64)
    assert torch.equal(got, want)
    assert not (got == pad).any()
    # of the sums alone, which transformers normalises otherwise, by length and without a token
    beams = {"num_beams": 4, "do_sample": False, "length_penalty": 0.0, "max_new_tokens": 9}
    want = theirs.generate(**{**shared, **beams, "bad_words_ids": None})[:, 1:]
    found = beam_search(reading.model, prompt, Beam(4, 0.0), max_new_tokens=9, stop=None)
    assert [row[0].tokens for row in found] == want.tolist()


def test_a_second_copy_of_tied_weights_must_be_equal(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    published(tmp_path, "t5")
    path = tmp_path / "model.safetensors"
    weights = tensors(tmp_path)
    save_file({**weights, "lm_head.weight": weights["shared.weight"].clone()}, path)
    read(tmp_path)
    save_file({**weights, "lm_head.weight": weights["shared.weight"] + 1}, path)
    with pytest.raises(CheckpointError, match=r"lm_head.weight is not shared.weight"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("marian, swish", {"share_encoder_decoder_embeddings": False}, "share_encoder_decoder"),
        ("marian, swish", {"normalize_before": True}, "normalize_before: 'True' is not built"),
        ("marian, swish", {"decoder_vocab_size": 12}, "decoder_vocab_size: '12' is not built"),
        ("marian, swish", {"activation_function": "tanh"}, "activation_function: 'tanh' is not"),
        ("t5", {"feed_forward_proj": "gated-relu"}, "feed_forward_proj: 'gated-relu' is not built"),
        ("t5", {"relative_attention_max_distance": 2}, "position.max_distance: 2"),
    ],
)
def test_what_is_not_built_is_refused(
    name: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    published(tmp_path, name)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises((CheckpointError, SpecError), match=message):
        read(tmp_path)


def words(count: int) -> str:
    """A tokenizer.json of so many words, w0 to the last."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocab = {f"w{i}": i for i in range(count)}
    library = Tokenizer(models.WordLevel(vocab, unk_token="w1"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    text: str = library.to_str()
    return text


def test_predict_writes_what_transformers_generates(
    tmp_path: Path, cli: Callable[..., Result]
) -> None:
    """From the command line: the target's start, its end, and what is never written."""
    theirs = published(tmp_path, "marian, swish")
    (tmp_path / "tokenizer.json").write_text(words(37))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "w0"}))
    path = tmp_path / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "bad_words_ids": [[36]]}))
    text = "w5 w9 w30 w2 w2"
    done = cli("predict", tmp_path, text, "--beams", "1", "--max-tokens", "12", "--device", "cpu")
    ids = torch.tensor([[5, 9, 30, 2, 2, 0]])
    want = theirs.generate(
        ids, num_beams=1, do_sample=False, max_new_tokens=12, bad_words_ids=[[36]],
        forced_eos_token_id=None,
    )  # fmt: skip
    ended = want[0, 1:].tolist()
    ended = ended[: ended.index(0)] if 0 in ended else ended
    assert json.loads(done.out)["text"].split() == [f"w{i}" for i in ended]


def test_blocks_that_share_weights_are_counted_once(tmp_path: Path) -> None:
    """A long stack is not measured by a short one then."""
    kind, options = FAMILIES["t5"]
    cls = getattr(transformers, kind)
    theirs = cls(cls.config_class(**{**options, "num_layers": 20, "num_decoder_layers": 1}))
    saved(theirs, tmp_path)
    spec = from_dict(opening.read_spec(tmp_path))
    info = opening.describe(tmp_path).info
    counted = sum(weight.tensor.numel() for weight in outline(spec, info).weights)
    assert counted == sum(p.numel() for p in theirs.parameters())


def test_training_targets_begin_with_the_published_start(tmp_path: Path) -> None:
    published(tmp_path, "marian, swish")
    (tmp_path / "tokenizer.json").write_text(words(37))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "w0"}))
    (tmp_path / "a.txt").write_text("w5 w9\nw3\n")
    (tmp_path / "b.txt").write_text("w7\nw8 w2\n")
    data = {
        "type": "pairs", "source": [str(tmp_path / "a.txt")], "target": [str(tmp_path / "b.txt")],
        "context": 12, "val_fraction": 0, "tokenizer": {"type": "file", "path": "unused"},
    }  # fmt: skip
    spec = from_dict({**opening.read_spec(tmp_path), "data": data})
    opened = spec.data.open(base=Path(), say=print, assets=opening.read_assets(tmp_path))
    batch = opened.split("train").batch(np.arange(2), 0, 0, False)
    assert sorted(batch["target"].tolist()) == [[36, 7, 0, -1], [36, 8, 2, 0]]
    assert sorted(batch["source"].tolist()) == [[3, 0, -1], [5, 9, 0]]
