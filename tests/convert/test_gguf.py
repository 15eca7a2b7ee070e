"""`bigmodel export --to gguf`: read back by transformers with equal logits and tokens."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from folders import llama_folder

from bigmodel_cli.errors import SpecError
from bigmodel_cli.export.gguf_tokenizer import split_name
from bigmodel_cli.loaded import load_checkpoint

Cli = Callable[..., Any]
TEXT = "the quick brown fox jumps over 12 lazy dogs, don't they?\n" * 60


def trained(cli: Cli, mixer: str, model: str = "", tokenizer: str = "{type: bpe, vocab_size: 290}"):
    Path("text.txt").write_text(TEXT)
    Path("spec.yaml").write_text(
        f"model: {{type: decoder, dim: 24, max_len: 40, norm: {{type: rmsnorm, eps: 1e-5}}, {model}"
        f" blocks: [{{repeat: 2, mixer: {{type: attention, {mixer}}},"
        " ffn: {type: swiglu, hidden: 36}, norm: {type: rmsnorm, eps: 1e-5}}]}\n"
        f"data: {{type: text, files: [text.txt], context: 32, tokenizer: {tokenizer}}}\n"
        "task: {type: causal_lm, sample_tokens: 0}\n"
        "train: {steps: 6, batch_size: 4, precision: fp32, optimizer: {type: adamw, lr: 0.02}}\n"
    )
    result = cli("pretrain", "spec.yaml", "--out", "run")
    assert result.status == 0, result.err


LLAMA = "num_heads: 4, kv_heads: 2, bias: false, position: {type: rotary, base: 5000}"
QWEN3 = (
    "num_heads: 4, kv_heads: 1, head_dim: 128, bias: false, qk_norm: {eps: 1e-5}, position: rotary"
)
QWEN2 = "num_heads: 4, kv_heads: 2, bias: [q, k, v], position: rotary"


@pytest.mark.parametrize(
    ("mixer", "model"),
    [
        (LLAMA, "tie_embeddings: false,"),
        (LLAMA, ""),
        (QWEN3, ""),
        (QWEN2, "tie_embeddings: false,"),
    ],
    ids=["llama", "llama_tied", "qwen3", "qwen2"],
)
def test_logits_and_tokens_are_equal(mixer: str, model: str, cli: Cli) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("gguf")
    trained(cli, mixer, model)
    result = cli("export", "run", "out", "--to", "gguf")
    assert result.status == 0, result.err
    files = {"gguf_file": "model.gguf"}
    theirs = transformers.AutoModelForCausalLM.from_pretrained("out", **files).eval()
    loaded = load_checkpoint(Path("run"), "cpu", tell=lambda _: None)
    tokens = torch.randint(280, (2, 21), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        ours, expected = loaded.model(tokens), theirs(tokens).logits
    assert float((ours - expected).abs().max() / expected.abs().max()) < 1e-5
    from bigmodel_cli.data import load_tokenizer

    tokenizer = transformers.AutoTokenizer.from_pretrained("out", **files)
    text = "Quick foxes don't jump 2345 times.\n\n  ok"
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == load_tokenizer(
        loaded.assets
    ).encode(text)


@pytest.mark.parametrize(
    ("mixer", "tokenizer", "message"),
    [
        ("num_heads: 4, bias: false, position: alibi", "bytes", "alibi"),
        (f"{LLAMA}, window: 8", "bytes", "windows"),
        (
            QWEN2.replace(
                "rotary", "{type: rotary, scaling: {type: llama3, factor: 2, trained: 9}}"
            ),
            "bytes",
            "a llama3 rotary embedding is not written to GGUF for qwen2",
        ),
        (
            LLAMA.replace(
                "5000}",
                "5000, scaling: {type: yarn, factor: 2, trained: 9, attention_factor: 0.5}}",
            ),
            "bytes",
            "a yarn rotary embedding with attention_factor",
        ),
        (LLAMA, "{type: characters}", "byte-level BPE"),
    ],
)
def test_what_the_file_cannot_say_is_refused(
    mixer: str, tokenizer: str, message: str, cli: Cli
) -> None:
    pytest.importorskip("gguf")
    trained(cli, mixer, "", tokenizer)
    result = cli("export", "run", "out", "--to", "gguf")
    assert (result.status, message in result.err) == (2, True), result.err
    assert not Path("out").exists()


def test_a_token_beyond_the_vocabulary_is_refused(cli: Cli, tmp_path: Path) -> None:
    """As a folder may have it: tokens added to its tokenizer, and no rows for them."""
    pytest.importorskip("gguf")
    trained(cli, LLAMA, "")
    result = cli("export", "run", "hf", "--to", "hf")
    assert result.status == 0, result.err
    path = tmp_path / "hf" / "tokenizer.json"
    values = json.loads(path.read_text())
    last = json.loads((tmp_path / "hf" / "config.json").read_text())["vocab_size"]
    added = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    values["added_tokens"] = [
        *values["added_tokens"],
        {"id": last + 5, "content": "<extra>", "special": True, **added},
    ]
    path.write_text(json.dumps(values))
    result = cli("export", "hf", "out", "--to", "gguf")
    assert result.status == 2, result.err
    assert f"it has a token {last + 5}, and the model {last} tokens; --to hf has" in result.err
    assert not Path("out").exists()


def fields(path: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The keys and the tensors of a file, as the gguf package reads them."""
    gguf = pytest.importorskip("gguf")
    reader = gguf.GGUFReader(path)
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    return {name: field.contents() for name, field in reader.fields.items()}, tensors


@pytest.mark.parametrize(
    ("scaling", "want"),
    [
        ("type: linear, factor: 3", {"type": "linear", "factor": 3.0}),
        (
            "type: yarn, factor: 4, trained: 16, fast: 16",
            {"type": "yarn", "factor": 4.0, "original_context_length": 16, "yarn_beta_fast": 16.0,
             "yarn_beta_slow": 1.0},
        ),
        ("type: llama3, factor: 8, trained: 24, high_freq_factor: 3", {}),
    ],
)  # fmt: skip
def test_scaled_positions_are_keys_or_divisors_of_angles(
    scaling: str, want: dict[str, Any], cli: Cli
) -> None:
    transformers = pytest.importorskip("transformers")
    trained(cli, LLAMA.replace("5000}", f"5000, scaling: {{{scaling}}}}}"))
    result = cli("export", "run", "out", "--to", "gguf")
    assert result.status == 0, result.err
    assert "transformers overlooks them in GGUF" in result.err
    keys, tensors = fields("out/model.gguf")
    found = {n.removeprefix("llama.rope.scaling."): v for n, v in keys.items() if "scaling" in n}
    assert found == want
    assert ("rope_freqs.weight" in tensors) == (not want)
    if not want:
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        config = transformers.LlamaConfig(
            hidden_size=24, num_attention_heads=4, max_position_embeddings=40,
            rope_parameters={
                "rope_type": "llama3", "rope_theta": 5000.0, "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 3.0, "original_max_position_embeddings": 24,
            },
        )  # fmt: skip
        slow, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
        plain = 5000.0 ** -(torch.arange(0, 6, 2) / 6)
        torch.testing.assert_close(plain / slow, torch.tensor(tensors["rope_freqs.weight"]))


def test_template_and_special_tokens_of_a_folder_are_in_the_file(cli: Cli) -> None:
    """A template that tokenizer_config.json has was left out."""
    pytest.importorskip("gguf")
    folder = llama_folder(Path("a"))
    named = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "chat_template": "{{ 1 }}"}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    assert cli("export", "a", "out", "--to", "gguf").status == 0
    keys, _ = fields("out/model.gguf")
    assert keys["tokenizer.chat_template"] == "{{ 1 }}"
    ids = {n: keys[f"tokenizer.ggml.{n}_token_id"] for n in ("eos", "padding")}
    assert ids == {"eos": 256, "padding": 256}
    assert len(keys["tokenizer.ggml.tokens"]) == 259


WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWENS = WORDS.replace("{1,3}", "")
LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}


def sequence(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": [*steps]}


def splits(pattern: str) -> dict[str, Any]:
    isolated = {"behavior": "Isolated", "invert": False}
    by_pattern = {"type": "Split", "pattern": {"Regex": pattern}, **isolated}
    return sequence(by_pattern, {**LEVEL, "use_regex": False})


DIGITS = {"type": "Digits", "individual_digits": True}


@pytest.mark.parametrize(
    ("parts", "name"),
    [
        ({"pre_tokenizer": LEVEL}, "gpt-2"),
        ({"pre_tokenizer": splits(WORDS), "ignore_merges": True}, "llama-bpe"),
        ({"pre_tokenizer": splits(WORDS)}, "smaug-bpe"),
        ({"pre_tokenizer": splits(QWENS), "normalizer": {"type": "NFC"}}, "qwen2"),
        ({"pre_tokenizer": sequence(DIGITS, LEVEL)}, "smollm"),
        # each was written as one of those above, and llama.cpp reads other tokens
        ({"pre_tokenizer": sequence({**DIGITS, "individual_digits": False}, LEVEL)}, ""),
        ({"pre_tokenizer": splits(WORDS.replace("|\\s+(?!", "|\\s*(?!"))}, ""),
        ({"pre_tokenizer": {**LEVEL, "add_prefix_space": True}}, ""),
        ({"pre_tokenizer": {**LEVEL, "use_regex": False}}, ""),
        ({"pre_tokenizer": LEVEL, "normalizer": {"type": "Lowercase"}}, ""),
        ({"pre_tokenizer": LEVEL, "ignore_merges": True}, ""),
        ({"pre_tokenizer": LEVEL, "end_of_word_suffix": "</w>"}, ""),
    ],
)  # fmt: skip
def test_a_way_to_split_text_is_named_only_where_it_is_exactly_that(
    parts: dict[str, Any], name: str
) -> None:
    own = {k: v for k, v in parts.items() if k in ("ignore_merges", "end_of_word_suffix")}
    model = {"type": "BPE", "merges": ["a b"], "vocab": {}, **own}
    values = {"model": model, "normalizer": None, **parts}
    if name:
        assert split_name(values) == name
    else:
        with pytest.raises(SpecError, match="has no name in GGUF"):
            split_name(values)
