"""A checkpoint's spec and info that describe what its weights are not: status 4 before anything
large is built.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Result
from tampered import bounded, change_json, change_spec, fresh_copy, saved, sign

from bigmodel_cli import models
from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.errors import CheckpointError
from bigmodel_cli.loaded import load_checkpoint
from bigmodel_cli.spec import from_dict
from bigmodel_cli.yaml_scalars import dump_yaml
from bigmodel_cli.yaml_source import parse_yaml

Cli = Callable[..., Result]
BLOCK: dict[str, Any] = {
    "mixer": {"type": "attention", "num_heads": 2},
    "ffn": {"type": "gelu", "hidden": 8},
}
IMAGES = DatasetInfo(image_shape=(3, 32, 32), mean=(0.5,) * 3, std=(0.5,) * 3, classes=("a", "b"))
TEXTS = DatasetInfo(vocab_size=20, context=8)
SOUND = DatasetInfo(frame_width=8, context=16, classes=("a", "b"), mean=(0.0,), std=(1.0,))
FAMILIES: dict[str, tuple[dict[str, Any], str, str, DatasetInfo]] = {
    "decoder": ({"type": "decoder", "dim": 8, "blocks": [BLOCK]}, "text", "causal_lm", TEXTS),
    "encoder": ({"type": "encoder", "dim": 8, "blocks": [BLOCK]}, "text", "masked_lm", TEXTS),
    "sound": (
        {"type": "encoder", "dim": 8, "blocks": [BLOCK], "frontend": {}},
        "audio",
        "classification",
        SOUND,
    ),
    "seq2seq": (
        {
            "type": "seq2seq",
            "dim": 8,
            "encoder": [BLOCK],
            "decoder": [{**BLOCK, "cross": {"num_heads": 2}}],
        },
        "pairs",
        "seq2seq",
        TEXTS,
    ),
    "vit": (
        {"type": "vit", "dim": 8, "patch": 16, "blocks": [BLOCK]},
        "cifar10",
        "classification",
        IMAGES,
    ),
    "cnn": (
        {
            "type": "cnn",
            "layers": [
                {"type": "conv", "channels": 2},
                {"type": "flatten"},
                {"type": "dense", "units": 2},
            ],
        },
        "cifar10",
        "classification",
        IMAGES,
    ),
    "torchvision": (
        {"type": "torchvision", "name": "squeezenet1_1"},
        "cifar10",
        "classification",
        IMAGES,
    ),
}
DATA: dict[str, dict[str, Any]] = {
    "text": {"files": ["text.txt"], "context": 8},
    "pairs": {"source": ["a"], "target": ["b"], "tokenizer": {"type": "bytes"}},
    "cifar10": {},
    "audio": {"files": ["a.wav"], "pattern": "(?P<label>.)"},
}


def made(family: str) -> Path:
    """A checkpoint of a small network of this family."""
    model, data, task, info = FAMILIES[family]
    spec: dict[str, Any] = {
        "model": model,
        "data": {"type": data, **DATA[data]},
        "task": {"type": task},
        "train": {"steps": 1},
    }
    return saved(spec, info)


def of_model(**changes: Any) -> Callable[[Any], None]:
    return lambda spec: spec["model"].update(changes)


def of_block(slot: str, **changes: Any) -> Callable[[Any], None]:
    return lambda spec: next(v for v in spec["model"].values() if isinstance(v, list))[0][
        slot
    ].update(changes)


def of_blocks(**changes: Any) -> Callable[[Any], None]:
    return lambda spec: next(v for v in spec["model"].values() if isinstance(v, list))[0].update(
        changes
    )


SINES = {"type": "sinusoidal"}
ROTARY = {"type": "rotary"}
POOLS = [{"type": "pool", "kernel": 1, "stride": 1}] * 30_000
HUGE: list[tuple[str, str, Callable[[Any], None]]] = [
    ("decoder", "width", of_model(dim=10**9)),
    ("decoder", "vocabulary", of_model(vocab_size=10**9)),
    ("decoder", "10,000 blocks", of_blocks(repeat=10_000)),
    ("decoder", "10,000 empty blocks", of_blocks(repeat=10_000, mixer=None, ffn=None)),
    ("decoder", "hidden width", of_block("ffn", hidden=10**9)),
    ("decoder", "heads", of_block("mixer", head_dim=10**8)),
    ("decoder", "sinusoidal positions", of_model(max_len=10**9, position=SINES)),
    ("decoder", "many sinusoidal positions", of_model(max_len=3_000_000, position=SINES)),
    ("decoder", "learned positions", of_model(max_len=10**9, position={"type": "learned"})),
    (
        "decoder",
        "rotary positions",
        lambda s: (of_model(max_len=10**9)(s), of_block("mixer", position=ROTARY)(s))[0],
    ),
    (
        "decoder",
        "experts",
        of_blocks(ffn={"type": "moe", "experts": 10**6, "top_k": 1, "hidden": 8}),
    ),
    ("encoder", "width", of_model(dim=10**9)),
    ("encoder", "token types", of_model(token_types=10**9)),
    ("encoder", "sinusoidal positions", of_model(max_len=10**9, position=SINES)),
    ("encoder", "10,000 blocks", of_blocks(repeat=10_000)),
    ("sound", "width", of_model(dim=10**9)),
    ("sound", "sinusoidal positions", of_model(max_len=10**9, position=SINES)),
    ("seq2seq", "width", of_model(dim=10**9)),
    ("seq2seq", "10,000 blocks", of_blocks(repeat=10_000)),
    ("seq2seq", "sinusoidal positions", of_model(max_len=10**9, position=SINES)),
    ("vit", "width", of_model(dim=10**9)),
    ("vit", "registers", of_model(registers=10**9)),
    ("vit", "10,000 blocks", of_blocks(repeat=10_000)),
    ("cnn", "channels", lambda s: s["model"]["layers"][0].update(channels=10**9)),
    ("cnn", "units", lambda s: s["model"]["layers"].insert(2, {"type": "dense", "units": 10**9})),
    (
        "cnn",
        "30,000 layers",
        lambda s: s["model"].update(layers=[{"type": "residual", "layers": POOLS}]),
    ),
    ("torchvision", "another network", of_model(name="regnet_y_128gf")),
    ("torchvision", "an unknown network", of_model(name="os.system")),
]


@pytest.mark.parametrize(
    ("family", "change"), [(f, c) for f, _, c in HUGE], ids=[f"{f}: {w}" for f, w, _ in HUGE]
)
def test_a_spec_that_describes_more_than_the_weights(family: str, change: Any) -> None:
    """Row 76: 4 at once and in little memory, whatever the network."""
    checkpoint = made(family)
    change_spec(checkpoint, change)
    with bounded(), pytest.raises(CheckpointError):
        load_checkpoint(checkpoint, "cpu")


@pytest.mark.parametrize("command", ["finetune", "bench", "predict", "attend", "eval"])
def test_every_command_refuses_a_spec_of_more_than_the_weights(command: str, cli: Cli) -> None:
    """Row 76."""
    checkpoint = fresh_copy()
    change_spec(checkpoint, of_model(max_len=10**9, dim=2**18))
    words = {
        "finetune": ["finetune", "--from", checkpoint],
        "bench": ["bench", checkpoint],
        "eval": ["eval", checkpoint],
    }
    with bounded():
        result = cli(*words.get(command, [command, checkpoint, "red"]))
    assert (result.status, result.out) == (4, ""), result.err
    assert "the checkpoint holds 888" in result.err


def grid(rows: int, columns: int, **more: Any) -> dict[str, Any]:
    return {**IMAGES.to_json(), "image_shape": [3, rows, columns], **more}


def frames(**changes: int) -> dict[str, Any]:
    """DatasetInfo of recordings of one length (image_shape) or of any, whose frames are as in
    `changes`.
    """
    sound = {
        "rate": 8000,
        "window": 200,
        "hop": 80,
        "mels": 8,
        "low": 20.0,
        "high": 4000.0,
        **changes,
    }
    shape = (
        {"frame_width": None, "context": None, "image_shape": [1, 8, 50]}
        if "length" in changes
        else {}
    )
    return {**SOUND.to_json(), **shape, "sound": sound}


FACTS: list[tuple[str, str, dict[str, Any], str]] = [
    ("decoder", "a huge context", {"vocab_size": 20, "context": 10**30}, "a number of 31 digits"),
    ("decoder", "a context of tables", {"vocab_size": 20, "context": 10**9}, "max_len"),
    ("decoder", "a huge vocabulary", {"vocab_size": 10**9, "context": 8}, "the checkpoint holds"),
    ("decoder", "a vocabulary that is a string", {"vocab_size": "20", "context": 8}, "vocab_size"),
    ("decoder", "no vocabulary", {"context": 8}, "model.vocab_size"),
    ("decoder", "a context of true", {"vocab_size": 20, "context": True}, "context"),
    ("decoder", "a context below zero", {"vocab_size": 20, "context": -1}, "context"),
    ("decoder", "an unknown fact", {"vocab_size": 20, "context": 8, "run": "x"}, "run"),
    ("vit", "a huge image", grid(10**6, 10**6), "image_shape"),
    ("vit", "a large image", grid(8192, 8192), "the checkpoint holds|table: expected"),
    ("vit", "an image of two sides", {**IMAGES.to_json(), "image_shape": [32, 32]}, "image_shape"),
    (
        "vit",
        "an image of strings",
        {**IMAGES.to_json(), "image_shape": ["3", "32", "32"]},
        "image_shape",
    ),
    ("vit", "classes as a number", {**IMAGES.to_json(), "classes": 10**9}, "classes"),
    ("vit", "a class twice", {**IMAGES.to_json(), "classes": ["a", "a"]}, "classes"),
    ("vit", "classes that are lists", {**IMAGES.to_json(), "classes": [["a"], ["b"]]}, "classes"),
    (
        "vit",
        "counts of other classes",
        {**IMAGES.to_json(), "class_counts": [1, 2, 3]},
        "class_counts",
    ),
    ("vit", "a deviation of zero", {**IMAGES.to_json(), "std": [0, 1, 1]}, "std"),
    ("vit", "a mean alone", {**IMAGES.to_json(), "std": []}, "mean, std"),
    ("cnn", "a large image", grid(8192, 8192), "the checkpoint holds"),
    (
        "sound",
        "a huge window",
        {**SOUND.to_json(), "sound": dict.fromkeys(("rate", "window", "hop", "mels"), 10**9)},
        "sound",
    ),
    (
        "sound",
        "filters of 2 GB",
        frames(window=500_000, mels=1024),
        "1,024 mels of a window of 500,000 samples",
    ),
    ("sound", "frames of another width", frames(mels=16), "sound: its frames are not those"),
    ("sound", "10^10 samples", frames(length=10**10), "sound.length"),
    ("sound", "a length of other frames", frames(length=8000), "sound: its frames are not those"),
    ("sound", "sound that is a list", {**SOUND.to_json(), "sound": [1]}, "sound"),
    ("sound", "an odd spelling", {**SOUND.to_json(), "spelling": "evil"}, "spelling"),
    (
        "sound",
        "huge frames",
        {**SOUND.to_json(), "frame_width": 10**6},
        "the checkpoint holds|expected",
    ),
]


@pytest.mark.parametrize(
    ("family", "info", "message"),
    [(f, v, m) for f, _, v, m in FACTS],
    ids=[f"{f}: {w}" for f, w, *_ in FACTS],
)
def test_facts_json_is_typed_and_bounded(family: str, info: Any, message: str) -> None:
    """Row 76."""
    checkpoint = made(family)
    if "tables" in message or message == "max_len":
        change_spec(checkpoint, of_model(position=SINES))
    change_json(checkpoint, "facts.json", lambda _: info)
    with bounded(), pytest.raises(CheckpointError, match=message):
        load_checkpoint(checkpoint, "cpu")


def alias_bomb(levels: int) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, levels)]
    return "\n".join(lines)


SPECS = {
    "an alias bomb": alias_bomb(10),
    "a reference to itself": "model: &m {type: decoder, inner: *m}",
    "a list of 30 MB": "a: [" + "x," * 15_000_000 + "]",
    "a list of 6 MB": "a: [" + "x," * 3_000_000 + "]",
    "10,000 brackets": "[" * 10_000,
    "a tag": "model: !!python/object/apply:os.system [touch canary]",
    "a number of 100,000 digits": "model: " + "9" * 100_000,
    "a list": "[1, 2]",
    "nothing": "",
    "a word": "model",
    "sections that are words": "{model: a, data: b, task: c, train: d}",
    "sections that are lists": "{model: [], data: [], task: [], train: []}",
    "a key twice": "model: {}\nmodel: {}",
    "control characters": "model: \x07",
    "a type that speaks of plugins": (
        "{model: {type: give --plugin x}, data: {type: text}, task: {type: ctc}, train: {steps: 1}}"
    ),
    "another model": (
        "{model: {type: nothing}, data: {type: text}, task: {type: causal_lm}, train: {steps: 1}}"
    ),
}


@pytest.mark.parametrize("text", SPECS.values(), ids=SPECS)
def test_hostile_yaml_in_a_checkpoints_spec_is_refused(text: str, cli: Cli) -> None:
    """Row 76."""
    checkpoint = fresh_copy()
    (checkpoint / "spec.yaml").write_text(text)
    sign(checkpoint)
    for words in (["eval", checkpoint], ["finetune", "--from", checkpoint])[
        : 1 if len(text) > 10**6 else 2
    ]:
        with bounded():
            result = cli(*words)
        assert (result.status, result.out) == (4, ""), result.err
        assert "spec.yaml" in result.err or "manifest.json" in result.err
        assert len(result.err) < 3000
    assert not Path("canary").exists()


def test_networks_within_the_bound_of_the_weights_are_built(cli: Cli) -> None:
    """Row 76: what is refused is what no training leaves behind; long tables and new heads are none
    of that.
    """
    for name, change in (("sines", {"position": SINES}), ("rotary", {})):
        model, _, _, info = FAMILIES["decoder"]
        options = {**model, **change, "max_len": 100_000}
        if name == "rotary":
            options["blocks"] = [{**BLOCK, "mixer": {**BLOCK["mixer"], "position": ROTARY}}]
        spec: dict[str, Any] = {
            "model": options,
            "data": {"type": "text", **DATA["text"]},
            "task": {"type": "causal_lm"},
            "train": {"steps": 1},
        }
        load_checkpoint(saved(spec, info), "cpu")
    weights = {"a": torch.zeros(4, 8)}
    with models.within(weights, 20_000):
        assert torch.nn.Linear(8, 20_000).weight.shape == (20_000, 8)
    with pytest.raises(CheckpointError, match=r"numbers or more"), models.within(weights):
        torch.nn.Linear(10**5, 10**5)
    assert torch.empty(10**8).numel() == 10**8  # and nothing is watched afterwards


def test_a_spec_that_could_not_be_read_again_is_refused_before_training() -> None:
    """Row 76: the limits of what is read hold for what is written."""
    model = {"type": "decoder", "dim": 8, "blocks": [BLOCK] * 3000}
    spec: dict[str, Any] = {
        "model": model,
        "data": {"type": "text", **DATA["text"]},
        "task": {"type": "causal_lm"},
        "train": {"steps": 1},
    }
    with pytest.raises(
        Exception, match=r"values once resolved, and at most 100,000 are read; use `repeat`"
    ):
        from_dict(spec)


def test_yaml_round_trip() -> None:
    """Row 76: words that YAML 1.2 takes for numbers, and numbers of all kinds."""
    words = [
        "1e3",
        "0o7",
        "no",
        "1.5",
        "~",
        "",
        "null",
        "12:30",
        "010",
        ".5e3",
        "a: b",
        "2020-01-01",
        "0x1F",
        "é",
        "a\nb",
        "=",
        "<<",
    ]
    values = {
        "words": words,
        "numbers": [1e-5, 1e300, 0.1, -1e-7, 1e16, 5, True, None],
        **{word: 1 for word in words if word != "<<"},
    }
    assert parse_yaml(dump_yaml(values).encode(), "x").plain() == values
    spec = from_dict(parse_yaml((fresh_copy() / "spec.yaml").read_bytes(), "x").plain())
    assert from_dict(parse_yaml(spec.to_yaml().encode(), "x").plain()) == spec
