"""hf:// names from a cache laid out as huggingface_hub lays it, without a network."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from conftest import Result
from folders import llama_folder

pytest.importorskip("huggingface_hub")

Cli = Callable[..., Result]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache's folder of org/tiny, its files as links to blobs."""
    folder = llama_folder(tmp_path / "plain")
    root = tmp_path / "hub" / "models--org--tiny"
    snapshot = root / "snapshots" / COMMIT
    for path in (root / "refs", root / "blobs", snapshot):
        path.mkdir(parents=True)
    (root / "refs" / "main").write_text(COMMIT)
    for number, path in enumerate(sorted(folder.iterdir())):
        blob = root / "blobs" / f"{number:040x}"
        shutil.copy(path, blob)
        (snapshot / path.name).symlink_to(f"../../blobs/{blob.name}")
    constants = importlib.import_module("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return root


def test_every_command_takes_it_and_the_run_records_the_commit(cached: Path, cli: Cli) -> None:
    text = cli("predict", "hf://org/tiny", "ab", "--temperature", "0", "--max-tokens", "3")
    assert text.status == 0, text.err
    called = f"hf://org/tiny@{COMMIT}"
    assert f"{called}: LlamaForCausalLM" in text.err
    assert "snapshots" not in text.err
    assert text.out == cli("predict", "plain", "ab", "--temperature", "0", "--max-tokens", "3").out
    Path("a.txt").write_text("abba " * 100)
    spec = {
        "data": {"type": "text", "files": ["a.txt"], "context": 8},
        "train": {"steps": 1, "batch_size": 2, "precision": "fp32"},
    }
    Path("a.yaml").write_text(yaml.safe_dump(spec))
    tuned = cli("finetune", "--from", "hf://org/tiny@main", "a.yaml", "--out", "run")
    assert tuned.status == 0, tuned.err
    recorded = yaml.safe_load(Path("run/spec.yaml").read_text())["init"]["checkpoint"]
    assert recorded == called
    assert f"bought, since {called} (" in tuned.err
    assert "snapshots" not in tuned.err
    more = cli("finetune", "--resume", "--out", "run", "--set", "train.steps=2")
    assert more.status == 0, more.err
    assert cli("bench", "hf://org/tiny", "--seconds", "0.1").status == 0
    scored = cli("eval", "hf://org/tiny", "--set", "data.files=[a.txt]")
    assert (scored.status, scored.out.partition(": ")[0]) == (0, called)
    shown = cli("import", "hf://org/tiny")
    assert "dim: 12" in shown.out
    assert cli("attend", "hf://org/tiny", "abba").status == 0


def test_what_is_missing_is_said_with_the_cache_and_a_remedy(cached: Path, cli: Cli) -> None:
    (cached / "snapshots" / COMMIT / "model.safetensors").unlink()
    found = cli("predict", "hf://org/tiny", "ab")
    assert found.status == 4
    assert found.err.splitlines()[-1] == (
        f"bigmodel: hf://org/tiny: model.safetensors is not in the cache {cached}, and"
        " HF_HUB_OFFLINE is set; fetch it where there is a network (hf download org/tiny), or name"
        " a folder that has the files"
    )
    other = cli("predict", "hf://org/other@v1", "ab")
    assert other.status == 4
    assert "config.json is not in the cache" in other.err
    assert "hf download org/other --revision v1" in other.err
    for name in ("hf://tiny", "hf://../../etc", "hf://a/b/c"):
        assert cli("predict", name, "ab").status == 4


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_damaged_file_is_called_as_the_hub_does_and_not_by_its_blob(
    name: str, cached: Path, cli: Cli
) -> None:
    blob = (cached / "snapshots" / COMMIT / name).resolve()
    blob.write_bytes(blob.read_bytes()[:100])
    found = cli("predict", "hf://org/tiny", "ab")
    assert found.status == 4
    assert f"hf://org/tiny@{COMMIT}/{name}: " in found.err
    assert "blobs" not in found.err
    assert "snapshots" not in found.err
    if name == "config.json":  # without it there is no folder of this layout
        return
    blob.unlink()
    blob.mkdir()
    found = cli("predict", "hf://org/tiny", "ab")
    assert found.status == 4
    assert f"hf://org/tiny@{COMMIT}/{name}: a link, folder" in found.err


def test_a_snapshot_that_is_named_by_its_path_keeps_that(cached: Path, cli: Cli) -> None:
    path = cached / "snapshots" / COMMIT
    cli("predict", "hf://org/tiny", "ab")
    assert f"{path}: LlamaForCausalLM" in cli("predict", path, "ab").err


def test_a_link_out_of_the_cache_is_refused(cached: Path, cli: Cli, tmp_path: Path) -> None:
    path = cached / "snapshots" / COMMIT / "config.json"
    path.unlink()
    path.symlink_to(tmp_path / "plain" / "config.json")
    found = cli("predict", "hf://org/tiny", "ab")
    assert found.status == 4
    assert "a link" in found.err
