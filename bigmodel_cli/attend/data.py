"""What was found as data: statistics as JSON, exact weights as safetensors or JSON Lines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from bigmodel_cli.attend.classes import CLASSES
from bigmodel_cli.attend.look import CAUTION, Layer, Look, Side, Statistics
from bigmodel_cli.console import strict_json
from bigmodel_cli.errors import SpecError
from bigmodel_cli.lazy import Tensor
from bigmodel_cli.outputs import check_output, write_output

FORMS = (".safetensors", ".jsonl")
MAP = "map"
"""What the map over an image is called."""
FIGURES = tuple(f.name for f in fields(Statistics) if f.name != "half")
"""Names of the statistics."""
MOST_TOP = 5
"""Keys that the query reads most, where no other number is asked for."""


def values_of(look: Look) -> dict[str, Any]:
    """Everything but maps and weights, as plain values."""
    values: dict[str, Any] = {**_named(look), "answer": look.answer}
    if look.heat is not None:
        values |= look.heat.to_json()
    return {
        **values,
        "notes": look.notes,
        "caution": CAUTION,
        "difference": look.difference,
        "classes": {letter: f"{name}: {rule}" for letter, (name, rule) in CLASSES.items()},
        "layers": [layer_values(number, layer) for number, layer in enumerate(look.layers)],
        **look.extra,
    }


def _named(look: Look) -> dict[str, Any]:
    """Which model, which checkpoint and which input."""
    return {"model": look.model, "checkpoint": look.checkpoint, "input": look.title}


def layer_values(number: int, layer: Layer) -> dict[str, Any]:
    """A layer's heads with their statistics, and what the asked query reads most."""
    values: dict[str, Any] = {
        "layer": number if layer.number is None else layer.number,
        "name": layer.name,
        "kind": layer.kind,
        "causal": layer.causal,
        "signed": layer.signed,
        "queries": _side(layer.queries),
        "keys": _side(layer.keys),
        "difference": layer.difference,
        "query": layer.query,
    }
    if layer.sampled is not None:
        values["sampled_queries"] = len(layer.sampled)
    if layer.key is not None:
        values["key"] = layer.key
    values["heads"] = [head_values(layer, head) for head in range(layer.heads)]
    return values


def head_values(layer: Layer, head: int) -> dict[str, Any]:
    """A head: its class and statistics, half the intervals of sampled ones, and its reading."""
    values: dict[str, Any] = {"head": head, "class": layer.letters[head : head + 1]}
    for name in FIGURES:
        figure = getattr(layer.statistics, name)
        values[name] = None if figure is None else _number(figure[head])
    if layer.statistics.half:
        halves = layer.statistics.half.items()
        values["half_interval"] = {name: _number(half[head]) for name, half in halves}
    count = MOST_TOP if layer.top is None else layer.top[0].shape[-1]
    values["reads"] = heaviest(layer.read[head], layer.keys, count)
    if layer.moved is not None:
        values["moves"] = heaviest(layer.moved[head], layer.keys, count)
    if layer.readers is not None:
        values["read_by"] = heaviest(layer.readers[head], layer.queries, count)
    return values


def heaviest(weights: Tensor, side: Side, count: int) -> list[dict[str, Any]]:
    """The positions of the largest weights (S), without their signs, and what they are called."""
    places = weights.abs().topk(min(count, len(weights))).indices.tolist()
    return [
        {"position": place, "token": side.labels[place], "weight": float(weights[place])}
        for place in places
        if float(weights[place])
    ]


def check_data(path: Path) -> None:
    """Raise `SpecError` for a file of another form, `ResourceError` where it cannot be written."""
    if path.suffix not in FORMS:
        raise SpecError(f"--data: {path}: the name must end in {' or '.join(FORMS)}")
    check_output(path, "--data")


def write_data(look: Look, path: Path) -> None:
    """Weights and statistics: `.jsonl` has a record for each head, `.safetensors` tensors by name.

    Raises `ResourceError` where the file cannot be written.
    """
    if path.suffix == ".jsonl":
        write_output(path, (f"{line}\n".encode() for line in _records(look)))
        return
    from safetensors.torch import save

    tensors = {name: tensor.clone() for name, tensor in _tensors(look)}  # figures may share memory
    facts = {"attend": strict_json(values_of(look)), "format": "pt"}
    write_output(path, [save(tensors, facts)])


def _tensors(look: Look) -> Iterator[tuple[str, Tensor]]:
    """`LAYER NAME.weights` (N, T, S) of `.heads` (N), and everything else that a layer has.

    Of an image also `map` (h, w), not scaled, `heat` (H, W), the same resized to the image with a
    maximum of 1, and `image` (C, H, W) with pixels in 0..1.
    """
    if look.heat is not None:
        own = {"image": look.heat.image, "heat": look.heat.heat, MAP: look.heat.coarse}
        yield from ((name, x.contiguous()) for name, x in own.items() if x is not None)
    for layer in look.layers:
        if layer.weights is not None:
            yield f"{layer.name}.heads", layer.weights[0].contiguous()
            yield f"{layer.name}.weights", layer.weights[1].contiguous()
        for name in FIGURES:
            figure = getattr(layer.statistics, name)
            if figure is not None:
                yield f"{layer.name}.{name}", figure.contiguous()
        yield f"{layer.name}.read", layer.read.contiguous()
        yield f"{layer.name}.received", layer.received.contiguous()
        if layer.moved is not None:
            yield f"{layer.name}.moved_by_query", layer.moved.contiguous()
        if layer.readers is not None:
            yield f"{layer.name}.readers", layer.readers.contiguous()
        if layer.top is not None:
            yield f"{layer.name}.top_keys", layer.top[0].contiguous()
            yield f"{layer.name}.top_weights", layer.top[1].contiguous()
        if layer.sampled is not None:
            yield f"{layer.name}.sampled", layer.sampled.contiguous()


def _records(look: Look) -> Iterator[str]:
    """A line of JSON for each head; of chosen ones with their weights, a list for each query.

    Further lines, whose `kind` is no layer's, are of the map over an image and of each table beside
    heads: alignment, times, routing, lens.
    """
    for number, layer in enumerate(look.layers):
        whole = layer_values(number, layer)
        heads = whole.pop("heads")
        chosen = (
            {}
            if layer.weights is None
            else dict(zip(layer.weights[0].tolist(), layer.weights[1], strict=True))
        )
        for head in heads:
            record = {**_named(look), **whole, **head}
            if layer.top is not None:
                record["top_keys"] = layer.top[0][head["head"]].tolist()
                record["top_weights"] = layer.top[1][head["head"]].tolist()
            if head["head"] in chosen:
                record["weights"] = chosen[head["head"]].tolist()
            yield strict_json(record)
    if look.heat is not None:
        yield strict_json({**_named(look), "kind": MAP, **look.heat.to_json()})
    for name, table in look.extra.items():
        yield strict_json({**_named(look), "kind": name, name: table})


def _side(side: Side) -> dict[str, Any]:
    return {"name": side.name, "tokens": list(side.labels)}


def _number(value: Tensor) -> float | None:
    found = float(value)
    return found if found == found else None
