"""What is trained here opens in transformers with the same outputs, or is refused by its part."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import Result

from bigmodel_cli.disk import held
from bigmodel_cli.loaded import load_checkpoint

transformers = pytest.importorskip("transformers")

Cli = Callable[..., Result]
TEXT = "the quick brown fox jumps over the lazy dog, and the dog sleeps on.\n" * 40
BLOCK = {
    "mixer": {"type": "attention", "num_heads": 6, "kv_heads": 3, "bias": False,
              "position": {"type": "rotary"}},
    "ffn": "swiglu",
    "norm": "rmsnorm",
}  # fmt: skip
MODEL = {"type": "decoder", "dim": 24, "blocks": [{**BLOCK, "repeat": 2}], "norm": "rmsnorm"}


def spec_of(path: Path, **sections: Any) -> Path:
    """A spec of a small decoder."""
    (path.parent / "corpus.txt").write_text(TEXT)
    spec = {
        "model": MODEL,
        "data": {"type": "text", "files": ["corpus.txt"], "context": 19},
        "task": {"type": "causal_lm", "sample_tokens": 0},
        "train": {"steps": 2, "batch_size": 3, "precision": "fp32"},
        **sections,
    }
    path.write_text(yaml.safe_dump(spec))
    return path


def logits(folder: Path, tokens: torch.Tensor) -> torch.Tensor:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        found: torch.Tensor = model(tokens).logits
    return found


TOKENIZERS: dict[str, Any] = {
    "bytes": "bytes", "characters": "characters", "bpe": {"type": "bpe", "vocab_size": 270}
}  # fmt: skip


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_decoder_trained_here_opens_in_transformers(name: str, cli: Cli, tmp_path: Path) -> None:
    data = {"type": "text", "files": ["corpus.txt"], "context": 19, "tokenizer": TOKENIZERS[name]}
    spec = spec_of(tmp_path / "a.yaml", data=data)
    assert cli("pretrain", spec, "--out", "run", "--device", "cpu").status == 0
    found = cli("export", "run", "--to", "hf", "out")
    assert (found.status, found.out) == (0, "out\n")

    loaded = load_checkpoint(Path("run"), "cpu")
    from bigmodel_cli.data import load_tokenizer

    ours = load_tokenizer(loaded.assets)
    theirs = transformers.AutoTokenizer.from_pretrained("out")
    text = "the lazy fox jumps, on the dog"
    assert theirs(text)["input_ids"] == ours.encode(text)
    assert theirs.eos_token_id == ours.end_of_text
    tokens = torch.tensor([ours.encode(text)[:17]])
    with torch.no_grad():
        want = loaded.model(tokens)
    got = logits(Path("out"), tokens)
    assert float((got - want).abs().max()) <= 1e-5 * float(want.abs().max())

    card = Path("out/README.md").read_text()
    assert "bigmodel export" in card or "Exported by" in card
    assert "Validation at step 2" in card
    assert "Licence: none is recorded" in card

    again = cli("export", "out", "back")
    assert again.status == 0, again.err
    files = ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"]
    assert [f for f in files if Path("out", f).read_bytes() != Path("back", f).read_bytes()] == []


def test_a_structure_that_no_family_has_is_refused_by_its_part(cli: Cli, tmp_path: Path) -> None:
    blocks = [{**BLOCK, "mixer": {**BLOCK["mixer"], "position": {"type": "alibi"}}}]  # type: ignore[dict-item]
    spec = spec_of(tmp_path / "a.yaml", model={**MODEL, "blocks": blocks})
    assert cli("pretrain", spec, "--out", "run", "--device", "cpu").status == 0
    found = cli("export", "run", "out")
    assert found.status == 2
    assert "which lacks model.blocks.0.mixer.position.type: alibi" in found.err
    assert not Path("out").exists()
    assert not list(tmp_path.glob(".draft*"))


def test_where_it_cannot_be_written(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of(tmp_path / "a.yaml")
    assert cli("pretrain", spec, "--out", "run", "--device", "cpu").status == 0
    Path("there").mkdir()
    assert cli("export", "run", "there").status == 0  # an empty folder is free
    taken = cli("export", "run", "there")
    assert taken.status == 2
    assert taken.err == "bigmodel: there: is there already; name a new folder\n"
    assert cli("export", "run", "no/such").status == 5
    assert cli("export", "run", "out", "--to", "hff").status == 2

    monkeypatch.setenv("BIGMODEL_FAILPOINT", "export.writing:ENOSPC:3")
    full = cli("export", "run", "full")
    assert full.status == 5
    assert "No space left on device" in full.err
    monkeypatch.setenv("BIGMODEL_FAILPOINT", "export.rename:SIGTERM")
    stopped = cli("export", "run", "stopped")
    assert stopped.status == 143
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.yaml", "corpus.txt", "run", "there"]


def test_a_draft_that_a_killed_process_left_is_removed_by_the_next_export(
    cli: Cli, tmp_path: Path
) -> None:
    """One that is being written, another folder's and a person's own stay."""
    spec = spec_of(tmp_path / "a.yaml")
    assert cli("pretrain", spec, "--out", "run", "--device", "cpu").status == 0
    for name in (".draft-out-7", ".draft-out-8", ".draft-outer-7", ".draft-out-mine"):
        Path(name).mkdir()
        Path(name, "model.safetensors").write_bytes(b"half")
    with held(Path(".draft-out-8")):
        assert cli("export", "run", "out").status == 0
    left = sorted(p.name for p in tmp_path.glob(".draft*"))
    assert left == [".draft-out-8", ".draft-out-mine", ".draft-outer-7"]


def test_config_in_the_folder_is_what_transformers_reads(cli: Cli, tmp_path: Path) -> None:
    spec = spec_of(tmp_path / "a.yaml")
    assert cli("pretrain", spec, "--out", "run", "--device", "cpu").status == 0
    assert cli("export", "run", "out").status == 0
    values = json.loads(Path("out/config.json").read_bytes())
    config = transformers.AutoConfig.from_pretrained("out")
    assert (config.vocab_size, config.max_position_embeddings) == (257, 19)
    assert (values["eos_token_id"], values["dtype"]) == (256, "float32")
    assert config.architectures == ["LlamaForCausalLM"]


def test_a_classifier_goes_out_with_its_labels(cli: Cli, tmp_path: Path) -> None:
    from folders import drawn_folder

    body = {
        "model_type": "bert", "architectures": ["BertModel"], "hidden_size": 12,
        "num_attention_heads": 3, "num_hidden_layers": 2, "intermediate_size": 20,
        "vocab_size": 259, "max_position_embeddings": 24, "bos_token_id": 256, "eos_token_id": 256,
    }  # fmt: skip
    drawn_folder(Path("body"), body)
    Path("body/README.md").write_text("---\nlicense: apache-2.0\n---\n")
    Path("body/preprocessor_config.json").write_text('{"a":  1}')
    Path("rows.csv").write_text("so good,yes\nso bad,no\nso so,maybe\n" * 10)
    data = {"type": "table", "train": ["rows.csv"], "text": [0], "label": 1, "context": 9}
    train = {"steps": 2, "batch_size": 4, "precision": "fp32"}
    spec = {"data": {**data, "tokenizer": "bytes"}, "task": "classification", "train": train}
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(spec))
    tuned = cli("finetune", "--from", "body", "a.yaml", "--out", "run", "--device", "cpu")
    assert tuned.status == 0, tuned.err
    found = cli("export", "run", "out")
    assert found.status == 0, found.err

    loaded = load_checkpoint(Path("run"), "cpu")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained("out").eval()
    assert tuple(theirs.config.id2label.values()) == loaded.info.classes
    tokens = torch.randint(0, 255, (2, 9))
    with torch.no_grad():
        want, got = loaded.model(tokens), theirs(tokens).logits
    assert float((got - want).abs().max()) <= 1e-5 * float(want.abs().max())
    assert Path("out/preprocessor_config.json").read_text() == '{"a":  1}'
    assert "license: apache-2.0" in Path("out/README.md").read_text()
    assert "Began with: body" in Path("out/README.md").read_text()


def test_results_of_an_evaluation_stand_in_the_card(cli: Cli, tmp_path: Path) -> None:
    spec = spec_of(tmp_path / "a.yaml")
    assert cli("pretrain", spec, "--out", "run", "--device", "cpu").status == 0
    found = cli("eval", "run", "--json", "--device", "cpu")
    Path("eval.json").write_text(found.out)
    assert cli("export", "run", "out", "--results", "eval.json").status == 0
    loss = json.loads(found.out)["metrics"]["loss"]
    row = f"| loss | {loss['value']} | {loss['low']} | {loss['high']} | {loss['count']} |"
    assert row in Path("out/README.md").read_text()
    for name in ("a.yaml", "none.json"):
        wrong = cli("export", "run", "other", "--results", name)
        assert wrong.status == 2
        assert "not the JSON of an evaluation" in wrong.err


def test_large_files_are_divided_and_listed(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bigmodel_cli.convert import exporting

    spec = spec_of(tmp_path / "a.yaml")
    assert cli("pretrain", spec, "--out", "run", "--device", "cpu").status == 0
    assert cli("export", "run", "one").status == 0
    monkeypatch.setattr(exporting, "SHARD_SIZE", 9_000)
    assert cli("export", "run", "many").status == 0
    index = json.loads(Path("many/model.safetensors.index.json").read_bytes())
    assert len(set(index["weight_map"].values())) > 2
    tokens = torch.randint(0, 255, (1, 9))
    assert torch.equal(logits(Path("one"), tokens), logits(Path("many"), tokens))


def test_a_class_that_counts_positions_by_tokens_is_not_taken(cli: Cli, tmp_path: Path) -> None:
    """RoBERTa's leaves out token 1, which is any byte here; from position 0 on it is BERT's."""
    norm = {"type": "layernorm", "eps": 1e-12}
    block = {
        "mixer": {"type": "attention", "num_heads": 3}, "ffn": "gelu", "norm": norm,
        "placement": "post",
    }  # fmt: skip
    model = {
        "type": "encoder", "dim": 24, "embedding_norm": norm, "norm": None, "blocks": [block],
        "position": {"type": "learned", "first": 2}, "token_types": 1, "max_len": 20,
    }  # fmt: skip
    data = {"type": "text", "files": ["corpus.txt"], "context": 19, "tokenizer": "bytes"}
    spec = spec_of(tmp_path / "a.yaml", model=model, data=data, task={"type": "masked_lm"})
    assert cli("pretrain", str(spec), "--out", "run").status == 0
    result = cli("export", "run", "out")
    assert result.status == 2
    assert "model.position: roberta leaves token 1 out when it counts positions" in result.err
    assert not Path("out").exists()
    first = ("--set", "model.position.first=0", "--out", "other")
    assert cli("pretrain", str(spec), *first).status == 0
    assert cli("export", "other", "out").status == 0
    assert json.loads(Path("out/config.json").read_text())["model_type"] == "bert"
