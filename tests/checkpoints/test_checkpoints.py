"""What a damaged, foreign or hostile checkpoint gets: status 4, a message that names the file, and
nothing loaded.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Result
from torch import nn

from bigmodel_cli import checkpoints
from bigmodel_cli.checkpoints import load_weights, safe
from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.errors import CheckpointError
from bigmodel_cli.models.decoder import Decoder, DecoderOptions

Cli = Callable[..., Result]


@pytest.fixture
def saved(decoder_spec: Path, cli: Cli) -> Path:
    """A run with two checkpoints; its last one."""
    result = cli("pretrain", decoder_spec, "--out", "run", "--set", "train.validate_every=6")
    assert result.status == 0, result.err
    return Path(result.out.strip())


def refresh(checkpoint: Path, name: str) -> None:
    """Let the manifest agree with a file that was changed, so that what is behind the hashes is
    tested.
    """
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    content = (checkpoint / name).read_bytes()
    manifest["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


def test_a_checkpoint_has_the_files_and_tensors_of_its_manifest(saved: Path) -> None:
    manifest = json.loads((saved / "manifest.json").read_text())
    for name, entry in manifest["files"].items():
        content = (saved / name).read_bytes()
        assert entry == {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    names = {
        "model.safetensors",
        "train_state.safetensors",
        "state.json",
        "facts.json",
        "spec.yaml",
    }
    names |= {"tokenizer.json", "trained_on.bin"}
    assert set(manifest["files"]) == names
    contents = checkpoints.read(saved, train_state=True)
    described = manifest["tensors"]["model.safetensors"]
    assert described.pop("head.weight") == {"tied_to": "embedding.weight"}
    assert {n: list(t.shape) for n, t in contents.model.items() if n != "head.weight"} == {
        n: e["shape"] for n, e in described.items()
    }
    assert contents.model["head.weight"] is contents.model["embedding.weight"]
    from safetensors.torch import load_file  # opens elsewhere

    assert load_file(saved / "model.safetensors").keys() == described.keys()


@pytest.mark.parametrize("name", ["model.safetensors", "train_state.safetensors"])
@pytest.mark.parametrize("where", [0, 7, 8, 0.5, -1])
def test_a_truncated_file_is_refused(
    name: str, where: float, saved: Path, cli: Cli, decoder_spec: Path
) -> None:
    file = saved / name
    content = file.read_bytes()
    kept = content[: int(len(content) * where) if isinstance(where, float) else where]
    file.write_bytes(kept)
    result = cli("eval", saved)
    if name == "model.safetensors":
        assert (result.status, result.out) == (4, "")
        assert f"{file}: {len(kept):,} bytes, and manifest.json says {len(content):,}" in result.err
    resumed = cli(
        "pretrain", decoder_spec, "--out", "run", "--set", "train.validate_every=6", "--resume"
    )
    assert resumed.status == 0, resumed.err
    assert f"warning: {file}" in resumed.err
    assert "falling back to the checkpoint before step-00000012" in resumed.err


@pytest.mark.parametrize(
    "name", ["model.safetensors", "state.json", "spec.yaml", "facts.json", "tokenizer.json"]
)
def test_one_flipped_bit_is_detected(name: str, saved: Path, cli: Cli) -> None:
    file = saved / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    result = cli("eval", saved)
    assert (result.status, result.out) == (4, "")
    assert f"{file}: its SHA-256 is not the one in manifest.json" in result.err


def test_resume_fails_where_every_checkpoint_is_damaged(
    saved: Path, cli: Cli, decoder_spec: Path
) -> None:
    for file in Path("run/checkpoints").glob("step-*/model.safetensors"):
        file.write_bytes(b"x")
    result = cli(
        "pretrain", decoder_spec, "--out", "run", "--set", "train.validate_every=6", "--resume"
    )
    assert result.status == 4
    assert "none of its 2 checkpoints can be used" in result.err


def container(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(first: int, last: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [first, last]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (container({}, length=2**63), "claims 9,223,372,036,854,775,808 bytes; at most"),
        (container({}, length=200_000_000), "claims 200,000,000 bytes"),
        (container({}, length=1000), "claims 1,000 bytes, and 2 follow"),
        (container(b"{not json"), "is not JSON"),
        (container(b"[]"), "is no table"),
        (container(b'{"a":1,"a":2}'), "a name is given twice"),
        (container({"a": entry(0, 8, [1])}, bytes(8)), "0 to 4 was expected"),
        (
            container({"a": entry(0, 4, [1]), "b": entry(2, 6, [1])}, bytes(8)),
            "'b' is said to be at 2",
        ),
        (
            container({"a": entry(0, 4, [1]), "b": entry(8, 12, [1])}, bytes(12)),
            "'b' is said to be at 8",
        ),
        (container({"a": entry(0, 4, [1])}, bytes(8)), "take 4 bytes, and 8 are there"),
        (container({"a": entry(0, 4, [-1])}, bytes(4)), "impossible shape"),
        (container({"a": entry(0, 4, [1], "F99")}, bytes(4)), "faulty entry"),
        (container({"a": {"dtype": "F32"}}, bytes(4)), "faulty entry"),
        (container(b"[" * 100_000), "is not JSON"),
    ],
)
def test_a_wrong_safetensors_header_is_refused(
    content: bytes, message: str, saved: Path, cli: Cli
) -> None:
    (saved / "model.safetensors").write_bytes(content)
    refresh(saved, "model.safetensors")
    start = time.monotonic()
    result = cli("eval", saved)
    assert result.status == 4
    assert message in result.err
    assert "model.safetensors: damaged" in result.err
    assert time.monotonic() - start < 30


def rewrite(saved: Path, change: Callable[[dict[str, torch.Tensor]], None], describe: bool) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(saved / "model.safetensors")
    change(tensors)
    save_file(tensors, saved / "model.safetensors")
    refresh(saved, "model.safetensors")
    if describe:
        manifest = json.loads((saved / "manifest.json").read_text())
        manifest["tensors"]["model.safetensors"] = safe.describe(tensors)
        (saved / "manifest.json").write_text(json.dumps(manifest))


def wider(tensors: dict[str, torch.Tensor]) -> None:
    tensors["norm.weight"] = torch.ones(17)


def halved(tensors: dict[str, torch.Tensor]) -> None:
    tensors["norm.weight"] = tensors["norm.weight"].half()


def fewer(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["norm.weight"]


def more(tensors: dict[str, torch.Tensor]) -> None:
    tensors["extra"] = torch.ones(3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (wider, "norm.weight: expected float32 [16], found float32 [17]"),
        (halved, "norm.weight: expected float32 [16], found float16 [16]"),
        (fewer, "norm.weight: missing; expected float32 [16]"),
        (more, "extra: not in the model; found float32 [3]"),
    ],
)
def test_tensors_of_another_shape_or_dtype_and_missing_or_extra_ones_are_refused(
    change: Any, message: str, saved: Path, cli: Cli
) -> None:
    rewrite(saved, change, describe=True)
    result = cli("eval", saved)
    assert (result.status, result.out) == (4, "")
    assert message in result.err
    rewrite(saved, lambda tensors: None, describe=False)


def test_tensors_that_the_manifest_does_not_describe(saved: Path, cli: Cli) -> None:
    rewrite(saved, wider, describe=False)
    result = cli("eval", saved)
    assert result.status == 4
    assert "tensor 'norm.weight': manifest.json expects {'shape': [16]" in result.err


def test_no_weight_is_loaded_where_one_does_not_fit() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    before = {n: t.clone() for n, t in model.state_dict().items()}
    given = {n: t + 1 for n, t in before.items()}
    given["1.bias"] = torch.zeros(7)
    with pytest.raises(
        CheckpointError, match=r"1.bias: expected float32 \[1\], found float32 \[7\]"
    ):
        load_weights(model, given)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    report = load_weights(model, given, fresh=("1",))
    assert report.fresh == ["1.weight", "1.bias"]
    assert torch.equal(model[0].weight, given["0.weight"])


class Canary:
    """A pickle that leaves a file behind when it is read."""

    def __reduce__(self) -> Any:
        return (open, ("canary", "w"))


@pytest.mark.parametrize("form", ["model.pt", "folder/pytorch_model.bin"])
def test_a_pickle_is_refused_and_not_read(form: str, cli: Cli) -> None:
    path = Path(form)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(pickle.dumps(Canary()))
    for command in (["eval", path], ["finetune", "--from", path], ["predict", path, "x"]):
        target = [w if w != path or path.parent == Path() else path.parent for w in command]
        result = cli(*target)
        assert result.status == 4
        assert "pickle" in result.err
    assert not Path("canary").exists()


def test_a_pickle_instead_of_a_safetensors_file_is_not_read(saved: Path, cli: Cli) -> None:
    for name in ("model.safetensors", "state.json", "tokenizer.json"):
        kept = (saved / name).read_bytes()
        (saved / name).write_bytes(pickle.dumps(Canary()))
        refresh(saved, name)
        assert cli("predict", saved, "a").status in (3, 4)
        (saved / name).write_bytes(kept)
        refresh(saved, name)
    assert not Path("canary").exists()


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "sub/file", "..", "manifest.json"])
def test_a_manifest_names_plain_files_only(name: str, saved: Path, cli: Cli) -> None:
    manifest = json.loads((saved / "manifest.json").read_text())
    manifest["files"][name] = {"size": 1, "sha256": "0"}
    (saved / "manifest.json").write_text(json.dumps(manifest))
    result = cli("eval", saved)
    assert result.status == 4
    assert "not a plain file of the checkpoint" in result.err


def test_a_link_in_the_place_of_a_file_is_refused(saved: Path, cli: Cli) -> None:
    (saved / "state.json").rename("moved.json")
    (saved / "state.json").symlink_to(Path("moved.json").resolve())
    assert cli("eval", saved).status == 4


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"files": 3}', b"\xff"])
def test_a_damaged_manifest_is_refused(content: bytes, saved: Path, cli: Cli) -> None:
    (saved / "manifest.json").write_bytes(content)
    result = cli("eval", saved)
    assert result.status == 4
    assert "manifest.json: damaged" in result.err


def test_another_format_version_is_refused(saved: Path, cli: Cli) -> None:
    manifest = json.loads((saved / "manifest.json").read_text())
    (saved / "manifest.json").write_text(json.dumps({**manifest, "format": 99}))
    result = cli("eval", saved)
    assert result.status == 4
    assert "format 99; this bigmodel reads formats 1 to 2" in result.err


def test_missing_files_and_paths_without_a_checkpoint_are_refused(saved: Path, cli: Cli) -> None:
    assert "no such checkpoint; did you mean run?" in cli("eval", "rum").err
    Path("empty").mkdir()
    result = cli("eval", "empty")
    assert (result.status, "not a checkpoint (no manifest.json)" in result.err) == (4, True)
    (saved / "facts.json").unlink()
    result = cli("eval", saved)
    assert (result.status, "facts.json: cannot be read" in result.err) == (4, True)


def test_last_and_best_are_relative_links_and_name_checkpoints(saved: Path) -> None:
    folder = saved.parent
    assert checkpoints.find(Path("run")) == saved
    assert (folder / "last").readlink() == Path(saved.name)
    assert (folder / "best").readlink().is_absolute() is False
    assert checkpoints.find(folder / "best").name.startswith("step-")
    shutil.rmtree(folder / "step-00000006", ignore_errors=True)


def test_pruning_keeps_the_newest_and_the_best(decoder_spec: Path, cli: Cli) -> None:
    words = ["train.steps=20", "train.validate_every=2", "train.keep_last=3", "train.keep_best=2"]
    result = cli(
        "pretrain", decoder_spec, "--out", "run", *(w for c in words for w in ("--set", c))
    )
    assert result.status == 0, result.err
    state = json.loads((Path(result.out.strip()) / "state.json").read_text())
    best = sorted(state["scores"], key=lambda step: state["scores"][step])[:2]
    expected = {f"step-{int(s):08d}" for s in (*best, 20, 18, 16)}
    assert {p.name for p in Path("run/checkpoints").glob("step-*")} == expected
    assert Path("run/checkpoints/best").readlink() == Path(f"step-{int(best[0]):08d}")


def test_weights_of_an_earlier_version_are_refused_with_the_reason() -> None:
    values = {"dim": 8, "blocks": [{"mixer": {"type": "retention", "num_heads": 2}}]}
    model = Decoder(DecoderOptions.model_validate(values), DatasetInfo(vocab_size=5, context=4))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    old = {name: tensor + 1 for name, tensor in before.items()} | {
        "blocks.0.mixer.norm.weight": torch.ones(4)
    }
    with pytest.raises(
        CheckpointError,
        match=r"(?s)earlier version .* train anew.*mixer\.norm\.weight: not in the model",
    ):
        load_weights(model, old)
    assert CheckpointError.status == 4
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
