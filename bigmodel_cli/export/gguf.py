"""GGUF, which llama.cpp and what is built on it run: Llama's and Qwen's decoders in one file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bigmodel_cli.console import say
from bigmodel_cli.convert.exporting import express
from bigmodel_cli.convert.families import BY_TYPE
from bigmodel_cli.convert.family import written_out
from bigmodel_cli.convert.rules import exported
from bigmodel_cli.data import CHAT_TEMPLATE, TOKENIZER, load_tokenizer
from bigmodel_cli.errors import SpecError
from bigmodel_cli.export.source import Source
from bigmodel_cli.export.target import Target
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.packages import need

FILE = "model.gguf"
ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""`model_type` in config.json -> the architecture in GGUF."""
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""Modules of Llama's layout -> those of GGUF; a layer's are below `model.layers.N` and `blk.N`."""
LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
SPLITS = {
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|": "llama-bpe",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|": "qwen2",
}
"""How the pattern begins by which a tokenizer splits text -> the name of the split in GGUF."""
NORMAL, CONTROL, OWN, UNUSED = 1, 3, 4, 5
"""Types of tokens."""


class GGUF(Target):
    """model.gguf, in the precision that the weights came in."""

    opens = "llama.cpp, and transformers: from_pretrained(FOLDER, gguf_file='model.gguf')"

    def write(self, source: Source, folder: Path) -> None:
        library = need("gguf", "gguf", "--to gguf")
        families = [BY_TYPE[kind] for kind in ARCHITECTURES]
        try:
            found = express(source.spec.model, source.info, source.task, families=families)
        except SpecError as error:
            raise SpecError(f"--to gguf: written for {', '.join(ARCHITECTURES)}; {error}") from None
        kind, config = str(found.config["model_type"]), found.config
        _check(config)
        writer = library.GGUFWriter(folder / FILE, ARCHITECTURES[kind])
        heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
        width = config.get("head_dim") or config["hidden_size"] // heads
        known = {"qwen2": config["hidden_size"] / heads, "qwen3": 128}.get(kind, width)
        if width != known:
            say(
                f"transformers takes a {kind} in GGUF to have heads of {known:g}, and these are"
                f" {width} wide, as the file says: llama.cpp alone reads it"
            )
        writer.add_name(source.path.name)
        writer.add_context_length(config["max_position_embeddings"])
        writer.add_embedding_length(config["hidden_size"])
        writer.add_block_count(config["num_hidden_layers"])
        writer.add_feed_forward_length(config["intermediate_size"])
        writer.add_head_count(heads)
        writer.add_head_count_kv(groups)
        writer.add_key_length(width)
        writer.add_value_length(width)
        writer.add_rope_dimension_count(width)
        writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
        writer.add_vocab_size(config["vocab_size"])
        if TOKENIZER in source.assets:
            _add_tokenizer(writer, source, config["vocab_size"])
        turned = {"attn_q": heads, "attn_k": groups} if ARCHITECTURES[kind] == "llama" else {}
        rules = found.family.rules(written_out(source.spec.model), source.info, source.task)
        for name, tensor in _named(exported(rules, source.model.state_dict()), turned):
            _add(library, writer, name, tensor)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def _check(config: dict[str, Any]) -> None:
    """Raise `SpecError` for what the file cannot say."""
    heads = config["num_attention_heads"]
    if ARCHITECTURES[config["model_type"]] == "llama" and config["hidden_size"] % heads:
        raise SpecError(
            f"model.blocks.0.mixer.num_heads: {heads}, of which dim is not a multiple, as"
            " transformers wants it of what GGUF calls llama; --to hf has it"
        )
    rotary = config["rope_parameters"]
    if rotary["rope_type"] != "default" or rotary.get("partial_rotary_factor", 1.0) != 1.0:
        raise SpecError(
            "model.blocks.mixer.position: a scaled or partial rotary embedding is not written to"
            " GGUF here; --to hf has it"
        )
    windows = {"sliding_window", "no_rope_layers"} & {k for k, v in config.items() if v}
    if windows or config.get("attention_bias") or config.get("mlp_bias"):
        raise SpecError(
            "model.blocks.mixer: windows, and biases that Llama does not have, are not written to"
            " GGUF here; --to hf has them"
        )


def _named(
    theirs: Iterator[tuple[str, Tensor]], turned: dict[str, int]
) -> Iterator[tuple[str, Tensor]]:
    """The tensors by their names in GGUF.

    In its Llama the two channels of a rotary pair are neighbours: the rows of `turned` modules,
    with so many heads each, are in that order.
    """
    for name, tensor in theirs:
        module, _, kind = name.rpartition(".")
        layer = LAYER.fullmatch(module)
        place = NAMES[layer[2] if layer else module]
        if heads := turned.get(place):
            halves = tensor.unflatten(0, (heads, 2, -1))
            tensor = halves.transpose(1, 2).flatten(0, 2)
        yield (f"blk.{layer[1]}.{place}.{kind}" if layer else f"{place}.{kind}"), tensor


def _add(library: Any, writer: Any, name: str, tensor: Tensor) -> None:
    """Vectors are in fp32, as llama.cpp has them; matrices as they are stored."""
    types = library.GGMLQuantizationType
    plain = tensor.detach().contiguous()
    if plain.dim() < 2 or plain.dtype not in (torch.float16, torch.bfloat16):
        writer.add_tensor(name, plain.float().numpy())
    elif plain.dtype == torch.float16:
        writer.add_tensor(name, plain.numpy())
    else:
        writer.add_tensor(name, plain.view(torch.uint8).numpy(), raw_dtype=types.BF16)


def _add_tokenizer(writer: Any, source: Source, vocab: int) -> None:
    """The tokens and merges. Raises `SpecError` for a tokenizer that is no byte-level BPE."""
    values = json.loads(source.assets[TOKENIZER])
    model = values["model"]
    levels = json.dumps([values.get("pre_tokenizer"), values.get("decoder")])
    if model.get("type") != "BPE" or "ByteLevel" not in levels:
        raise SpecError(
            "data.tokenizer: GGUF takes byte-level BPE here (type: bpe or bytes), and this one is"
            f" {model.get('type')}"
        )
    texts, kinds = [f"[UNUSED{i}]" for i in range(vocab)], [UNUSED] * vocab
    for text, number in model["vocab"].items():
        texts[number], kinds[number] = text, NORMAL
    for token in values.get("added_tokens", ()):
        texts[token["id"]] = token["content"]
        kinds[token["id"]] = CONTROL if token["special"] else OWN
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_split(levels))
    writer.add_token_list(texts)
    writer.add_token_types(kinds)
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in model["merges"]])
    tokenizer = load_tokenizer(source.assets)
    if tokenizer.end_of_text is not None:
        writer.add_eos_token_id(tokenizer.end_of_text)
    if tokenizer.start_of_text is not None:
        writer.add_bos_token_id(tokenizer.start_of_text)
    writer.add_add_bos_token(tokenizer.begins)
    template = source.assets.get(CHAT_TEMPLATE) or source.kept("chat_template.jinja")
    if template is not None:
        writer.add_chat_template(template.decode("utf-8"))


def _split(levels: str) -> str:
    """The name of how text is split before merging. Raises `SpecError` for an unknown way."""
    if "Regex" not in levels:
        return "gpt-2"
    for pattern, name in SPLITS.items():
        if json.dumps(pattern)[1:-1] in levels:
            return name
    raise SpecError(
        "data.tokenizer: it splits text in a way that has no name in GGUF here; --to hf has it"
    )
