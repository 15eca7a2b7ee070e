"""Random networks that are nearly those of published families, for what writes and reads these.

A spec is drawn as that of a family in small, of which a few options are changed: to a value that
is nearly the family's (another eps, a window, the other form of GELU), to another part, in one
block or in all. `published` has a config.json for each family and form.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from published_configs import CONFIGS, IMAGES, TORCHVISION, other_models
from pydantic import ValidationError
from random_changes import changes

from bigmodel_cli.config import DatasetInfo, MelConfig
from bigmodel_cli.convert.config import Config
from bigmodel_cli.convert.families import BY_TYPE, TIMM
from bigmodel_cli.convert.family import grouped, written_out
from bigmodel_cli.convert.opening import typed
from bigmodel_cli.errors import OptionError, SpecError
from bigmodel_cli.models import build
from bigmodel_cli.spec import Spec, from_dict

Values = dict[str, Any]
CLASSES = ("no", "so so", "yes", "not at all", "surely")
LONGEST = 40
MELS = 12
"""The numbers of a frame of sound."""
REPEATS = 60
"""How many specs are drawn for one that can be built."""


@dataclass(frozen=True)
class Drawn:
    """A spec that can be built: the family that it began as, and what of that was changed."""

    base: str
    task: str  # "" for a network without a head
    spec: Spec
    info: DatasetInfo
    changed: list[str] = field(default_factory=list)


def draw(seed: int, names: list[str] | None = None) -> Drawn:
    """The spec of a seed, of one of these families (any, where none is named)."""
    rng = random.Random(seed)
    name = rng.choice(names or [*every_base()])
    for _ in range(REPEATS):
        model, task, info = base(name, rng)
        changed = [] if rng.random() < 0.12 else list(changes(model, rng))
        try:
            return checked(name, model, task, info, changed)
        except (ValidationError, SpecError, OptionError, ValueError, AssertionError):
            continue  # no such network can be built
    return checked(*_plain(name, rng))


def every_base() -> Iterator[str]:
    """Names of what a drawing begins with."""
    yield from CONFIGS
    yield from ("timm vit", "timm resnet", "torchvision")
    yield from other_models()


def base(name: str, rng: random.Random) -> tuple[Values, str, DatasetInfo]:
    """(the model section, the head's task, the data) of a family's network, nothing changed."""
    image = rng.choice(IMAGES)
    if name in other_models():
        model, task = copy.deepcopy(other_models()[name]), rng.choice(TASKS[name.split()[1]])
    elif name == "torchvision":
        model, task = {"type": "torchvision", "name": rng.choice(TORCHVISION)}, "classification"
        image = (3, 64, 64)
    elif name.startswith("timm"):
        family = TIMM["resnet" in name]
        image, task = (3, 64, 64) if "resnet" in name else image, "classification"
        model = family.model(Config(_timm(name, rng), name))
    else:
        family = BY_TYPE[CONFIGS[name]["model_type"]]
        values = {"architectures": [rng.choice([*family.heads])], **CONFIGS[name]}
        config = Config(values, name)
        model, task = family.model(config), family.task_of(config)
    model = written_out(typed(model))
    return model, task, _info(model, task, image)


def _timm(name: str, rng: random.Random) -> Values:
    if "resnet" in name:
        return {"architecture": rng.choice(["resnet18", "resnet34"]), "num_classes": 5}
    sizes = {"embed_dim": 24, "depth": 2, "num_heads": 3, "patch_size": 3, "mlp_ratio": 2.0}
    more = {"qkv_bias": rng.random() < 0.7, "init_values": rng.choice([None, 0.1])}
    return {
        "architecture": "vit_small_patch16_224", "num_classes": 5, "model_args": {**sizes, **more},
    }  # fmt: skip


TASKS = {
    "decoder": ["causal_lm", "tagging"],
    "encoder": ["masked_lm", "classification", "tagging"],
    "vit": ["classification", ""],
    "seq2seq": ["seq2seq"],
    "cnn": ["classification"],
    "torchvision": ["classification"],
}
"""Of a type of model: the tasks that a head may be for."""


def _info(model: Values, task: str, image: tuple[int, int, int]) -> DatasetInfo:
    labels = CLASSES if task in ("classification", "tagging") else ()
    if model["type"] in ("vit", "cnn", "torchvision"):
        return DatasetInfo(
            image_shape=image, classes=labels or ("no head",), mean=(0.5,) * image[0],
            std=(0.25,) * image[0],
        )  # fmt: skip
    vocab = model["vocab_size"] or 61
    if model.get("frontend"):
        length = model["source_len"]
        sound = MelConfig(
            16000, 400, 160, MELS, 0.0, 8000.0, features="whisper", padded=160 * length
        )
        return DatasetInfo(
            vocab_size=vocab, context=length, text_context=model["max_len"], frame_width=MELS,
            sound=sound,
        )  # fmt: skip
    return DatasetInfo(
        vocab_size=vocab, context=LONGEST, classes=labels, tagged=task == "tagging",
    )  # fmt: skip


def _plain(name: str, rng: random.Random) -> tuple[str, Values, str, DatasetInfo, list[str]]:
    return (name, *base(name, rng), [])


def checked(name: str, model: Values, task: str, info: DatasetInfo, changed: list[str]) -> Drawn:
    """The drawing with its spec checked and its network built once."""
    if model.get("vocab_size"):
        info = DatasetInfo.from_json({**info.to_json(), "vocab_size": model["vocab_size"]})
    blocks = {k: grouped(v) for k, v in model.items() if k in ("blocks", "encoder", "decoder")}
    values = {
        "model": {**model, **blocks},
        "data": _data(model, info),
        "task": {"type": task or "classification" if info.image_shape or task else "masked_lm"},
        "train": {"steps": 1},
    }
    spec = from_dict(values)
    build(spec.model, info)
    return Drawn(name, task, spec, info, changed)


def _data(model: Values, info: DatasetInfo) -> Values:
    text = {"context": LONGEST, "tokenizer": "bytes"}
    if info.image_shape is not None:
        return {"type": "image_folder", "root": "none"}
    if info.sound is not None:
        return {
            "type": "audio",
            "files": ["none"],
            "transcripts": ["none"],
            "tokenizer": "bytes",
            "features": "whisper",
            "mels": MELS,
            "high": 8000.0,
            "context": info.text_context,
            "pad_to": (info.sound.padded or 0) / info.sound.rate,
        }
    if model["type"] == "seq2seq":
        return {"type": "pairs", "source": ["none"], "target": ["none"], **text}
    if info.tagged:
        return {"type": "conll", "train": ["none"], **text}
    if info.classes:
        return {"type": "table", "train": ["none"], "text": [0], "label": 1, **text}
    return {"type": "text", "files": ["none"], **text}
