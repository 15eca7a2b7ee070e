"""A smaller network from a checkpoint's layers: what is taken, said, refused, resumed, adapted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Result, digests, losses, write_text
from torch import Tensor

from bigmodel_cli import checkpoints
from bigmodel_cli.convert import opening
from bigmodel_cli.errors import SpecError
from bigmodel_cli.loaded import load_checkpoint
from bigmodel_cli.spec import check
from bigmodel_cli.taken_layers import with_depth
from bigmodel_cli.yaml_source import parse_yaml

Cli = Callable[..., Result]
DEEP = """\
model:
  type: decoder
  dim: 16
  blocks:
    - {repeat: 2, mixer: {type: differential, num_heads: 2}, ffn: gelu}
    - {mixer: {type: attention, num_heads: 2, window: 4}, ffn: gelu}
    - {mixer: {type: attention, num_heads: 2}, ffn: gelu, dropout: 0.1}
data: {type: text, files: [FOLDER/text.txt], context: 16, tokenizer: {type: characters}}
task: {type: causal_lm, sample_tokens: 0}
train: {steps: 2, batch_size: 4, precision: fp32, compile: "off", log_every: 1}
"""
TUNE = """\
train:
  steps: 4
  batch_size: 4
  precision: fp32
  compile: "off"
  log_every: 1
  checkpoint_every: 2
init:
  layers: [1, 3]
"""


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a decoder whose four blocks differ."""
    from bigmodel_cli.__main__ import run

    folder = tmp_path_factory.mktemp("deep")
    write_text(folder / "text.txt")
    (folder / "deep.yaml").write_text(DEEP.replace("FOLDER", str(folder)))
    assert run(["pretrain", str(folder / "deep.yaml"), "--out", str(folder / "deep")]) == 0
    return checkpoints.find(folder / "deep")


def sets(*changes: str) -> list[str]:
    return [word for change in changes for word in ("--set", change)]


def weights_of(path: Path) -> dict[str, Tensor]:
    return dict(opening.read(path).model.stream())


def finetune(cli: Cli, deep: Path, *more: object, text: str = TUNE) -> Result:
    Path("tune.yaml").write_text(text)
    return cli("finetune", "--from", deep, "tune.yaml", *more)


STILL = sets("train.steps=1", "train.optimizer={type: sgd, lr: 1.0e-12, momentum: 0}")


def test_layers_bring_their_options(cli: Cli, deep: Path) -> None:
    result = finetune(cli, deep, "--out", "run", *STILL)
    assert result.status == 0, result.err
    assert "init.layers: blocks 0, 1 are the checkpoint's 1, 3; left out: 0, 2" in result.err
    spec = opening.read_spec(checkpoints.find(Path("run")))
    blocks = spec["model"]["blocks"]
    assert [block["mixer"]["type"] for block in blocks] == ["differential", "attention"]
    # what the second layer's factor began with, though it is the first block now
    assert blocks[0]["mixer"]["lambda_init"] == pytest.approx(0.8 - 0.6 * 0.7408182, rel=1e-6)
    assert blocks[1]["dropout"] == 0.1
    assert blocks[1]["mixer"]["window"] is None
    assert spec["init"]["layers"] == {"blocks": [1, 3]}
    before, after = weights_of(deep), weights_of(Path(result.out.strip()))
    for name, tensor in after.items():
        old = name.replace("blocks.1.", "blocks.3.").replace("blocks.0.", "blocks.1.")
        torch.testing.assert_close(tensor, before[old], rtol=0, atol=1e-9)
    assert cli("eval", "run").status == 0
    model = load_checkpoint(Path("run")).model
    whole = load_checkpoint(deep).model
    tokens = torch.randint(10, (2, 9))
    with torch.no_grad():  # by hand
        x = whole.get_submodule("embedding")(tokens)
        for index in (1, 3):
            x = whole.get_submodule(f"blocks.{index}")(x)
        want = whole.get_submodule("head")(whole.get_submodule("norm")(x))
        torch.testing.assert_close(model(tokens), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("layers", "more", "message"),
    [
        ("[0, 4]", (), "tune.yaml:9:15: init.layers.1: 4: "),
        ("{blocks: [0, 1, 7]}", (), "has the layers 0 to 3"),
        ("[-1]", (), "tune.yaml:9:12: init.layers.0: -1 is not at least 0"),
        ("[]", (), "tune.yaml:9:11: init.layers: empty; give at least 1"),
        ("{encoder: [0]}", (), "decoder has no encoder; write [...]"),
        (
            "[0, 3]",
            ("model.blocks=[{ffn: gelu}]",),
            "1 blocks, and init.layers takes 2 of",
        ),
        (
            "[2]",
            ("model.blocks=[{mixer: {type: attention, num_heads: 2}, ffn: gelu}]",),
            "model.blocks: 0: not what the checkpoint's layers 2 are: mixer.window 4 -> null",
        ),
        (
            "[2]",
            ("model.blocks.1.mixer.window=5",),
            "model.blocks: 0: not what the checkpoint's layers 2 are: mixer.window 4 -> 5",
        ),
    ],
)
def test_what_is_not_there_is_refused(
    layers: str, more: tuple[str, ...], message: str, cli: Cli, deep: Path
) -> None:
    text = TUNE.replace("[1, 3]", layers)
    found = [
        finetune(cli, deep, *extra, *sets(*more), "--out", "run", text=text)
        for extra in ((), ("--dry-run",))
    ]
    for result in found:
        assert result.status == 2
        assert message in result.err
    assert not Path("run").exists()


TORCHVISION = (
    "model: {type: torchvision, name: vit_b_16}\n"
    "data: {type: image_folder, root: x}\ntask: classification\ntrain: {steps: 1}\n"
)


def test_networks_that_are_not_of_blocks_are_refused(cli: Cli, cnn_spec: Path) -> None:
    base = cli("pretrain", cnn_spec, "--out", "cnn", *sets("train.steps=1")).out.strip()
    result = cli("finetune", "--from", base, *sets("init.layers=[0]", "train.steps=1"))
    assert result.status == 2
    assert "init.layers: " in result.err
    assert "cnn is not made of blocks" in result.err
    stored = check(parse_yaml(TORCHVISION.encode(), "stored.yaml"))
    more = f"{TORCHVISION}init: {{checkpoint: vit.pth, layers: [0]}}\n"
    asked = check(parse_yaml(more.encode(), "asked.yaml"))
    with pytest.raises(SpecError, match=r"a ViT that timm or transformers published .* is read in"):
        with_depth(asked, stored, Path("vit.pth"))
    result = cli("pretrain", cnn_spec, *sets("init.layers=[0]"))
    assert result.status == 2
    assert "--set init.layers=[0]: init.layers: there is no checkpoint" in result.err


def test_a_depth_that_is_said_must_be_that_of_the_list(cli: Cli, deep: Path) -> None:
    depth = sets("model.blocks.0.repeat=1", "model.blocks.1.repeat=1")
    result = finetune(cli, deep, *depth, "--dry-run")
    assert result.status == 2
    assert "3 blocks, and init.layers takes 2 of the checkpoint's 4" in result.err
    # without a list, the way is named, and nothing is created
    for extra in ((), ("--dry-run",)):
        result = finetune(cli, deep, *depth, *extra, "--out", "no", text=TUNE.partition("init")[0])
        assert result.status == 4
        assert "3 of its 4 blocks are chosen by init.layers: [0, 1, 2]" in result.err
    same = sets("model.blocks.0.repeat=1", "init.layers=[0, 2, 3]")
    result = finetune(cli, deep, *same, "--dry-run")
    assert result.status == 0, result.err


def test_it_is_resumed_to_the_bit(cli: Cli, deep: Path) -> None:
    whole = finetune(cli, deep, "--out", "whole")
    assert whole.status == 0, whole.err
    finetune(cli, deep, "--out", "half", *sets("train.steps=2"))
    for words in (("tune.yaml", "--from", str(deep)), ()):
        more = ("--resume", "--out", "half", *sets("train.steps=4"))
        resumed = cli("finetune", *words, *more)
        assert resumed.status == 0, resumed.err
    assert losses(Path("half")) == losses(Path("whole"))
    last = [checkpoints.find(Path(name)) for name in ("half", "whole")]
    assert digests(last[0])["model.safetensors"] == digests(last[1])["model.safetensors"]


def test_an_adapter_beside_it_knows_which_layers(cli: Cli, deep: Path) -> None:
    text = TUNE + 'adapter: {type: lora, rank: 2, targets: ["*.out"]}\n'
    result = finetune(cli, deep, "--out", "run", text=text)
    assert result.status == 0, result.err
    last = Path(result.out.strip())
    noted = json.loads((last / "state.json").read_text())["base"]
    assert noted["layers"] == {"blocks": [1, 3]}
    assert not any("original" in name for name in _stored(last))
    merged = cli("merge", "run", "--out", "merged")
    assert merged.status == 0, merged.err
    assert cli("eval", "run").status == 0
    before, after = weights_of(deep), weights_of(Path("merged"))
    for own, old in (("0", "1"), ("1", "3")):
        name = "blocks.{}.ffn.up.weight"
        assert torch.equal(after[name.format(own)], before[name.format(old)])
    resumed = cli("finetune", "--resume", "--out", "run", *sets("train.steps=6"))
    assert resumed.status == 0, resumed.err
    # a checkpoint that says otherwise is damaged
    state = json.loads((last / "state.json").read_text())
    for wrong in ([1], {"blocks": "1"}, {"blocks": [True, "x"]}):
        state["base"]["layers"] = wrong
        _rewrite(last, state)
        result = cli("eval", last)
        assert result.status == 4
        assert "base: damaged" in result.err


def _stored(path: Path) -> list[str]:
    return [*json.loads((path / "manifest.json").read_text())["tensors"]["model.safetensors"]]


def _rewrite(path: Path, state: Any) -> None:
    from tampered import sign

    (path / "state.json").write_text(json.dumps(state))
    sign(path)


def test_weights_are_left_out_by_name(cli: Cli, deep: Path) -> None:
    """A narrower network where it may be: the rest is the checkpoint's."""
    changes = sets(
        "init.leave_out=['blocks.*.ffn', norm]",
        *(f"model.blocks.{i}.ffn={{type: gelu, hidden: 5}}" for i in range(3)),
    )
    result = finetune(cli, deep, "--out", "run", *changes, *STILL)
    assert result.status == 0, result.err
    assert "init.leave_out: not the checkpoint's: blocks.0.ffn.up.weight" in result.err
    before, after = weights_of(deep), weights_of(Path(result.out.strip()))
    assert after["blocks.1.ffn.up.weight"].shape == (5, 16)
    torch.testing.assert_close(
        after["blocks.1.mixer.qkv.weight"], before["blocks.3.mixer.qkv.weight"], rtol=0, atol=1e-9
    )
    for change, message in (
        ("init.leave_out=['*.ffn', blocks.9]", "init.leave_out.1: 'blocks.9' matches no weight"),
        ("init.freeze=['blocks.*']", "blocks.0.ffn.up.weight"),
    ):
        for extra in ((), ("--dry-run",)):
            result = finetune(cli, deep, *changes, *sets(change), *extra)
            assert result.status == 2
            assert message in result.err


def test_another_number_of_tokens(cli: Cli, deep: Path) -> None:
    """A tied matrix is left out under both of its names."""
    result = finetune(
        cli, deep, *sets("model.vocab_size=300", "init.leave_out=[embedding]"), "--out", "run"
    )
    assert result.status == 0, result.err
    assert weights_of(Path(result.out.strip()))["head.weight"].shape[0] == 300


def test_pretrain_takes_them_too(cli: Cli, deep: Path, tmp_path: Path) -> None:
    """A spec with a network of its own, which is that of the layers."""
    write_text(tmp_path / "text.txt")
    text = DEEP.replace("FOLDER", str(tmp_path))
    cut = text.replace(
        "    - {repeat: 2, mixer: {type: differential, num_heads: 2}, ffn: gelu}\n", ""
    )
    Path("own.yaml").write_text(f"{cut}init: {{checkpoint: {deep}, layers: [2, 3]}}\n")
    result = cli("pretrain", "own.yaml", "--out", "run")
    assert result.status == 0, result.err
    Path("own.yaml").write_text(f"{cut}init: {{checkpoint: {deep}, layers: [0, 3]}}\n")
    for extra in ((), ("--dry-run",)):
        result = cli("pretrain", "own.yaml", *extra)
        assert result.status == 2
        assert "own.yaml:5:5: model.blocks: 0: not what the checkpoint's layers 0" in result.err


def test_a_teacher_of_more_layers(cli: Cli, deep: Path) -> None:
    result = finetune(cli, deep, "--out", "run", *sets(f"distill={{teacher: {deep}, hidden: 1.0}}"))
    assert result.status == 0, result.err
    said = "the streams after its layers 1, 3 of 4 are compared with those after the model's"
    assert said in result.err
