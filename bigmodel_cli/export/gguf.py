"""GGUF, which llama.cpp and what is built on it run: Llama's and Qwen's decoders in one file."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bigmodel_cli.console import say
from bigmodel_cli.convert.exporting import express
from bigmodel_cli.convert.families import BY_TYPE
from bigmodel_cli.convert.family import written_out
from bigmodel_cli.convert.rules import exported
from bigmodel_cli.data import TOKENIZER
from bigmodel_cli.errors import SpecError
from bigmodel_cli.export.gguf_tokenizer import add_tokenizer
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
SHARPER = {"attention_factor", "mscale", "mscale_all_dim", "truncate"}
"""Options of YaRN that have no key in GGUF; rope_parameters has them where they are unusual."""
LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")


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
        rotary = found.config["rope_parameters"]
        if rotary["rope_type"] != "default":
            _add_scaling(library, writer, rotary)
            say(
                f"{FILE}: its {rotary['rope_type']} positions are read by llama.cpp; transformers"
                " overlooks them in GGUF (--to hf has them)"
            )
        if rotary["rope_type"] == "llama3":
            writer.add_tensor("rope_freqs.weight", _slowed(rotary, width))
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
        writer.add_vocab_size(config["vocab_size"])
        if TOKENIZER in source.assets:
            add_tokenizer(writer, source, config["vocab_size"])
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
    kind = rotary["rope_type"]
    only_here = kind == "llama3" and ARCHITECTURES[config["model_type"]] != "llama"
    odd = kind == "yarn" and rotary.keys() & SHARPER
    if only_here or odd or rotary.get("partial_rotary_factor", 1.0) != 1.0:
        raise SpecError(
            f"model.blocks.mixer.position: a {'partial' if kind == 'default' else kind} rotary"
            f" embedding{f' with {min(odd)}' if odd else ''} is not written to GGUF for"
            f" {config['model_type']} here; --to hf has it"
        )
    windows = {"sliding_window", "no_rope_layers"} & {k for k, v in config.items() if v}
    if windows or config.get("attention_bias") or config.get("mlp_bias"):
        raise SpecError(
            "model.blocks.mixer: windows, and biases that Llama does not have, are not written to"
            " GGUF here; --to hf has them"
        )


def _add_scaling(library: Any, writer: Any, rotary: dict[str, Any]) -> None:
    """The keys of scaled positions; the name of their kind is the same, where it has one."""
    if rotary["rope_type"] not in ("linear", "yarn"):
        return
    writer.add_rope_scaling_type(library.RopeScalingType(rotary["rope_type"]))
    writer.add_rope_scaling_factor(rotary["factor"])
    if rotary["rope_type"] == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rotary["original_max_position_embeddings"])
        writer.add_rope_scaling_yarn_beta_fast(rotary.get("beta_fast", 32.0))
        writer.add_rope_scaling_yarn_beta_slow(rotary.get("beta_slow", 1.0))


def _slowed(rotary: dict[str, Any], width: int) -> Any:
    """(width / 2,) what llama.cpp divides the angle of each rotary pair by, for Llama 3.1."""
    base, factor = rotary["rope_theta"], rotary["factor"]
    rate = base ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)
    turns = rate * rotary["original_max_position_embeddings"] / (2 * math.pi)
    low, high = rotary["low_freq_factor"], rotary["high_freq_factor"]
    kept = ((turns - low) / (high - low)).clamp(0, 1)  # 1: stays as it is
    return (1 / ((1 - kept) / factor + kept)).float().numpy()


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
