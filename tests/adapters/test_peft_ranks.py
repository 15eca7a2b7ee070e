"""rank_pattern and alpha_pattern, ours and PEFT's, on a tiny random Llama and a GPT-2."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from test_peft_files import TOKENS, llama, published, read, saved, written

from bigmodel_cli.adapters import ADAPTERS, attach
from bigmodel_cli.convert.peft import adapter_files
from bigmodel_cli.convert.peft_layout import CONFIG, Layout
from bigmodel_cli.errors import CheckpointError

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")


def moved(model: Any, seed: int) -> Any:
    """The model with random numbers added to what is trained."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p += 0.2 * torch.randn(p.shape, generator=generator)
    return model.eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llama(tmp_path_factory.mktemp("llama"), False)


@pytest.mark.parametrize("more", [{}, {"use_dora": True}, {"use_rslora": True}])
def test_other_ranks_and_alphas_that_peft_saved_are_read(
    more: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    config = peft.LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=["q_proj", "v_proj", "up_proj", "embed_tokens"][: 3 if more else 4],
        task_type="CAUSAL_LM",
        rank_pattern={r"layers\.1\..*q_proj": 7, "v_proj": 1, "q_proj": 3, "embed_tokens": 2},
        alpha_pattern={
            "^model.layers.0.self_attn.v_proj": 5, r"layers\.\d+\.mlp\.(up|down)_proj": 9
        },
        **more,
    )  # fmt: skip
    theirs = moved(peft.get_peft_model(published(folder), config), 4)
    theirs.save_pretrained(tmp_path / "theirs", save_embedding_layers=False)
    spec, ours = read(folder, tmp_path / "theirs")
    torch.testing.assert_close(ours(TOKENS), theirs(TOKENS).logits, rtol=1e-5, atol=1e-5)
    assert spec.adapter.rank_pattern["blocks.1.mixer.qkv.q"] == 7
    assert spec.adapter.alpha_pattern["blocks.0.mixer.qkv.v"] == 5
    assert "blocks.1.mixer.qkv.v" not in spec.adapter.alpha_pattern


@pytest.mark.parametrize("kind", ["lora", "rslora", "dora", "pissa"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_ours_are_opened_by_peft_and_come_back_to_the_bit(
    family: str, kind: str, folder: Path, tmp_path: Path
) -> None:
    """GPT-2's queries, keys and values are one module there: their ranks add up."""
    from test_peft_files import opened, published_class

    base = folder if family == "llama" else saved(tmp_path / "gpt2", family)
    spec, info, ours = opened(base)
    options = ADAPTERS[kind].model_validate(
        {
            "rank": 3, "alpha": 5, "targets": ["*.qkv", "blocks.*.mixer.out"],
            "rank_pattern": {"blocks.0.*.q": 5, "*.v": 2, "*.out": 1},
            "alpha_pattern": {"blocks.1.mixer.out": 7}
            if family == "gpt2"
            else {"*.v": 4, "blocks.1.*.q": 9},
        }
    ).low_rank()  # fmt: skip
    attach(ours, options, fill=True)
    moved(ours, 2)
    layout = Layout(ours, spec.model, info, "causal_lm")
    files = adapter_files(layout, ours, options, "causal_lm", "base")
    path = written(tmp_path / "adapter", files)
    expected = ours(TOKENS)
    published_ = (
        published(base) if family == "llama" else published_class(family).from_pretrained(base)
    )
    theirs = peft.PeftModel.from_pretrained(published_, path).eval()
    torch.testing.assert_close(theirs(TOKENS).logits, expected, rtol=1e-5, atol=1e-5)
    read_spec, again = read(base, path)
    if family == "llama":  # else one scale, where ours are several
        assert torch.equal(again(TOKENS), expected)
    torch.testing.assert_close(again(TOKENS), expected, rtol=1e-5, atol=1e-5)
    if kind != "pissa" and family == "llama":
        files_again = adapter_files(
            Layout(again, spec.model, info, "causal_lm"), again, read_spec.adapter, "causal_lm",
            "base",
        )  # fmt: skip
        assert files_again == files


def test_the_first_pattern_that_fits_counts_and_one_that_fits_nothing_is_refused(
    folder: Path,
) -> None:
    from test_peft_files import opened

    from bigmodel_cli.adapters import adapters

    values = {"targets": ["*.qkv.q", "*.qkv.v"], "rank": 2}
    _, _, model = opened(folder)
    lora = ADAPTERS["lora"].model_validate({**values, "rank_pattern": {"*.q": 3, "*.qkv": 4}})
    attach(model, lora.low_rank(), fill=True)
    parts = adapters(model)["blocks.0.mixer.qkv.weight"].factors()
    assert {name: (p.rank, p.scale) for name, p in parts.items()} == {
        "q": (3, 16 / 3), "v": (4, 4.0)
    }  # fmt: skip
    _, _, model = opened(folder)
    lora = ADAPTERS["lora"].model_validate({**values, "alpha_pattern": {"*.k": 3}})
    with pytest.raises(ValueError, match=r"alpha_pattern: '\*.k' matches no weight"):
        attach(model, lora.low_rank(), fill=True)


@pytest.mark.parametrize(
    ("key", "value", "fault"),
    [
        ("rank_pattern", {"q_proj": 0}, "'0' is not a number above 0"),
        ("rank_pattern", {"q_proj": 3.0}, "'3.0' is not a number above 0"),
        ("alpha_pattern", {"q_proj": float("inf")}, "'inf' is not a number above 0"),
        ("alpha_pattern", {"q_proj": True}, "'True' is not"),
        ("alpha_pattern", {"(a+)+b": 2}, "a pattern of this kind is not read"),
        ("alpha_pattern", {".*.*.*.*.*.*.*.*.*b": 2}, "a pattern of this kind is not read"),
        ("alpha_pattern", {"(?:.*)": 2}, "a pattern of this kind is not read"),
        ("alpha_pattern", {"a{1000000}": 2}, "a pattern of this kind is not read"),
        ("alpha_pattern", {"(a": 2}, "not a pattern"),
        ("alpha_pattern", {f"{i}.*q.*": 2 for i in range(40_000)}, "is not read"),
    ],
)  # fmt: skip
def test_patterns_of_a_strangers_file_cost_little(
    key: str, value: Any, fault: str, folder: Path, tmp_path: Path
) -> None:
    theirs = peft.get_peft_model(
        published(folder), peft.LoraConfig(r=3, target_modules=["q_proj"], task_type="CAUSAL_LM")
    )
    theirs.save_pretrained(tmp_path / "theirs")
    path = tmp_path / "theirs" / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    began = time.process_time()
    with pytest.raises(CheckpointError, match=fault):
        read(folder, tmp_path / "theirs")
    assert time.process_time() - began < 5


def test_two_modules_that_share_a_weight_have_one_scale(tmp_path: Path) -> None:
    """Else one of them would have been scaled as the other, without a word."""
    base = llama(tmp_path / "llama", True)
    from test_peft_files import adapted

    files, _ = adapted(base, "lora", ["embedding"])
    path = written(tmp_path / "adapter", files)
    config = json.loads((path / CONFIG).read_text())
    (path / CONFIG).write_text(json.dumps({**config, "alpha_pattern": {"lm_head": 50}}))
    with pytest.raises(CheckpointError, match="another adapter than of the module"):
        read(base, path)
