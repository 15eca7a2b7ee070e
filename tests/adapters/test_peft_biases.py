"""Biases that PEFT trains beside factors, in both directions, against PEFT itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_peft_files import TOKENS, adapted, llama, opened, published, read, written

from bigmodel_cli.convert.peft import adapter_files
from bigmodel_cli.convert.peft_layout import Layout
from bigmodel_cli.errors import CheckpointError

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")
WEIGHTS = "adapter_model.safetensors"
TARGETS = {
    "llama": ["q_proj", "o_proj"],
    "gpt2": ["c_attn", "c_fc"],
    "bert": ["query", "key", "value", "dense"],
}
SIZE = {"vocab_size": 89, "hidden_size": 24, "num_attention_heads": 3, "num_hidden_layers": 2}


def base_of(kind: str, path: Path) -> tuple[Path, Any]:
    """A saved model with biases, and it as transformers has it."""
    if kind == "llama":
        return llama(path, False), published(path)
    if kind == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=89, n_embd=24, n_layer=2, n_head=3, n_positions=16
        )
        model = transformers.GPT2LMHeadModel(config)
    else:
        config = transformers.BertConfig(
            **SIZE, intermediate_size=36, max_position_embeddings=16, num_labels=3, pad_token_id=88
        )
        model = transformers.BertForSequenceClassification(config)
    changed(model, every=True)
    model.eval().save_pretrained(path)
    return path, model


def changed(model: Any, *, every: bool = False) -> Any:
    """Random numbers added to what is trained."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for p in model.parameters():
            if every or p.requires_grad:
                p += 0.2 * torch.randn(p.shape, generator=generator)
    return model.eval()


def again(kind: str, base: Path, spec: Any, model: Any) -> dict[str, bytes]:
    """What is read, written."""
    _, info, _ = opened(base)
    task = "classification" if kind == "bert" else "causal_lm"
    return adapter_files(
        Layout(model, spec.model, info, task), model, spec.adapter, task, str(base)
    )


@pytest.mark.parametrize("more", [{"bias": "all"}, {"bias": "lora_only"}, {"lora_bias": True}])
@pytest.mark.parametrize("kind", TARGETS)
def test_what_peft_trained_is_read_and_written(
    kind: str, more: dict[str, Any], tmp_path: Path
) -> None:
    base, model = base_of(kind, tmp_path / "base")
    task = "SEQ_CLS" if kind == "bert" else "CAUSAL_LM"
    config = peft.LoraConfig(
        r=2, lora_alpha=3, target_modules=TARGETS[kind], task_type=task, **more
    )
    theirs = changed(peft.get_peft_model(model, config))
    theirs.save_pretrained(tmp_path / "theirs")
    expected = theirs(TOKENS).logits
    spec, ours = read(base, tmp_path / "theirs")
    torch.testing.assert_close(ours.eval()(TOKENS), expected, rtol=2e-5, atol=2e-5)
    files = again(kind, base, spec, ours)
    out = written(tmp_path / "again", files)
    before, after = (load_file(tmp_path / at / WEIGHTS) for at in ("theirs", "again"))
    for name in before.keys() & after.keys():  # of GPT-2 q, k and v have an A each
        same = name.endswith(".bias") or kind != "gpt2"
        assert not same or torch.equal(before[name], after[name]), name
    said = json.loads((out / "adapter_config.json").read_text())
    if "bias" in more and kind != "llama":
        copies = {n for n in before if n.split(".")[-2] in ("original_module", "modules_to_save")}
        assert before.keys() - copies == after.keys()
        assert said["bias"] == more["bias"]
    kinds = {"gpt2": "GPT2LMHeadModel", "bert": "BertForSequenceClassification"}
    plain = getattr(transformers, kinds.get(kind, "LlamaForCausalLM")).from_pretrained(base)
    opened_by_peft = peft.PeftModel.from_pretrained(plain, out).eval()
    torch.testing.assert_close(opened_by_peft(TOKENS).logits, expected, rtol=2e-5, atol=2e-5)


def test_biases_of_ours_open_in_peft_and_come_back_to_the_bit(tmp_path: Path) -> None:
    base = llama(tmp_path / "base", False)
    for targets, mode in ((["*.qkv", "*.out"], "lora_only"), (["*.qkv.q"], "all")):
        files, ours = adapted(base, "dora", targets, ("*.bias",))
        out = written(tmp_path / mode, files)
        assert json.loads(files["adapter_config.json"])["bias"] == mode
        theirs = peft.PeftModel.from_pretrained(published(base), out).eval()
        expected = ours.eval()(TOKENS)
        torch.testing.assert_close(theirs(TOKENS).logits, expected, rtol=2e-5, atol=2e-5)
        _, back = read(base, out)
        state, own = back.state_dict(), ours.state_dict()
        assert {n for n, p in back.named_parameters() if p.requires_grad} == {
            n for n, p in ours.named_parameters() if p.requires_grad
        }
        assert all(torch.equal(state[name], own[name]) for name in own)


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    base = llama(tmp_path / "base", False)
    files, _ = adapted(base, "lora", ["*.qkv", "*.out"], ("*.bias",))
    out = written(tmp_path / "out", files)
    tensors = load_file(out / WEIGHTS)
    name = "base_model.model.model.layers.1.self_attn.v_proj.base_layer.bias"
    save_file({n: t for n, t in tensors.items() if n != name}, out / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"1\.self_attn\.v_proj\.bias: missing"):
        read(base, out)
    save_file({**tensors, name: torch.zeros(7)}, out / WEIGHTS)
    with pytest.raises(CheckpointError, match="of another model"):
        read(base, out)
    config = json.loads(files["adapter_config.json"])
    (out / "adapter_config.json").write_text(json.dumps({**config, "bias": "none"}))
    save_file(tensors, out / WEIGHTS)
    with pytest.raises(CheckpointError, match="other weights than the model's"):
        read(base, out)
    lacking = "base_model.model.model.layers.0.mlp.up_proj"
    save_file({**tensors, f"{lacking}.lora_B.bias": torch.zeros(70)}, out / WEIGHTS)
    (out / "adapter_config.json").write_text(json.dumps({**config, "lora_bias": True}))
    with pytest.raises(CheckpointError, match="lora_bias, and this layer of the model has no bias"):
        read(base, out)
