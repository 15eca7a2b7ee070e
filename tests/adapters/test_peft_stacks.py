"""Adapters of stacks of experts in PEFT's layout of `target_parameters`, in both directions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_peft_files import opened, read, written

from bigmodel_cli.adapters import ADAPTERS, attach
from bigmodel_cli.convert.peft import adapter_files
from bigmodel_cli.convert.peft_layout import Layout
from bigmodel_cli.errors import CheckpointError, SpecError
from bigmodel_cli.loaded import load_checkpoint

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
TOKENS = torch.tensor([[3, 26, 5, 5, 17, 30, 2], [1, 0, 30, 24, 9, 11, 16]])
SMALL = {
    "vocab_size": 31, "hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 2,
    "num_attention_heads": 3, "num_key_value_heads": 1, "max_position_embeddings": 24,
    "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None,
}  # fmt: skip
FAMILIES: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "mixtral": (
        "MixtralConfig",
        {"num_local_experts": 3, "num_experts_per_tok": 2, "head_dim": 8},
        ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
    ),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 12,
         "head_dim": 8, "mlp_only_layers": [0]},
        ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
    ),
    "gpt_oss": (
        "GptOssConfig",
        {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8, "sliding_window": 5},
        ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
    ),
    "granitemoehybrid": (
        "GraniteMoeHybridConfig",
        {"num_local_experts": 3, "num_experts_per_tok": 2, "shared_intermediate_size": 12,
         "layer_types": ["mamba", "attention"], "mamba_d_state": 5, "mamba_chunk_size": 16,
         "mamba_n_heads": 6, "mamba_d_head": 8},
        ["block_sparse_moe.experts.gate_up_proj", "block_sparse_moe.experts.down_proj"],
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(folder of a random network, its parameters that are stacks)."""
    name, options, stacks = FAMILIES[request.param]
    torch.manual_seed(3)
    config = getattr(transformers, name)(**SMALL | options)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0.0, 0.3)
    folder = tmp_path_factory.mktemp(request.param) / "base"
    model.save_pretrained(folder)
    return folder, stacks


def published(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager"
    ).eval()


def shaken(model: Any) -> None:
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p += 0.2 * torch.randn(p.shape, generator=generator)


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def adapted(folder: Path, targets: list[str], kind: str = "lora", **more: Any) -> Any:
    """(spec, model, the files) of an adapter with random numbers."""
    spec, info, model = opened(folder)
    options = ADAPTERS[kind](rank=3, alpha=5.0, targets=targets, **more).low_rank()
    attach(model, options, fill=True)
    shaken(model)
    layout = Layout(model, spec.model, info, "causal_lm")
    return spec, model, adapter_files(layout, model, options, "causal_lm", str(folder))


@pytest.mark.parametrize(
    ("kind", "targets", "more"),
    [
        ("lora", ["*.ffn.gate", "*.ffn.up", "*.ffn.down", "*.qkv.q"], {}),
        ("lora", ["*.ffn", "*.out"], {}),
        ("rslora", ["*.ffn.up"], {}),
        ("pissa", ["*.ffn.down", "*.ffn.gate"], {}),
        ("lora", ["*.ffn.gate", "*.ffn.up"], {"rank_pattern": {"*.ffn.up": 2}}),
    ],
)
def test_peft_opens_it_and_it_comes_back_to_the_bit(
    family: Any, tmp_path: Path, kind: str, targets: list[str], more: dict[str, Any]
) -> None:
    folder, _ = family
    _, ours, files = adapted(folder, targets, kind, **more)
    plain = opened(folder)[2](TOKENS)
    path = written(tmp_path / "adapter", files)
    theirs = peft.PeftModel.from_pretrained(published(folder), path).eval()
    expected = ours.eval()(TOKENS)
    assert (expected - plain).abs().max() > 0.01 * plain.abs().max()
    close(theirs(TOKENS).logits, expected)
    close(theirs.merge_and_unload()(TOKENS).logits, expected)
    _, again = read(folder, path)
    close(again.eval()(TOKENS), expected)
    if kind != "pissa" and not more:  # of one scale, in a plain one's rank
        state = again.state_dict()
        assert all(torch.equal(t, state[n]) for n, t in ours.state_dict().items())


@pytest.mark.parametrize("count", [1, 2])
def test_what_peft_saved_is_read(family: Any, tmp_path: Path, count: int) -> None:
    folder, stacks = family
    config = peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=["o_proj"], target_parameters=stacks[:count],
        task_type="CAUSAL_LM", use_rslora=count == 1,
    )  # fmt: skip
    theirs = peft.get_peft_model(published(folder), config)
    shaken(theirs)
    theirs.eval().save_pretrained(tmp_path / "theirs")
    _, ours = read(folder, tmp_path / "theirs")
    close(ours.eval()(TOKENS), theirs(TOKENS).logits)


def test_what_has_no_layout_is_refused_by_name(family: Any) -> None:
    folder, _ = family
    with pytest.raises(SpecError, match=r"ffn\.up.*: PEFT has no dora of experts"):
        adapted(folder, ["*.ffn.up"], "dora")
    with pytest.raises(SpecError, match=r"adapter\.dropout: blocks\.1\.ffn\.up"):
        adapted(folder, ["blocks.1.ffn.up"], dropout=0.1)


def test_experts_that_are_trained_whole(family: Any) -> None:
    """Of those that have a file's name each there is none that PEFT would find."""
    folder, _ = family
    if "mixtral" in str(folder) or "qwen" in str(folder):
        with pytest.raises(SpecError, match=r"modules_to_save: blocks\.0\.ffn\.up|ffn\.up"):
            adapted(folder, ["*.qkv.q"], modules_to_save=["blocks.1.ffn.up"])
    else:
        adapted(folder, ["*.qkv.q"], modules_to_save=["blocks.1.ffn.up"])


def test_stacks_that_do_not_fit(family: Any, tmp_path: Path) -> None:
    import json

    from safetensors.torch import load_file, save_file

    folder, _ = family
    _, _, files = adapted(folder, ["blocks.1.ffn.up", "blocks.1.ffn.down"])
    path = written(tmp_path / "a", files)
    config = json.loads((path / "adapter_config.json").read_text())
    name = config["target_parameters"][0]
    for changed, fault in (
        ([*config["target_parameters"], "mlp.experts.other"], "'mlp.experts.other': not a stack"),
        ([name], "not a module|stacks are not read|is not a module|where .* give"),
        (None, "stacks|not a module"),
    ):
        config["target_parameters"] = changed
        (path / "adapter_config.json").write_text(json.dumps(config))
        with pytest.raises(CheckpointError, match=fault):
            read(folder, path)
    path = written(tmp_path / "b", files)
    tensors = {n: t.clone() for n, t in load_file(path / "adapter_model.safetensors").items()}
    first = next(n for n in tensors if n.endswith("lora_B.weight"))
    save_file({**tensors, first: tensors[first][:-1]}, path / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="give"):
        read(folder, path)


def test_it_is_read_onto_a_published_model(tmp_path: Path, family: Any) -> None:
    folder, _ = family
    _, ours, files = adapted(folder, ["*.ffn.up"])
    path = written(tmp_path / "adapter", files)
    loaded = load_checkpoint(folder, "cpu", [f"adapter={{type: peft, path: {path}}}"])
    close(loaded.model(TOKENS), ours.eval()(TOKENS))
