"""`predict --embed`: a vector for each text, as sentence-transformers' files say."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from published import drawn, off, saved, with_tokenizer
from torch import Tensor

from bigmodel_cli.convert import hub
from bigmodel_cli.convert.sentences import sentences
from bigmodel_cli.errors import CheckpointError

transformers = pytest.importorskip("transformers")

TEXTS = ("w20 w21 w9", "w3", "w30 w31 w32 w33 w34 w35 w36 w8 w9 w10")
NAMES = "sentence_transformers.models."


@pytest.fixture(scope="module")
def model() -> Any:
    config = transformers.BertConfig(
        vocab_size=37, hidden_size=36, num_hidden_layers=2, num_attention_heads=3,
        intermediate_size=50, max_position_embeddings=23,
    )  # fmt: skip
    return drawn(transformers.BertModel(config))


def with_modules(folder: Path, *kinds: str, **pooling: Any) -> Path:
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": NAMES + kind}
        for i, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder


def hidden(model: Any, text: str, longest: int) -> Tensor:
    """(T, C) of a text, with the marks that the tokenizer sets."""
    words = [int(word[1:]) for word in text.split()][: longest - 2]
    with torch.no_grad():
        states: Tensor = model(torch.tensor([[5, *words, 6]])).last_hidden_state[0]
    return states


def vectors(cli: Any, folder: Path) -> tuple[Tensor, str]:
    found = cli("predict", folder, "--embed", *TEXTS)
    assert found.status == 0, found.err
    records = [json.loads(line) for line in found.out.splitlines()]
    assert [record["input"] for record in records] == list(TEXTS)
    return torch.tensor([record["embedding"] for record in records]), found.err


@pytest.mark.parametrize("mode", ["pooling_mode_mean_tokens", "pooling_mode_cls_token"])
def test_as_the_folder_says(model: Any, mode: str, tmp_path: Path, cli: Any) -> None:
    folder = with_tokenizer(saved(model, tmp_path), "[MASK]")
    with_modules(folder, "Transformer", "Pooling", "Normalize", **{mode: True})
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 7}))
    got, said = vectors(cli, folder)
    assert f"embeddings: {'mean' if 'mean' in mode else 'cls'}, normalised" in said
    assert "1 of 3 inputs were cut: the model reads 7 tokens" in said
    for row, text in zip(got, TEXTS, strict=True):
        states = hidden(model, text, 7)
        want = states.mean(0) if "mean" in mode else states[0]
        assert off(row, want / want.norm()) <= 1e-5


def test_without_such_files_by_the_models_pool(model: Any, tmp_path: Path, cli: Any) -> None:
    folder = with_tokenizer(saved(model, tmp_path), "[MASK]")
    got, _ = vectors(cli, folder)
    for row, text in zip(got, TEXTS, strict=True):
        assert off(row, hidden(model, text, 23)[0]) <= 1e-5


@pytest.mark.parametrize(
    ("kinds", "pooling", "text"),
    [
        (("Transformer", "Pooling", "Dense"), {}, "Transformer, Pooling, Dense: not built"),
        (("Transformer", "Pooling"), {"pooling_mode_max_tokens": True}, "max_tokens: not built"),
        (("Transformer", "Pooling"), {}, "no pooling_mode: not built"),
    ],
)
def test_other_ways_are_refused(
    kinds: tuple[str, ...], pooling: dict[str, Any], text: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=text):
        sentences(with_modules(tmp_path, *kinds, **pooling))


def test_prompt_and_case_are_those_of_the_files(cli: Any, model: Any, tmp_path: Path) -> None:
    """As sentence-transformers: the prompt, blanks at both ends gone, then lower case."""
    folder = with_modules(
        with_tokenizer(saved(model, tmp_path), "[MASK]"),
        *("Transformer", "Pooling"), pooling_mode_mean_tokens=True,
    )  # fmt: skip
    (folder / "sentence_bert_config.json").write_text('{"do_lower_case": true}')
    prompts = {"prompts": {"query": "W8 w9 ", "plain": ""}, "default_prompt_name": "query"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    found = cli("predict", folder, "--embed", "W20 w21 ")
    want = hidden(model, "w8 w9 w20 w21", 23).mean(0)
    record = json.loads(found.out)
    assert off(torch.tensor(record["embedding"]), want) < 1e-5
    assert record["input"] == "W20 w21 "
    assert "mean, in lower case; each text begins with 'W8 w9 '" in found.err

    pooling = folder / "1_Pooling" / "config.json"
    pooling.write_text('{"pooling_mode_mean_tokens": true, "include_prompt": false}')
    with pytest.raises(CheckpointError, match="include_prompt: false is not built"):
        sentences(folder)
    prompts["default_prompt_name"] = "other"
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    with pytest.raises(CheckpointError, match="prompts has no 'other'"):
        sentences(folder)


def test_a_model_of_the_hub_is_pooled_as_its_files_say(
    cli: Any, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its modules were not fetched, so that another vector came out, not normalised."""
    pytest.importorskip("huggingface_hub")
    plain = tmp_path / "plain"
    plain.mkdir()
    with_tokenizer(saved(model, plain), "[MASK]")
    with_modules(plain, "Transformer", "Pooling", "Normalize", pooling_mode_mean_tokens=True)
    root, commit = tmp_path / "hub" / "models--org--tiny", "a" * 40
    for number, path in enumerate(p for p in sorted(plain.rglob("*")) if p.is_file()):
        inside = path.relative_to(plain)
        blob, link = root / "blobs" / f"{number:040x}", root / "snapshots" / commit / inside
        for made in (blob, link):
            made.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, blob)
        link.symlink_to("../" * (1 + len(inside.parts)) + f"blobs/{blob.name}")
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(commit)
    constants = importlib.import_module("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked: list[str] = []
    snapshot = hub._snapshot

    def recorded(name: str, revision: str | None, files: list[str]) -> Path:
        asked.extend(files)
        return snapshot(name, revision, files)

    monkeypatch.setattr(hub, "_snapshot", recorded)
    found, _ = vectors(cli, Path("hf://org/tiny"))
    assert torch.equal(found, vectors(cli, plain)[0])
    assert {"modules.json", "sentence_bert_config.json"} <= {*asked}


def test_a_module_outside_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    modules = [{"type": "Transformer", "path": ""}, {"type": "Pooling", "path": "../other"}]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(CheckpointError, match=r"\.\./other"):
        sentences(tmp_path)
    (tmp_path / "1_Pooling").symlink_to(tmp_path.parent)
    (tmp_path / "modules.json").write_text(
        json.dumps([modules[0], {**modules[1], "path": "1_Pooling"}])
    )
    with pytest.raises(CheckpointError, match="a link"):
        sentences(tmp_path)


def test_a_model_without_texts_is_refused(cli: Any, tmp_path: Path) -> None:
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=37, n_positions=9, n_embd=8, n_layer=1, n_head=2, eos_token_id=6,
        bos_token_id=5,
    ))  # fmt: skip
    found = cli("predict", with_tokenizer(saved(model, tmp_path), None), "--embed", "w3")
    assert found.status == 2
    assert "--embed is for encoders of texts" in found.err


def test_heads_of_a_body_without_a_head_look(cli: Any, model: Any, tmp_path: Path) -> None:
    """A sentence encoder has no answer, and its attention is shown all the same."""
    with_tokenizer(saved(model, tmp_path), "[MASK]")
    looked = cli("attend", tmp_path, "some words", "--json")
    assert looked.status == 0, looked.err
    found = json.loads(looked.out)
    assert found["layers"]
    assert not found.get("answer")
    lens = cli("attend", tmp_path, "some words", "--lens")
    assert lens.status == 4
    assert "without a head that answers" in lens.err
