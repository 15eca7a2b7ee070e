"""Folders as checkpoints: what is loaded, new, ignored and guessed; tokens; dtypes; faults."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import Result
from folders import LLAMA, drawn_folder, llama_folder, llama_tensors, write_tensors
from tampered import bounded

from bigmodel_cli.convert import opening
from bigmodel_cli.convert.config import Config
from bigmodel_cli.convert.rules import Half, Rule, check_complete, nth, rows, transposed
from bigmodel_cli.convert.weights import WEIGHTS
from bigmodel_cli.data import load_tokenizer
from bigmodel_cli.errors import CheckpointError
from bigmodel_cli.loaded import load_checkpoint

Cli = Callable[..., Result]
GREEDY = ("--temperature", "0", "--max-tokens", "4", "--device", "cpu")
BODY = {
    "model_type": "bert", "architectures": ["BertModel"], "hidden_size": 12,
    "num_attention_heads": 3, "num_hidden_layers": 1, "intermediate_size": 20, "vocab_size": 259,
    "max_position_embeddings": 24, "bos_token_id": 256, "eos_token_id": 256,
}  # fmt: skip


def tuned(cli: Cli, source: str, **more: Any) -> Result:
    """One step of finetuning from it."""
    Path("a.txt").write_text("abba " * 100)
    spec = {
        "data": {"type": "text", "files": ["a.txt"], "context": 8},
        "train": {"steps": 1, "batch_size": 2, "precision": "fp32"},
        **more,
    }
    Path("a.yaml").write_text(yaml.safe_dump(spec))
    return cli("finetune", "--from", source, "a.yaml", "--out", "run", "--device", "cpu")


def test_rules_are_inverse_to_the_bit_also_in_pieces() -> None:
    ours = {"a": torch.arange(60.0).view(12, 5).clone(), "b": torch.zeros(2, 4, 3)}
    rules = [
        Rule("q", "a", rows(0, 6), order=[3, 0, 4, 1, 5, 2]),
        Rule("k", "a", rows(6, 6), skip=2),
        Rule("e0", "b", nth(0, transposed)),
        Rule("e1", "b", nth(1), half=None),
    ]
    check_complete(rules, ours, ours)
    for rule in rules:
        theirs = torch.randn(rule.shape(ours[rule.ours]))
        whole, pieces = (torch.zeros_like(ours[rule.ours]) for _ in range(2))
        rule.load(whole, theirs)
        for first in range(len(theirs)):
            rule.load(pieces, theirs[first : first + 1], first)
        assert torch.equal(whole, pieces)
        assert torch.equal(rule.save(whole), theirs[rule.skip :])
    with pytest.raises(AssertionError, match="30 of 60"):
        check_complete(rules[:1], ours, ["a"])
    mixed = Rule("m", "a", rows(0, 12), half=Half(1, True, mixed=True))
    theirs, place = torch.randn(12, 10), torch.zeros(12, 5)
    for first in (0, 5, 10):
        mixed.load(place, theirs[first : first + 5], first)
    assert torch.equal(place, theirs[:, 1::2])


def test_absent_is_not_null_and_no_key_is_passed_over() -> None:
    config = Config({"window": None, "odd": 1, "size": 3}, "config.json")
    assert config.maybe("window", int, 4096) is None
    assert config.maybe("other", int, 4096) == 4096
    assert config.get("size", float) == 3.0
    with pytest.raises(CheckpointError, match="odd: not known for this family"):
        config.finish()
    for values, fault in (
        ({"n_layers": 10**9}, "not one of -1 to 2,000"),
        ({"n_layers": -2}, "not one of"),
        ({"n_layers": True}, "not a whole number"),
        ({}, "missing"),
    ):
        with pytest.raises(CheckpointError, match=fault):
            Config(values, "config.json").get("n_layers", int)


def test_a_folder_is_used_and_says_what_it_ignores(cli: Cli) -> None:
    inv = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(3) for i in range(2)}
    llama_folder(Path("a"), {**llama_tensors(), **inv}, shards=3)
    found = cli("predict", "a", "ab", *GREEDY)
    assert found.status == 0
    assert "a: ignored: model.layers.*.self_attn.rotary_emb.inv_freq (2)" in found.err
    llama_folder(Path("b"), {**llama_tensors(), "extra": torch.ones(3)})
    assert "1 tensor that the model has no place for: extra" in cli("predict", "b", "ab").err


def test_a_folder_may_be_called_as_a_value_of_its_spec(cli: Cli) -> None:
    llama_folder(Path("text"), llama_tensors())  # data.type: text
    found = cli("predict", "text", "ab", *GREEDY)
    assert found.status == 0, found.err
    assert opening.read_spec(Path("text"))["data"]["type"] == "text"


def test_a_spec_with_another_network_is_refused_with_the_way_to_the_folders(cli: Cli) -> None:
    drawn_folder(Path("body"), BODY)
    Path("rows.csv").write_text("good,yes\nbad,no\n" * 10)
    data = {"type": "table", "train": ["rows.csv"], "text": [0], "label": 1, "context": 8}
    own = {"type": "encoder", "dim": 4, "blocks": [{"ffn": "gelu"}]}
    given = {"data": {**data, "tokenizer": "bytes"}, "task": {"type": "classification"}}
    other = tuned(cli, "body", model=own, **given)
    assert other.status == 4
    assert "the spec's model differs in model.dim" in other.err
    assert "leave it out, or --set model=null, to take the checkpoint's\n  " in other.err
    again = cli("finetune", "--from", "body", "a.yaml", "--set", "model=null", "--out", "b")
    assert again.status == 0, again.err
    assert again.err.count("without a head: a task") == 1  # though it is read anew
    assert "the body of a network, without a head that answers\n" in again.err  # and no remedy


def test_a_body_gets_a_head_and_cannot_answer_without_one(cli: Cli) -> None:
    drawn_folder(Path("body"), BODY)
    found = cli("predict", "body", "ab")
    assert found.status == 4
    assert "the body of a network, without a head" in found.err
    assert "bigmodel finetune --from body SPEC" in found.err
    assert cli("eval", "body").status == 4
    Path("rows.csv").write_text("good,yes\nbad,no\n" * 10)
    data = {"type": "table", "train": ["rows.csv"], "text": [0], "label": 1, "context": 8}
    run = tuned(
        cli, "body", data={**data, "tokenizer": "bytes"}, task={"type": "classification"},
        model={"type": "encoder", **opening.read_spec(Path("body"))["model"]},
    )  # fmt: skip
    assert run.status == 0, run.err
    assert "newly initialised, since the checkpoint has no head: " in run.err
    assert "head.weight" in run.err


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_weights_are_used_and_written_as_they_are_stored(
    dtype: torch.dtype, cli: Cli
) -> None:
    name = str(dtype).removeprefix("torch.")
    llama_folder(Path("a"), llama_tensors(dtype), shards=2, torch_dtype=name)
    loaded = load_checkpoint(Path("a"), "cpu")
    held = dtype if dtype == torch.bfloat16 else torch.float32  # fp16 is not for CPUs
    assert {p.dtype for p in loaded.model.parameters()} == {held}
    wide = load_checkpoint(Path("a"), "cpu", ["train.precision=fp32"])
    tokens = torch.tensor([[1, 2, 3, 4]])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, held == torch.bfloat16):
        got = loaded.model(tokens).float()
    with torch.no_grad():
        want = wide.model(tokens)
    assert float((got - want).abs().max() / want.abs().max()) <= 2e-2
    assert {p.dtype for p in wide.model.parameters()} == {torch.float32}

    assert cli("export", "a", "out").status == 0
    from safetensors.torch import load_file

    written = load_file("out/model.safetensors")
    assert all(torch.equal(written[n], t) for n, t in llama_tensors(dtype).items())
    assert tuned(cli, "a").status == 0
    back = cli("export", "run", "back")
    assert f"weights are rounded from fp32 to {name}, in which the model came" in back.err
    assert {t.dtype for t in load_file("back/model.safetensors").values()} == {dtype}
    assert json.loads(Path("back/config.json").read_bytes())["dtype"] == name


def test_a_pickle_is_read_without_running_code_and_said(cli: Cli) -> None:
    folder = llama_folder(Path("a"))
    want = cli("predict", "a", "ab", *GREEDY).out
    (folder / WEIGHTS).unlink()
    torch.save(llama_tensors(), folder / "pytorch_model.bin")
    found = cli("predict", "a", "ab", *GREEDY)
    assert (found.status, found.out) == (0, want)
    assert "weights_only=True" in found.err

    class Canary:
        def __reduce__(self) -> Any:
            return os.mkdir, ("canary",)

    torch.save({**llama_tensors(), "x": Canary()}, folder / "pytorch_model.bin")
    assert cli("predict", "a", "ab").status == 4
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Canary()))
    assert cli("predict", "a", "ab").status == 4
    assert not Path("canary").exists()


def test_a_zip_bomb_is_not_unpacked(cli: Cli) -> None:
    folder = llama_folder(Path("a"))
    (folder / WEIGHTS).unlink()
    path = folder / "pytorch_model.bin"
    torch.save({"x": torch.zeros(25_000_000)}, path)
    with zipfile.ZipFile(path) as stored, zipfile.ZipFile("b.bin", "w") as packed:
        for entry in stored.infolist():
            packed.writestr(entry.filename, stored.read(entry), zipfile.ZIP_DEFLATED)
    os.replace("b.bin", path)
    with bounded():
        found = cli("predict", "a", "ab")
    assert found.status == 4
    assert "is compressed" in found.err


def test_special_tokens_are_those_of_the_files(cli: Cli) -> None:
    files = {
        "config.json": LLAMA | {"bos_token_id": 1, "eos_token_id": 2},
        "generation_config.json": {"eos_token_id": [3, 256], "top_k": 5},
        "tokenizer_config.json": {"eos_token": {"content": "<|endoftext|>"}, "add_bos_token": True},
    }
    from tokenizers import Tokenizer

    from bigmodel_cli.data.text.own_tokenizers import ByteTokenizer

    library = Tokenizer.from_str(ByteTokenizer().to_json().decode())
    library.add_special_tokens(["<s>"])  # 257: not a tokenizer of ours
    folder = llama_folder(Path("a"))
    (folder / "tokenizer.json").write_text(library.to_str())
    for name, values in files.items():
        (folder / name).write_text(json.dumps(values))
    tokenizer = load_tokenizer(opening.read_assets(folder))
    assert (tokenizer.end_of_text, tokenizer.start_of_text) == (256, 1)
    assert (tokenizer.stops, tokenizer.begins) == ((3, 256), True)
    from bigmodel_cli.data import Prompts
    from bigmodel_cli.loaded import load_checkpoint as load

    prompts = Prompts(tokenizer, 20, load(folder, "cpu").spec.data)
    assert prompts.read("ab", "input 1")[0] == [1, 97, 98]

    assert tuned(cli, "a").status == 0
    assert cli("export", "run", "out").status == 0
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<none>"}')
    found = cli("predict", "a", "ab")
    assert found.status == 4
    assert "eos_token is '<none>', which tokenizer.json does not have" in found.err
    kept = ["generation_config.json", "tokenizer.json"]
    assert [n for n in kept if Path("out", n).read_bytes() != (folder / n).read_bytes()] == []
    (folder / "tokenizer.json").rename(folder / "tokenizer.model")
    assert "SentencePiece's, which is not read" in cli("predict", "a", "ab").err


def test_a_file_without_the_prefix_of_the_network_is_read(cli: Cli) -> None:
    config = {
        "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_embd": 12, "n_head": 3,
        "n_layer": 1, "n_positions": 24, "vocab_size": 259, "eos_token_id": 256,
    }  # fmt: skip
    folder = drawn_folder(Path("a"), config)
    want = cli("predict", "a", "ab", *GREEDY).out
    from safetensors.torch import load_file

    mapped = load_file(folder / WEIGHTS)
    tensors = {n.removeprefix("transformer."): t.clone() for n, t in mapped.items()}
    write_tensors(folder / WEIGHTS, tensors)
    assert cli("predict", "a", "ab", *GREEDY).out == want
