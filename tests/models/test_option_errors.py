"""Faults found while a model is built name their place in the file, all of them at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bigmodel_cli import spec as specs
from bigmodel_cli.assemble import build_model
from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.errors import Faults, OptionError, SpecError, under

TEXT = DatasetInfo(vocab_size=30, context=16)
IMAGES = DatasetInfo(image_shape=(3, 16, 16), classes=("a", "b", "c"))
OF_TEXT = "data: {type: text, files: [a.txt], context: 16}\ntrain: {steps: 1}\n"
OF_PAIRS = (
    "data: {type: pairs, source: [a], target: [b], tokenizer: {type: bytes}}\ntask: {type:"
    " seq2seq}\ntrain: {steps: 1}\n"
)
OF_IMAGES = "data: {type: digits}\ntask: {type: classification}\ntrain: {steps: 1}\n"
SPECS = {
    "decoder": (
        TEXT,
        """model:
  type: decoder
  dim: 33
  vocab_size: 7
  blocks:
    - {repeat: 2, mixer: {type: attention, num_heads: 3}, ffn: gelu}
    - repeat: 3
      mixer:
        type: attention
        num_heads: 4
      ffn: gelu
    - {mixer: retention}
"""
        + OF_TEXT
        + "task: {type: causal_lm}\n",
        [
            (
                "4:15: model.vocab_size: 7 is less than the tokenizer's 30; give --set"
                " model.vocab_size=null"
            ),
            (
                "10:20: model.blocks.1.mixer.num_heads: 4 heads do not divide dim 33; give"
                " head_dim, or other numbers"
            ),
            (
                "12:15: model.blocks.2.mixer.num_heads: missing; this option has no default; "
                "write mixer: {type: retention, num_heads: ...}"
            ),
        ],
    ),
    "encoder": (
        TEXT,
        """model:
  type: encoder
  dim: 18
  max_len: 4
  blocks:
    - mixer: {type: mamba2}
    - {mixer: {type: attention, num_heads: 2, position: {type: t5, buckets: 2}}}
"""
        + OF_TEXT
        + "task: {type: masked_lm}\n",
        [
            (
                "4:12: model.max_len: 4 is shorter than the data's context 16; give --set"
                " model.max_len=null"
            ),
            (
                "6:21: model.blocks.0.mixer.type: mamba2 goes from left to right; an encoder's"
                " mixers see both sides"
            ),
            (
                "7:77: model.blocks.1.mixer.position.buckets: 2, and where both sides are seen at"
                " least 4 are needed"
            ),
        ],
    ),
    "seq2seq": (
        TEXT,
        """model:
  type: seq2seq
  dim: 18
  encoder:
    - {mixer: {type: attention, num_heads: 4}}
  decoder:
    - mixer: {type: retention, num_heads: 5}
      cross: {num_heads: 4}
"""
        + OF_PAIRS,
        [
            (
                "5:44: model.encoder.0.mixer.num_heads: 4 heads do not divide dim 18; give"
                " head_dim, or other numbers"
            ),
            "7:43: model.decoder.0.mixer.num_heads: 5 heads do not divide dim 18",
            (
                "8:26: model.decoder.0.cross.num_heads: 4 heads do not divide dim 18; give"
                " head_dim, or other numbers"
            ),
        ],
    ),
    "vit": (
        IMAGES,
        """model:
  type: vit
  dim: 10
  patch: 4
  position: sines
  blocks:
    - {mixer: {type: attention, num_heads: 4}}
  reconstruct: {dim: 8, blocks: [{mixer: {type: attention, num_heads: 3}}]}
data: {type: digits}
task: {type: masked_image}
train: {steps: 1}
""",
        [
            "3:8: model.dim: 10 is not a multiple of 4, which positions in two dimensions need",
            (
                "7:44: model.blocks.0.mixer.num_heads: 4 heads do not divide dim 10; give head_dim,"
                " or other numbers"
            ),
            (
                "8:71: model.reconstruct.blocks.0.mixer.num_heads: 3 heads do not divide dim 8; "
                "give head_dim, or other numbers"
            ),
        ],
    ),
    "vit, patch": (
        IMAGES,
        "model: {type: vit, dim: 8, patch: 5, blocks: [{ffn: gelu}]}\n" + OF_IMAGES,
        ["1:35: model.patch: 5 does not divide the image of 16 x 16"],
    ),
    "cnn": (
        IMAGES,
        """model:
  type: cnn
  layers:
    - type: residual
      layers: [{type: conv, channels: 3, padding: same}, {type: conv, channels: 3, kernel: 40}]
"""
        + OF_IMAGES,
        ["5:92: model.layers.0.layers.1.kernel: 40 is larger than its input of 16 x 16"],
    ),
    "cnn, end": (
        IMAGES,
        "model: {type: cnn, layers: [{type: flatten}, {type: dense, units: 4}]}\n" + OF_IMAGES,
        [
            "1:67: model.layers.1.units: the network ends with 4 values, and the data has 3"
            " classes; give --set model.layers.1.units=classes"
        ],
    ),
    "torchvision": (
        IMAGES,
        "model: {type: torchvision, name: resnet17}\n" + OF_IMAGES,
        [
            "1:34: model.name: torchvision has no classification network 'resnet17'; did you mean"
            " resnet18?"
        ],
    ),
}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def told(text: str, info: DatasetInfo, *overrides: str) -> list[str]:
    """What is told of a spec that cannot be typed or built."""
    Path("spec.yaml").write_text(text)
    with pytest.raises(SpecError) as caught:
        build_model(specs.load(Path("spec.yaml"), overrides), info)
    return str(caught.value).splitlines()


@pytest.mark.parametrize("name", [name for name in SPECS if name != "decoder"])
def test_every_fault_of_a_skeleton_names_its_place(name: str) -> None:
    info, text, lines = SPECS[name]
    assert told(text, info) == [f"spec.yaml:{line}" for line in lines]


def test_faults_of_typing_come_before_those_of_building() -> None:
    info, text, lines = SPECS["decoder"]
    assert told(text, info) == [f"spec.yaml:{lines[2]}"]
    assert told(text.replace("{mixer: retention}", "{ffn: gelu}"), info) == [
        f"spec.yaml:{line}" for line in lines[:2]
    ]


def test_an_option_of_the_command_line_is_named_so() -> None:
    info, text, lines = SPECS["seq2seq"]
    change = "model.encoder.0.mixer.num_heads=5"
    assert told(text, info, change) == [
        (
            f"--set {change}: model.encoder.0.mixer.num_heads: 5 heads do not divide dim 18; "
            "give head_dim, or other numbers"
        ),
        *(f"spec.yaml:{line}" for line in lines[1:]),
    ]


def test_a_fault_of_a_default_is_placed_at_its_parent() -> None:
    text = (
        "model:\n  type: decoder\n  dim: 12\n  blocks:\n  - mixer: mamba2\n"
        + OF_TEXT
        + "task: {type: causal_lm}\n"
    )
    assert told(text, TEXT) == [
        "spec.yaml:5:12: model.blocks.0.mixer.head_dim: 64 does not divide the inner width 24"
    ]
    assert told(text.replace("mamba2", "{ffn: gelu}"), DatasetInfo(context=16))[0].startswith(
        "spec.yaml:5:12: "
    )
    assert told(text.replace("mixer: mamba2", "ffn: gelu"), DatasetInfo(context=16)) == [
        "spec.yaml:2:3: model.vocab_size: the data has no tokenizer to take it from; a decoder"
        " reads tokens"
    ]


def test_an_anchor_is_where_it_is_written() -> None:
    text = (
        "x-one: &one {mixer: {type: attention, num_heads: 5}}\nmodel: {type: decoder, dim: 8,"
        " blocks: [*one, *one]}\n"
    )
    found = told(text + OF_TEXT + "task: {type: causal_lm}\n", TEXT)
    assert [line.partition(" heads")[0] for line in found] == [
        f"spec.yaml:1:50: model.blocks.{index}.mixer.num_heads: 5" for index in (0, 1)
    ]


PLUGIN = """
from typing import Literal
from bigmodel_cli.config import Options

class OddOptions(Options):
    type: Literal["odd"] = "odd"
    steps: int = 3

    def build(self, place):
        raise ValueError("steps: 3 is odd")

class NormOptions(OddOptions):
    def build(self, dim):
        raise ValueError("Nothing: to be had")

class PositionOptions(OddOptions):
    def build(self, dim, max_len):
        raise ValueError("steps: 3 is odd")

PARTS = {"mixer": [OddOptions], "norm": [NormOptions], "position": [PositionOptions]}
"""
LOADED = """
import sys
from pathlib import Path
from bigmodel_cli.plugins import name_plugins

name_plugins([Path("odd.py")])
from bigmodel_cli import assemble, spec
from bigmodel_cli.config import DatasetInfo

try:
    info = DatasetInfo(vocab_size=257, context=64)
    assemble.build_model(spec.load(Path(sys.argv[1]), sys.argv[2:]), info)
except spec.SpecError as error:
    print(error)
"""


def test_faults_of_a_plugin_s_parts_name_their_places(decoder_spec: Path) -> None:
    Path("odd.py").write_text(PLUGIN)
    changes = {
        "model.position=odd": "position.steps: 3 is odd",
        "model.blocks.0.mixer={type: odd, steps: 3}": "blocks.0.mixer.steps: 3 is odd",
        "model.blocks.0.norm=odd": "blocks.0.norm: Nothing: to be had",
        "model.norm={type: odd}": "norm: Nothing: to be had",
    }
    words = [sys.executable, "-c", LOADED, str(decoder_spec), *changes]
    found = subprocess.run(words, capture_output=True, text=True, check=True)
    assert sorted(found.stdout.splitlines()) == sorted(
        f"--set {c}: model.{line}" for c, line in changes.items()
    )


def test_paths_are_joined_and_faults_are_reported_once() -> None:
    faults = Faults()
    for text in ("steps: 3 is odd", "no option: at all", "steps: 3 is odd"):
        with faults.under("a"), under("b.0"):
            raise ValueError(text)
    with pytest.raises(OptionError) as caught:
        faults.check()
    assert caught.value.faults == (("a.b.0.steps", "3 is odd"), ("a.b.0", "no option: at all"))
    assert str(caught.value) == "a.b.0.steps: 3 is odd\na.b.0: no option: at all"


def test_specs_are_equal_whatever_they_were_read_from() -> None:
    Path("spec.yaml").write_text(SPECS["cnn"][1])
    read = specs.load(Path("spec.yaml"))
    assert read == specs.from_dict(read.to_dict()) == read.model_copy()
