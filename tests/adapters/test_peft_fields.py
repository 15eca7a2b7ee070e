"""Every field of PEFT's LoraConfig is followed as PEFT does, or refused by name: none is unseen."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_peft_files import TOKENS, adapted, llama, published, read, written

from bigmodel_cli.errors import CheckpointError

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")
ELSEWHERE = {
    *("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "modules_to_save"),
    *("bias", "lora_bias", "rank_pattern", "alpha_pattern", "target_modules", "target_parameters"),
}
"""What other tests hold to be followed."""
NOTHING: dict[str, list[Any]] = {
    "peft_version": ["0.1"], "auto_mapping": [{"base_model_class": "LlamaForCausalLM"}],
    "base_model_name_or_path": ["elsewhere"], "revision": ["main"], "task_type": ["CAUSAL_LM"],
    "inference_mode": [False], "runtime_config": [{"ephemeral_gpu_offload": False}],
    "exclude_modules": [["o_proj"]], "fan_in_fan_out": [True], "megatron_core": ["megatron.core"],
    "qalora_group_size": [8], "eva_config": [{"rho": 2.0}], "ensure_weight_tying": [True],
    "init_lora_weights": [True, False, "gaussian", "orthogonal", "eva"],
}  # fmt: skip
"""Values that change nothing of what an adapter that is read computes, in PEFT either."""
REFUSED: dict[str, list[Any]] = {
    "peft_type": ["LOHA", "ADALORA"],
    "trainable_token_indices": [[1, 2], {"embed_tokens": [1]}],
    "layer_replication": [[[0, 2], [1, 2]]], "megatron_config": [{"a": 1}],
    "loftq_config": [{"loftq_bits": 4}], "corda_config": [{"corda_method": "kpm"}],
    "lora_ga_config": [{"direction": "ArBr"}], "velora_config": [{"num_groups": 2}],
    "alora_invocation_tokens": [[3, 4]], "use_qalora": [True],
    "monteclora_config": [{"num_samples": 2}], "use_bdlora": [{"nblocks": 2}],
    "arrow_config": [{"top_k": 2}], "kasa_config": [{"beta": 1.0}],
    "init_lora_weights": [
        "pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga", "mica", "something",
    ],
}  # fmt: skip
LAYERS = ("layers_to_transform", "layers_pattern")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llama(tmp_path_factory.mktemp("llama"), False)


@pytest.fixture
def folder(base: Path, tmp_path: Path) -> Path:
    files, _ = adapted(base, "lora", ["*.qkv.q", "*.qkv.v"])
    return written(tmp_path / "adapter", files)


def changed(folder: Path, **values: Any) -> Path:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return folder


def test_every_field_is_in_a_table() -> None:
    fields = {field.name for field in dataclasses.fields(peft.LoraConfig)}
    assert fields == ELSEWHERE | NOTHING.keys() | REFUSED.keys() | {*LAYERS}


@pytest.mark.parametrize("name", NOTHING)
def test_what_changes_nothing(name: str, base: Path, folder: Path) -> None:
    _, plain = read(base, folder)
    expected = plain.eval()(TOKENS)
    for value in NOTHING[name]:
        _, ours = read(base, changed(folder, **{name: value}))
        assert torch.equal(ours.eval()(TOKENS), expected)
        # PEFT itself draws these two only where it has data, or an even rank
        if name not in ("auto_mapping", "eva_config") and value not in ("eva", "orthogonal"):
            theirs = peft.PeftModel.from_pretrained(published(base), folder).eval()
            torch.testing.assert_close(theirs(TOKENS).logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_named(name: str, base: Path, folder: Path) -> None:
    for value in REFUSED[name]:
        with pytest.raises(CheckpointError, match=rf"adapter_config\.json: (.*, )?{name}\b"):
            read(base, changed(folder, **{name: value}))


def test_single_layers_are_those_that_tensors_are_of(base: Path, tmp_path: Path) -> None:
    for values in (
        {"layers_to_transform": [1]},
        {"layers_to_transform": 0, "layers_pattern": "layers"},
    ):
        config = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", **values)
        theirs = peft.get_peft_model(published(base), config)
        with torch.no_grad():
            for p in theirs.parameters():
                if p.requires_grad:
                    p += 0.3
        theirs.eval().save_pretrained(tmp_path / "theirs")
        _, ours = read(base, tmp_path / "theirs")
        torch.testing.assert_close(ours.eval()(TOKENS), theirs(TOKENS).logits, rtol=1e-5, atol=1e-5)


def test_a_field_that_is_not_known_is_named(base: Path, folder: Path) -> None:
    with pytest.raises(CheckpointError, match="of_tomorrow"):
        read(base, changed(folder, of_tomorrow=3))
