"""Small folders in Hugging Face's layout, written here without its libraries."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bigmodel_cli.checkpoints import safe
from bigmodel_cli.convert.weights import INDEX, WEIGHTS
from bigmodel_cli.data.text.own_tokenizers import ByteTokenizer

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
    "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 3,
    "num_key_value_heads": 1, "head_dim": 6, "max_position_embeddings": 24, "vocab_size": 259,
    "rms_norm_eps": 1e-5, "rope_theta": 1000.0, "tie_word_embeddings": False, "bos_token_id": 256,
    "eos_token_id": 256,
}  # fmt: skip


def llama_tensors(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The weights of such a model, drawn."""
    draw = torch.Generator().manual_seed(0)
    shapes = {"model.embed_tokens.weight": (259, 12), "model.norm.weight": (12,)}
    shapes["lm_head.weight"] = (259, 12)
    for i in range(2):
        layer = f"model.layers.{i}."
        for name, rows, columns in (
            ("self_attn.q_proj", 18, 12), ("self_attn.k_proj", 6, 12),
            ("self_attn.v_proj", 6, 12), ("self_attn.o_proj", 12, 18),
            ("mlp.gate_proj", 20, 12), ("mlp.up_proj", 20, 12), ("mlp.down_proj", 12, 20),
        ):  # fmt: skip
            shapes[f"{layer}{name}.weight"] = (rows, columns)
        shapes |= {
            f"{layer}{n}.weight": (12,) for n in ("input_layernorm", "post_attention_layernorm")
        }
    return {
        name: (0.3 * torch.randn(shape, generator=draw) + (len(shape) == 1)).to(dtype)
        for name, shape in shapes.items()
    }


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A .safetensors file."""
    ordered = {name: tensors[name] for name in safe.file_order(tensors)}
    with open(path, "wb") as file:
        file.write(safe.header(ordered, {"format": "pt"}))
        for tensor in ordered.values():
            file.write(safe.tensor_bytes(tensor))


def llama_folder(
    folder: Path,
    tensors: Mapping[str, Tensor] | None = None,
    shards: int = 1,
    tokenizer: bool = True,
    **config: Any,
) -> Path:
    """A folder with these weights, in so many files, and changes of its config.json."""
    folder.mkdir()
    tensors = llama_tensors() if tensors is None else tensors
    (folder / "config.json").write_text(json.dumps(LLAMA | config))
    if shards == 1:
        write_tensors(folder / WEIGHTS, tensors)
    else:
        names = [f"model-{i + 1:05d}-of-{shards:05d}.safetensors" for i in range(shards)]
        where = {name: names[i % shards] for i, name in enumerate(sorted(tensors))}
        for file in names:
            write_tensors(folder / file, {n: tensors[n] for n in where if where[n] == file})
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))
    if tokenizer:
        (folder / "tokenizer.json").write_bytes(ByteTokenizer().to_json())
    return folder


def drawn_folder(folder: Path, config: dict[str, Any]) -> Path:
    """A folder for any family's config.json, with weights by the family's own rules."""
    from bigmodel_cli.convert import opening
    from bigmodel_cli.convert.family import written_out
    from bigmodel_cli.models import build

    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_bytes(ByteTokenizer().to_json())
    found = opening.describe(folder)
    draw = torch.Generator().manual_seed(1)
    with torch.device("meta"):
        ours = build(found.model, found.info).state_dict()
    rules = found.family.rules(written_out(found.model), found.info, found.task)
    shapes = {rule.theirs: rule.shape(ours[rule.ours]) for rule in rules}
    write_tensors(
        folder / WEIGHTS, {n: 0.3 * torch.randn(s, generator=draw) for n, s in shapes.items()}
    )
    return folder
