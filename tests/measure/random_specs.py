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

from bigmodel_cli.catalog import schema
from bigmodel_cli.config import DatasetInfo, Options
from bigmodel_cli.convert.config import Config
from bigmodel_cli.convert.families import BY_TYPE, TIMM
from bigmodel_cli.convert.family import grouped, written_out
from bigmodel_cli.convert.opening import typed
from bigmodel_cli.errors import OptionError, SpecError
from bigmodel_cli.models import build
from bigmodel_cli.options.tree import Tree
from bigmodel_cli.spec import Spec, from_dict

Values = dict[str, Any]
CLASSES = ("no", "so so", "yes", "not at all", "surely")
LONGEST = 40
NEAR: dict[str, list[Any]] = {
    "dim": [12, 24, 35, 36, 48],
    "eps": [1e-12, 1e-6, 1.1e-6, 1e-5, 1e-3, 1e-2],
    "norm_eps": [1e-6, 1e-5, 1e-2],
    "base": [100.0, 500.0, 10_000.0, 10_001.0, 1e6],
    "fraction": [0.25, 0.5, 1.0],
    "dropout": [0.0, 0.1, 0.3],
    "head_dropout": [None, 0.0, 0.2],
    "drop_path": [0.0, 0.1],
    "hidden": [13, 20, 44, 64],
    "num_heads": [1, 2, 3, 4, 6],
    "kv_heads": [1, 2, 3, 6],
    "head_dim": [4, 6, 8, 10, 16],
    "window": [None, 1, 2, 5, 39, 40, 100],
    "max_len": [LONGEST, 41, 64],
    "vocab_size": [61, 64],
    "scale": [None, 1.0, 0.25, 0.31],
    "scale_embeddings": [True, False, 5.0, 24**0.5, 36**0.5],
    "logit_scale": [1.0, 0.5, 36**-0.5, 24**-0.5, 1 / 7],
    "logit_softcap": [None, 3.0, 30.0],
    "softcap": [None, 2.0, 50.0],
    "layer_scale": [None, 1.0, 0.1, 1e-5],
    "residual_scale": [1.0, 0.5, 0.22],
    "bias": [True, False, ["q", "k", "v"], ["q", "v"], ["o"], ["q", "v", "o"]],
    "experts": [4, 6, 8],
    "top_k": [1, 2, 3],
    "groups": [1, 2, 4],
    "top_groups": [1, 2],
    "shared": [0, 1, 2],
    "balance_weight": [0.0, 0.001, 0.01],
    "factor": [1.0, 1.5, 4.0, 8.0],
    "trained": [20, 32, 40, 41],
    "first": [0, 1, 2],
    "token_types": [0, 1, 2, 3],
    "registers": [0, 1, 4],
    "patch": [2, 3, 4, 6],
    "expand": [1.0, 1.5, 2.0, 3.0],
    "kernel": [2, 3, 4],
    "chunk": [8, 16, 64],
    "buckets": [4, 8, 10, 32],
    "max_distance": [17, 20, 128],
    "init_std": [None, 0.02, 0.1],
    "mscale": [0.0, 0.7, 1.0],
    "mscale_all_dim": [0.0, 0.9, 1.0],
    "state": [4, 5, 8],
    "key_heads": [None, 1, 2],
}  # fmt: skip
"""Option -> values worth a try, whatever the part that has it."""
OMITTED = {
    *("reconstruct", "weights", "frontend", "repeat"),
    *("blocks", "encoder", "decoder", "layers", "mixers", "scales"),
}
"""Options of other kinds of data, and lists of parts, which change by their items."""
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
        changed = [] if rng.random() < 0.12 else list(_changes(model, rng))
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
    return DatasetInfo(
        vocab_size=model["vocab_size"] or 61, context=LONGEST, classes=labels,
        tagged=task == "tagging",
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
    if model["type"] == "seq2seq":
        return {"type": "pairs", "source": ["none"], "target": ["none"], **text}
    if info.tagged:
        return {"type": "conll", "train": ["none"], **text}
    if info.classes:
        return {"type": "table", "train": ["none"], "text": [0], "label": 1, **text}
    return {"type": "text", "files": ["none"], **text}


_TREE = Tree(schema())


def _changes(model: Values, rng: random.Random) -> Iterator[str]:
    """Change some options in place; the paths of what was changed."""
    for _ in range(rng.choice([1, 1, 1, 1, 1, 2, 2, 3, 5])):
        if rng.random() < 0.06 and (found := _restacked(model, rng)):
            yield found
            continue
        try:
            options = typed(copy.deepcopy(model))
        except ValidationError:
            return
        places = list(_places(options, ()))
        if not places:
            return
        path, holder, name = rng.choice(places)
        changed = _other(_schema_of(holder, name), getattr(holder, name), name, rng)
        everywhere = rng.random() < 0.7
        for node in _nodes(model, path, everywhere):
            if name in node:
                node[name] = copy.deepcopy(changed)
        yield ".".join(map(str, (*path, name)))


def _restacked(model: Values, rng: random.Random) -> str:
    """A block more, less, or in another place."""
    stacks = [name for name in ("blocks", "encoder", "decoder", "layers") if name in model]
    if not stacks:
        return ""
    name = rng.choice(stacks)
    blocks = model[name]
    i = rng.randrange(len(blocks))
    if rng.random() < 0.5 or len(blocks) == 1:
        blocks.insert(rng.randrange(len(blocks) + 1), copy.deepcopy(blocks[i]))
    else:
        del blocks[i]
    return name


Path = tuple[str | int, ...]


def _places(options: Options, path: Path) -> Iterator[tuple[Path, Options, str]]:
    """Every option of these and of those within: (path of the options, the options, name)."""
    for name in type(options).model_fields:
        if name in OMITTED or (name == "type" and not path):
            continue
        value = getattr(options, name)
        if name != "type":
            yield path, options, name
        if isinstance(value, Options):
            yield from _places(value, (*path, name))
        if isinstance(value, list):
            for i, item in enumerate(value):
                if isinstance(item, Options):
                    yield from _places(item, (*path, name, i))


def _nodes(model: Values, path: Path, everywhere: bool) -> Iterator[Values]:
    """The mapping at a path; everywhere: at that path in each block of the list."""
    at: list[Any] = [model]
    for step in path:
        if isinstance(step, int) and everywhere:
            at = [item for node in at for item in node]
        else:
            at = [node[step] for node in at if _has(node, step)]
    yield from (node for node in at if isinstance(node, dict))


def _has(node: Any, step: str | int) -> bool:
    if isinstance(step, int):
        return isinstance(node, list) and step < len(node)
    return isinstance(node, dict) and step in node


def _schema_of(options: Options, name: str) -> Values:
    found: Values = _TREE.properties(type(options).__name__)[name]
    return found


def _other(values: Values, now: Any, name: str, rng: random.Random) -> Any:
    """Another value for an option with this schema."""
    if name == "dim" or (name in NEAR and rng.random() < 0.85):
        near = [value for value in NEAR[name] if value != now] or NEAR[name]
        return rng.choice(near)
    ways = list(_alternatives(values))
    kind = rng.choice(ways)
    if "$ref" in kind:
        return _part(kind["$ref"].rpartition("/")[2], rng)
    if "enum" in kind:
        return rng.choice([v for v in kind["enum"] if v != now] or kind["enum"])
    match kind.get("type"):
        case "null":
            return None
        case "boolean":
            return not now
        case "integer":
            own = now if type(now) is int else 4
            return max(1, rng.choice([own + 1, own - 1, 2 * own, 1, 2, 3]))
        case "number":
            own = float(now) if type(now) in (int, float) else 0.5
            return rng.choice([own * 1.0001, own * 1.1, own * 2, own / 2, 1.0])
        case "array":
            return None if now is None else rng.sample(now, len(now)) if now else []
    return kind.get("const", now)


def _alternatives(values: Values) -> Iterator[Values]:
    inner = [*values.get("anyOf", ()), *values.get("oneOf", ())]
    if not inner:
        yield values
    for kind in inner:
        yield from _alternatives(kind)


def _part(name: str, rng: random.Random) -> Values:
    """A part of this class: what it needs, and perhaps an option or two more."""
    own, needed = _TREE.properties(name), set(_TREE.classes[name].get("required", ()))
    found: Values = {"type": _TREE.types(name)[0]} if _TREE.types(name) else {}
    for option, values in own.items():
        if option == "type" or not (option in needed or rng.random() < 0.2):
            continue
        if option == "mixers":
            found[option] = [_part(n, rng) for n in ("AttentionOptions", "Mamba2Options")]
        else:
            found[option] = _other(values, values.get("default"), option, rng)
    return found
