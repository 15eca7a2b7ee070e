"""config.json of decoders as it is found on disk: older keys, text parts, what is refused."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_decoder_families import (
    CASES,
    DELTA,
    FULL,
    QWEN3_5,
    SLIDING,
    WIDE,
    Pair,
    apart,
    drawn,
    network,
    read,
    tokens,
)
from transformers import (
    AutoModelForCausalLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from bigmodel_cli.convert import opening
from bigmodel_cli.convert.families import BY_TYPE
from bigmodel_cli.convert.family import written_out
from bigmodel_cli.errors import CheckpointError

LLAMA3 = {
    "rope_type": "llama3", "factor": 6.0, "low_freq_factor": 1, "high_freq_factor": 4,
    "original_max_position_embeddings": 32,
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32}
GONE = None
"""A key that is taken out of config.json; "null" stands for null."""
OLDER: dict[str, tuple[str, dict[str, Any]]] = {
    "llama 3.2": (
        "llama 3.2",
        {"rope_parameters": GONE, "rope_theta": 700.0, "rope_scaling": LLAMA3, "dtype": GONE,
         "torch_dtype": "float32", "pretraining_tp": 1, "head_dim": "null"},
    ),
    "llama linear": (
        "llama",
        {"rope_parameters": GONE, "rope_theta": 700, "head_dim": GONE,
         "rope_scaling": {"type": "linear", "factor": 3}, "attention_bias": GONE},
    ),
    "llama yarn": (
        "llama", {"rope_parameters": GONE, "rope_scaling": YARN, "num_key_value_heads": 2},
    ),
    "mistral absent": ("mistral", {"sliding_window": GONE, "rope_parameters": GONE}),
    "mistral null": ("mistral", {"sliding_window": "null", "head_dim": 10, "rope_theta": 1e6}),
    "qwen2": ("qwen2 windows", {"layer_types": GONE, "max_window_layers": 2}),
    "qwen2.5": (
        "qwen2",
        {"layer_types": GONE, "use_sliding_window": False, "sliding_window": 6,
         "max_window_layers": 1, "rope_parameters": GONE, "rope_theta": 1000000.0},
    ),
    "qwen3": ("qwen3", {"layer_types": GONE, "rope_parameters": GONE, "rope_scaling": "null",
                        "rope_theta": 1000000}),
    "smollm3": ("smollm3", {"layer_types": GONE, "no_rope_layers": GONE,
                            "no_rope_layer_interval": 2, "rope_parameters": GONE}),
    "olmo2": ("olmo2", {"rope_parameters": GONE, "rope_theta": 500000, "rms_norm_eps": GONE}),
    "olmo3": (
        "olmo3",
        {"rope_parameters": GONE, "layer_types": GONE, "rope_theta": 500000, "rope_scaling": YARN},
    ),
    "gemma2": (
        "gemma2",
        {"layer_types": GONE, "hidden_act": "gelu_pytorch_tanh", "cache_implementation": "hybrid",
         "rope_parameters": GONE, "rope_theta": 9000.0},
    ),
    "gemma3": (
        "gemma3",
        {"layer_types": GONE, "sliding_window_pattern": 2, "rope_parameters": GONE,
         "rope_theta": 5000.0, "rope_local_base_freq": 80.0,
         "rope_scaling": {"factor": 8.0, "rope_type": "linear"}},
    ),
    "gemma3 sparse": (
        "gemma3",
        {"layer_types": GONE, "sliding_window_pattern": 2, "tie_word_embeddings": GONE,
         "rope_parameters": {FULL: {"rope_theta": 5000.0}}, "query_pre_attn_scalar": GONE},
    ),
    "qwen3.5": (
        "qwen3.5",
        {"layer_types": GONE, "full_attention_interval": 2, "rope_parameters": GONE,
         "rope_theta": 700.0, "partial_rotary_factor": 0.5, "mtp_num_hidden_layers": 1},
    ),
    "qwen3.5 nothing": (
        "qwen3.5", {"layer_types": [DELTA, FULL, DELTA], "rope_parameters": GONE},
    ),
}  # fmt: skip


def changed(folder: Path, changes: dict[str, Any]) -> Path:
    """The folder with these changes to its config.json."""
    values = json.loads((folder / "config.json").read_text())
    for key, value in changes.items():
        values.pop(key, None)
        if value is not GONE:
            values[key] = None if value == "null" else value
    (folder / "config.json").write_text(json.dumps(values))
    return folder


@pytest.mark.parametrize("name", OLDER)
@torch.no_grad()
def test_older_keys_and_absent_ones_mean_what_they_mean_there(name: str, tmp_path: Path) -> None:
    case, changes = OLDER[name]
    values = {"max_position_embeddings": 96, **CASES[case]}
    if changes.get("head_dim", 1) in (GONE, "null"):
        values["head_dim"] = 6
    CASES["changed"] = values
    Pair("changed", tmp_path)
    changed(tmp_path, changes)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    row = tokens(2, 70)
    assert apart(read(tmp_path)[0](row), theirs(row).logits) <= 1e-5


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("llama", {"clip_qkv": 3.0}, "clip_qkv: not known for this family"),
    ("llama", {"hidden_act": "gelu"}, "hidden_act: 'gelu' is not built; what is: silu"),
    ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor: 0.5, and heads"),
    ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "'dynamic' is not"),
    (
        "llama",
        {"rope_parameters": GONE, "rope_scaling": {"type": "su", "long_factor": [2.0]}},
        "'su' is not built: its angles change",
    ),
    ("llama", {"rope_parameters": {"rope_type": "linear"}}, "factor: missing"),
    ("llama", {"rope_parameters": {"rope_type": "linear", "factor": "2"}}, "'2' is not a number"),
    ("llama", {"rope_parameters": {"rope_theta": 9.0, "factor": 2.0}}, "factor: not known for def"),
    ("llama", {"rope_parameters": {**YARN, "mscale": 0.7}}, "only one is given"),
    ("llama", {"rope_scaling": YARN}, "are both there, and differ"),
    ("llama", {"rope_parameters": {FULL: {}}}, "full_attention: not known"),
    ("mistral", {"attention_bias": True}, "attention_bias: 'True' is not built"),
    ("mistral", {"layer_types": [FULL, FULL, FULL]}, "layer_types: not known for this family"),
    ("qwen2", {"layer_types": [FULL, SLIDING, FULL]}, "there is no sliding_window"),
    ("qwen3", {"layer_types": [FULL, FULL]}, "layer_types: 2 of 3 layers"),
    ("qwen3", {"layer_types": [FULL, "chunked_attention", FULL]}, "'chunked_attention' is not"),
    ("smollm3", {"no_rope_layers": [1, 0]}, "for each of 5 layers"),
    ("olmo3", {"rope_parameters": GONE, "rope_theta": 10000.0}, "rope_theta: '10000.0' is not"),
    ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention: 'True'"),
    ("gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping: '50.0' is not built"),
    ("gemma3", {"rope_parameters": {"rope_type": "default"}}, "expected those of full_attention"),
    ("olmo3", {"rope_parameters": {FULL: {**YARN, "truncate": False}}}, "truncate: false of one"),
    ("gemma3", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar: 0 is not above 0"),
    ("gemma3", {"rope_parameters": {FULL: "default"}}, "full_attention: 'default' is not a dict"),
    ("gemma3", {"rope_theta": 5.0}, "beside older keys"),
    ("qwen3.5", {"attn_output_gate": False}, "attn_output_gate: 'False' is not built"),
]


BUILT = {"linear", "yarn", "llama3"}
"""Kinds of rotary scaling; `CASES` hold them to transformers'."""


@pytest.mark.parametrize("kind", [*ROPE_INIT_FUNCTIONS])
def test_every_kind_of_scaling_is_built_or_refused_by_name(
    kind: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    """For all layers, and for those of one type."""
    scaling = {"rope_type": kind, "factor": 2.0, "rope_theta": 1e4}
    more = {"long_factor": [2.0] * 3, "short_factor": [1.0] * 3}
    given = {**scaling, **(more if kind == "longrope" else {})}
    for name, values in (("llama", given), ("gemma3", {FULL: given, SLIDING: {}})):
        shutil.copytree(folders[name], tmp_path / name)
        changed(tmp_path / name, {"rope_parameters": values})
        if kind in BUILT:
            opening.describe(tmp_path / name)
            continue
        with pytest.raises(CheckpointError, match=f"rope_parameters: '{kind}' is not built"):
            opening.describe(tmp_path / name)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    class Lazily(dict[str, Path]):
        def __missing__(self, name: str) -> Path:
            self[name] = tmp_path_factory.mktemp("config")
            Pair(name, self[name])
            return self[name]

    return Lazily()


@pytest.mark.parametrize(("name", "changes", "message"), REFUSED)
def test_what_is_not_built_is_refused_by_its_key(
    name: str, changes: dict[str, Any], message: str, folders: dict[str, Path]
) -> None:
    config = folders[name] / "config.json"
    before = config.read_text()
    try:
        with pytest.raises(CheckpointError) as found:
            opening.describe(changed(folders[name], changes))
    finally:
        config.write_text(before)
    assert message in str(found.value)
    assert str(found.value).startswith(str(config))


VISION = {
    "gemma3": {"hidden_size": 12, "intermediate_size": 8, "num_hidden_layers": 1,
               "num_attention_heads": 2, "image_size": 28, "patch_size": 14},
    "qwen3_5": {"hidden_size": 12, "intermediate_size": 8, "depth": 1, "num_heads": 2,
                "out_hidden_size": 36, "num_position_embeddings": 4},
}  # fmt: skip


def with_images(kind: str) -> Any:
    """A model that reads images and text."""
    text = dict(QWEN3_5 if kind == "qwen3_5" else CASES["gemma3"])
    text.pop("model_type")
    config_class, model_class = {
        "gemma3": (Gemma3Config, Gemma3ForConditionalGeneration),
        "qwen3_5": (Qwen3_5Config, Qwen3_5ForConditionalGeneration),
    }[kind]
    more = {"mm_tokens_per_image": 4} if kind == "gemma3" else {}
    config = config_class(text_config=text, vision_config=VISION[kind], **more)
    config._attn_implementation = "eager"
    return drawn(model_class(config))


@pytest.mark.parametrize("kind", VISION)
@pytest.mark.parametrize("other", [False, True])
@torch.no_grad()
def test_the_text_part_of_a_model_that_reads_images(kind: str, other: bool, tmp_path: Path) -> None:
    theirs, file = with_images(kind), tmp_path / "model.safetensors"
    theirs.save_pretrained(tmp_path)
    if other:  # the names that their module has, and what comes beside it
        beside = {"mtp.layers.0.mlp.gate_proj.weight": torch.zeros(3, 2)}
        renamed = {
            re.sub("^language_model.model", "model.language_model", key)
            if "language" in key
            else f"model.{key}".replace("model.model", "model").replace("model.lm_", "lm_"): tensor
            for key, tensor in load_file(file).items()
        }
        assert any(key.startswith("model.language_model.layers") for key in renamed)
        save_file(renamed | (beside if kind == "qwen3_5" else {}), file, {"format": "pt"})
    ours = read(tmp_path)[0]
    row = tokens(2, 21)
    assert apart(ours(row), theirs(input_ids=row).logits) <= 1e-5
    assert not [name for name in ours.state_dict() if "vision" in name]


def test_sizes_that_gemma_3_leaves_out(tmp_path: Path) -> None:
    """As google/gemma-3-4b-it has them."""
    given = {
        "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text",
        "num_hidden_layers": 34, "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }  # fmt: skip
    values = {"model_type": "gemma3", "text_config": given, "vision_config": {}}
    (tmp_path / "config.json").write_text(json.dumps(values))
    found = opening.describe(tmp_path)
    want = Gemma3TextConfig(**given)
    ours = BY_TYPE["gemma3"].config(written_out(found.model), found.info)
    again = Gemma3TextConfig(**ours)
    assert network(again.to_dict()) == network(want.to_dict())


def test_a_tensor_without_a_place_is_refused(folders: dict[str, Path]) -> None:
    file = folders["qwen3.5"] / "model.safetensors"
    save_file({**load_file(file), "model.layers.0.extra": torch.zeros(3)}, file, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"no place for: .*extra"):
        opening.read(folders["qwen3.5"])


def test_a_long_context_takes_no_table_of_it(tmp_path: Path) -> None:
    CASES["long"] = {
        **WIDE, "model_type": "llama", "max_position_embeddings": 131_072, "head_dim": 32,
    }  # fmt: skip
    ours = Pair("long", tmp_path).ours
    assert sum(b.numel() for b in ours.buffers()) <= 2 * (1 << 20)
