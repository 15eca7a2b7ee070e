"""Changes of a spec's options at random: to a value worth a try, to any other, to another part."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from bigmodel_cli.catalog import schema
from bigmodel_cli.config import Options
from bigmodel_cli.convert.opening import typed
from bigmodel_cli.options.tree import Tree

Values = dict[str, Any]
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
    "max_len": [40, 41, 64],
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
    "kernel": [2, 3, 4, 5],
    "source_len": [100, 104, 200],
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
    *("reconstruct", "weights", "repeat"),
    *("blocks", "encoder", "decoder", "layers", "mixers", "scales"),
}
"""Options of other kinds of data, and lists of parts, which change by their items."""
_TREE = Tree(schema())


def changes(model: Values, rng: random.Random) -> Iterator[str]:
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
        if name == "frontend" and value is None:
            continue  # which would be of other data
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
    if name in ("dim", "vocab_size") or (name in NEAR and rng.random() < 0.85):
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
