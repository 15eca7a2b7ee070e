"""PEFT's files in both directions, on a tiny random Llama of transformers."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Result
from safetensors.torch import load_file, save_file

from bigmodel_cli import checkpoints
from bigmodel_cli.adapters import ADAPTERS, attach, merged
from bigmodel_cli.adapting import adapt, with_files_read
from bigmodel_cli.assemble import build_for, build_on_meta
from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.convert import opening
from bigmodel_cli.convert.peft import adapter_files
from bigmodel_cli.convert.peft_layout import CONFIG, WEIGHTS, Layout
from bigmodel_cli.errors import CheckpointError, SpecError
from bigmodel_cli.spec import of_checkpoint

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore:.*tie")
TOKENS = torch.tensor([[3, 86, 5, 5, 17, 60, 2], [1, 0, 30, 44, 9, 71, 86]])
QV, ALL = ["*.qkv.q", "*.qkv.v"], ["blocks", "embedding", "head"]
FAULTS = {
    "renamed": "'model.layers.1.attn.v' is not a module of this model",
    "missing": "one of its tensors is missing",
    "more": "is not a module of this model",
    "nan": "not finite",
    "gone": "adapter_model.bin is a pickle",
    "untied": "another adapter than of the module whose weights it shares",
}


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved Llama with its head tied to its embedding, or not."""
    return llama(tmp_path_factory.mktemp("llama"), request.param)


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first of these alone."""
    return llama(tmp_path_factory.mktemp("llama"), True)


def llama(path: Path, tie: bool) -> Path:
    """A Llama with 6 heads of 10 on a width of 48, biases, every weight drawn anew."""
    config = transformers.LlamaConfig(
        vocab_size=89,
        hidden_size=48,
        intermediate_size=70,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=10,
        attention_bias=True,
        max_position_embeddings=32,
        tie_word_embeddings=tie,
    )
    model = transformers.LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0.1 if p.dim() == 1 else 0.0, 0.2, generator=generator)
    model.save_pretrained(path)
    return path


def published(folder: Path) -> Any:
    """The same model as transformers has it."""
    return copy.deepcopy(_loaded(folder))


@functools.cache
def _loaded(folder: Path) -> Any:
    return transformers.LlamaForCausalLM.from_pretrained(folder).eval()


def opened(folder: Path) -> tuple[Any, DatasetInfo, Any]:
    found = opening.read(folder)
    spec, info = of_checkpoint(found.spec, folder), DatasetInfo.from_json(found.info)
    model = build_for(spec, info, found.model)
    checkpoints.load_weights(model, found.model)
    return spec, info, model.eval()


def adapted(
    folder: Path,
    kind: str,
    targets: list[str],
    whole: tuple[str, ...] = ("norm",),
    task: str = "causal_lm",
) -> tuple[dict[str, bytes], Any]:
    """The files of an adapter with random numbers, and its model."""
    spec, info, model = opened(folder)
    options = ADAPTERS[kind](rank=3, alpha=5.0, targets=targets, modules_to_save=[*whole])
    attach(model, options.low_rank(), fill=True)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p += 0.1 * torch.randn(p.shape, generator=generator)
    layout = Layout(model, spec.model, info, task)
    files = adapter_files(layout, model, options.low_rank(), task, str(folder))
    return files, model


def written(path: Path, files: dict[str, bytes]) -> Path:
    path.mkdir(exist_ok=True)
    for name, content in files.items():
        (path / name).write_bytes(content)
    return path


def read(folder: Path, path: Path) -> tuple[Any, Any]:
    """The base with the adapter in `path`, by the spec's {type: peft}."""
    spec, info, model = opened(folder)
    spec = spec.model_copy(update={"adapter": ADAPTERS["peft"](path=str(path))})
    spec = with_files_read(spec, info, build_on_meta)
    adapt(spec, info, model)
    return spec, model


@pytest.mark.parametrize("targets", [QV, ALL], ids=["qv", "all"])
@pytest.mark.parametrize("kind", ["lora", "rslora", "dora", "pissa"])
def test_peft_opens_it_with_equal_logits_and_it_comes_back_to_the_bit(
    kind: str, targets: list[str], folder: Path, tmp_path: Path
) -> None:
    tied = "lm_head.weight" not in load_file(folder / "model.safetensors")
    if kind == "dora" and tied and targets != QV:
        with pytest.raises(SpecError, match="dora on a tied embedding"):
            adapted(folder, kind, targets)
        return
    files, ours = adapted(folder, kind, targets)
    path = written(tmp_path / "adapter", files)
    theirs = peft.PeftModel.from_pretrained(published(folder), path).eval()
    expected = ours(TOKENS)
    torch.testing.assert_close(theirs(TOKENS).logits, expected, rtol=1e-5, atol=1e-5)
    if not (tied and targets != QV):  # PEFT would add to the one tensor twice
        plain = theirs.merge_and_unload()
        torch.testing.assert_close(plain(TOKENS).logits, expected, rtol=1e-5, atol=1e-5)
    spec, again = read(folder, path)
    assert torch.equal(again(TOKENS), expected)
    if kind != "pissa":  # which is a plain one there, of twice the rank
        assert spec.adapter.type == kind
        state = again.state_dict()
        assert all(torch.equal(t, state[n]) for n, t in ours.state_dict().items())
    _, info, _ = opened(folder)
    layout = Layout(again, spec.model, info, "causal_lm")
    assert files == adapter_files(layout, again, spec.adapter, "causal_lm", str(folder))


@pytest.mark.parametrize("more", [{}, {"use_dora": True}, {"use_rslora": True}])
def test_what_peft_saved_is_read(more: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    config = peft.LoraConfig(
        r=4,
        lora_alpha=6,
        lora_dropout=0.2,
        target_modules=["k_proj", "o_proj", "up_proj"],
        modules_to_save=["norm"],
        task_type="CAUSAL_LM",
        **more,
    )
    theirs = peft.get_peft_model(published(folder), config)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for p in theirs.parameters():
            if p.requires_grad:
                p += 0.2 * torch.randn(p.shape, generator=generator)
    theirs.eval().save_pretrained(tmp_path / "theirs")
    spec, ours = read(folder, tmp_path / "theirs")
    torch.testing.assert_close(ours(TOKENS), theirs(TOKENS).logits, rtol=1e-5, atol=1e-5)
    assert spec.adapter.dropout == 0.2
    assert "blocks.1.mixer.qkv.k" in spec.adapter.targets
    assert not any(name.endswith(".q") for name in spec.adapter.targets)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"model.embed_tokens.weight": torch.zeros(92, 48)}, r"\[92, 48\].*\[89, 48\]"),
        ({"model.embed_tokens.weight": torch.zeros(80, 48)}, r"\[80, 48\].*\[89, 48\]"),
        ({"model.norm.weight": torch.ones(1)}, r"\[1\].*\[48\]"),
        ({"model.norm.weight": torch.ones(48, dtype=torch.int32)}, "int32"),
        ({"model.norm.weight": None}, "modules_to_save: model.norm: .* has nothing of it"),
    ],
)
def test_a_module_that_is_saved_whole_has_all_its_rows(
    changes: dict[str, Any], fault: str, folder: Path, tmp_path: Path
) -> None:
    """One with more or fewer rows, of another vocabulary, was cut or filled in part."""
    files, _ = adapted(folder, "lora", QV)
    path = written(tmp_path / "adapter", files)
    found = load_file(path / WEIGHTS)
    for name, tensor in changes.items():
        found.pop(f"base_model.model.{name}", None)
        if tensor is not None:
            found[f"base_model.model.{name}"] = tensor
    save_file(found, path / WEIGHTS)
    with pytest.raises(CheckpointError, match=fault):
        read(folder, path)


def test_frozen_weights_that_peft_saves_along_are_those_of_the_model(
    folder: Path, tmp_path: Path
) -> None:
    """An embedding's are saved beside its factors; the folder was refused."""
    config = peft.LoraConfig(
        r=3, lora_alpha=4, target_modules=["embed_tokens", "q_proj"], task_type="CAUSAL_LM",
        init_lora_weights=False,
    )  # fmt: skip
    theirs = peft.get_peft_model(published(folder), config).eval()
    theirs.save_pretrained(tmp_path / "theirs", save_embedding_layers=True)
    path = tmp_path / "theirs" / WEIGHTS
    found = load_file(path)
    name = "base_model.model.model.embed_tokens.base_layer.weight"
    if name not in found:
        pytest.skip("this version of peft does not save it")
    if theirs.config.tie_word_embeddings:
        with pytest.raises(CheckpointError, match="tied"):  # both modules would change here
            read(folder, path.parent)
        return
    _, ours = read(folder, path.parent)
    torch.testing.assert_close(ours(TOKENS), theirs(TOKENS).logits, rtol=1e-5, atol=1e-5)
    found[name][3, 4] += 1
    save_file(found, path)
    with pytest.raises(CheckpointError, match="other weights than the model's"):
        read(folder, path.parent)


def saved(path: Path, kind: str) -> Path:
    """A random model of another family, with two blocks of 24 channels and 3 heads."""
    shared = {"vocab_size": 89}
    wide = {"hidden_size": 24, "num_attention_heads": 3, "num_hidden_layers": 2, "num_labels": 3}
    config: Any = {
        "gpt2": lambda: transformers.GPT2Config(n_embd=24, n_head=3, n_layer=2, **shared),
        "roberta": lambda: transformers.RobertaConfig(intermediate_size=40, **wide, **shared),
        "modernbert": lambda: transformers.ModernBertConfig(
            intermediate_size=40,
            **wide,
            **shared,
            **dict.fromkeys(
                [f"{name}_token_id" for name in ("pad", "bos", "eos", "cls", "sep")], 1
            ),
        ),
    }[kind]()
    model = published_class(kind)(config)
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0.1 if p.dim() == 1 else 0.0, 0.2, generator=generator)
    model.save_pretrained(path)
    return path


def published_class(kind: str) -> Any:
    name = {"gpt2": "GPT2LMHeadModel", "roberta": "RobertaForSequenceClassification"}
    return getattr(transformers, name.get(kind, "ModernBertForSequenceClassification"))


@pytest.mark.parametrize("adapter", ["lora", "dora"])
@pytest.mark.parametrize("kind", ["gpt2", "roberta", "modernbert"])
def test_families_whose_matrices_are_several_of_ours_or_the_other_way_round(
    kind: str, adapter: str, tmp_path: Path
) -> None:
    """GPT-2's q, k, v in one matrix, inputs first; ModernBERT's gate and up in one; RoBERTa's
    table of positions with two unused rows, and its head of two layers, which PEFT saves whole.
    """
    folder = saved(tmp_path / "model", kind)
    task = "causal_lm" if kind == "gpt2" else "classification"
    whole = () if kind == "gpt2" else ("head",)
    targets = ["blocks"] if kind == "gpt2" else ["blocks", "embedding", "position"]
    targets = targets[: 2 if kind == "modernbert" else 3]
    files, ours = adapted(folder, adapter, targets, whole, task)
    path = written(tmp_path / "adapter", files)
    base = published_class(kind).from_pretrained(folder)
    theirs = peft.PeftModel.from_pretrained(base, path).eval()
    expected = ours(TOKENS + 2)
    found = theirs(input_ids=TOKENS + 2).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    _, again = read(folder, path)
    assert torch.equal(again(TOKENS + 2), expected)


def test_several_adapters_on_one_base(tied: Path, tmp_path: Path) -> None:
    one, first = adapted(tied, "lora", QV)
    two, second = adapted(tied, "rslora", ["*.ffn"])
    for files, model in ((one, first), (two, second)):
        _, again = read(tied, written(tmp_path / "a", files))
        assert torch.equal(again(TOKENS), model(TOKENS))
    assert float((first(TOKENS) - second(TOKENS)).abs().max()) > 0.1


def test_merged_weights_are_those_of_the_family(tied: Path, tmp_path: Path) -> None:
    _, ours = adapted(tied, "lora", ALL)
    _, _, plain = opened(tied)
    plain.load_state_dict(merged(ours))
    torch.testing.assert_close(plain(TOKENS), ours(TOKENS), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("init_lora_weights", "pissa", "init_lora_weights: 'pissa' is not built"),
        ("peft_type", "IA3", "peft_type: 'IA3' is not built"),
        ("bias", "some", "bias: 'some' is not built"),
        ("rank_pattern", {"q_proj": 2}, "rank 3, where adapter_config.json says 2"),
        ("use_new_trick", True, "use_new_trick: not known"),
        ("r", 4, "rank 3, where adapter_config.json says 4"),
        ("use_dora", True, "lora_magnitude_vector and use_dora do not agree"),
    ],
)
def test_what_a_config_says_and_is_not_built_is_refused(
    key: str, value: Any, text: str, tied: Path, tmp_path: Path
) -> None:
    files, _ = adapted(tied, "lora", QV)
    path = written(tmp_path / "adapter", files)
    config = json.loads((path / CONFIG).read_text())
    (path / CONFIG).write_text(json.dumps({**config, key: value}))
    with pytest.raises(CheckpointError, match=text):
        read(tied, path)


@pytest.mark.parametrize("fault", FAULTS)
def test_tensors_that_do_not_fit_are_refused(fault: str, tied: Path, tmp_path: Path) -> None:
    files, _ = adapted(tied, "lora", ALL)
    path = written(tmp_path / "adapter", files)
    tensors = load_file(path / WEIGHTS)
    name = "base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight"
    head = "base_model.model.lm_head.lora_B.weight"
    if fault == "renamed":
        tensors["base_model.model.model.layers.1.attn.v.lora_B.weight"] = tensors.pop(name)
    elif fault == "missing":
        del tensors[name]
    elif fault == "more":
        tensors["base_model.model.model.layers.7.self_attn.v_proj.lora_B.weight"] = tensors[
            name
        ].clone()
    elif fault == "nan":
        tensors[name][0, 0] = float("nan")
    elif fault == "untied":
        tensors[head] = tensors[head] + 1
    save_file(tensors, path / WEIGHTS)
    if fault == "gone":
        (path / WEIGHTS).rename(path / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=FAULTS[fault]):
        read(tied, path)


def test_a_base_and_an_adapter_are_evaluated(
    tied: Path, tmp_path: Path, cli: Callable[..., Result]
) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    files, _ = adapted(tied, "lora", QV)
    written(tmp_path / "adapter", files)
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "rose": 1, "is": 2, "?": 3}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tied / "tokenizer.json"))
    Path("text.txt").write_text("a rose is a rose " * 60)
    data = ["--set", "data.files=[text.txt]", "--set", "data.context=8"]
    adapter = ["--set", "adapter={type: peft, path: adapter}"]
    plain, with_it = (cli("eval", tied, "--json", *data, *more) for more in ([], adapter))
    assert plain.status == with_it.status == 0, with_it.err
    assert json.loads(plain.out) != json.loads(with_it.out)
    run = ["finetune", "--from", tied, *data, *adapter, "--set", "train.batch_size=4"]
    result = cli(*run, "--set", "train.precision=fp32", "--out", "run")
    assert result.status == 0, result.err
    assert "type: lora" in Path("run/spec.yaml").read_text()
    for path in (tmp_path / "adapter").iterdir():
        path.unlink()
    assert cli("eval", "run").status == 0
    result = cli(*run, "--out", "other")
    assert result.status == 4
