"""Looks of kinds that `looks.made` has not: images, encoder and decoder, other mixers, any text."""

from __future__ import annotations

import dataclasses
import math

import torch
from looks import layer_of, made, random_weights

from bigmodel_cli.attend.alignment import Alignment
from bigmodel_cli.attend.heat import Heat
from bigmodel_cli.attend.look import Blocks, Layer, Look, Side


def of_text(labels: list[str], layers: int = 2, heads: int = 3) -> Look:
    """A decoder that reads these tokens."""
    look = made(layers, heads, len(labels))
    side = Side("text", labels)
    return dataclasses.replace(look, layers=[_with(layer, side, side) for layer in look.layers])


def of_image(rows: int = 8, first: int = 1, layers: int = 4, heads: int = 3) -> Look:
    """A vision transformer: patches after a class token and registers."""
    labels = ["class", *(f"register {k}" for k in range(1, first))][:first]
    labels += [f"{row},{column}" for row in range(rows) for column in range(rows)]
    labels.append("register")
    side = Side("image", labels, first=first, grid=(rows, rows))
    look = made(layers, heads, len(labels), causal=False)
    seen = [dataclasses.replace(_with(each, side, side), query=0) for each in look.layers]
    return Look("vit", seen, answer="'cat' 91 %", notes=["The rollout is a heuristic."])


def of_translation(source: int = 9, target: int = 7) -> Look:
    """An encoder, a decoder, and what the one reads of the other, two layers each."""
    generator = torch.Generator().manual_seed(3)
    german = ["ein", "mann", "steht", "auf", "einer", "leiter", "und", "putzt", "fenster", "."]
    english = ["a", "man", "stands", "on", "a", "ladder", ".", "<end>"]
    one = Side("source", [german[k % 10] for k in range(source)], list(range(source)))
    two = Side("target", [english[k % 8] for k in range(target)], list(range(target)))
    layers = []
    for number in range(2):
        weights = random_weights(4, source, False, generator, number)
        layers.append(layer_of(f"encoder.{number}.mixer", weights, one, False))
    for number in range(2):
        weights = random_weights(4, target, True, generator, number)
        own = layer_of(f"decoder.{number}.mixer", weights, two, True)
        layers += [own, _crossed(own, one, two, generator)]
    return Look("translator", layers, answer="a man stands on a ladder .")


def of_alignment() -> Look:
    """The same of longer sentences, with the words that each word comes from."""
    source, target = 19, 17
    look = of_translation(source, target)
    named = look.layers[-1].keys.labels, look.layers[-1].queries.labels
    weights = torch.full((target, source), 0.2 / (source - 1))
    place = torch.arange(target)
    weights[place, place] = 0.8
    weights[3, 12] = 0.5
    table = Alignment(
        list(named[0]),
        list(named[1]),
        weights,
        "decoder.1.cross",
        "as words are written",
        "",
        [True] * source,
        agreement=0.71,
    )
    notes = ["the target is best of 5 beams: -4.7815 nats in one pass over it"]
    return dataclasses.replace(look, extra={"alignment": table.to_json()}, notes=notes)


def of_rollout(tokens: int = 22) -> Look:
    """A decoder whose shares were followed through all layers, with blanks among its tokens."""
    look = of_text(list("the dog fell on a fish"[:tokens]), 2, 2)
    shares = torch.linspace(1, 5, tokens).softmax(0).tolist()
    return dataclasses.replace(look, extra={"rollout": {"shares": shares, "query": tokens - 1}})


def of_experts(tokens: int = 22) -> Look:
    """A decoder, half of whose experts are idle."""
    look = of_text(list("the dog fell on a fish"[:tokens]), 2, 2)
    record = {
        "balance": 0.5,
        "busiest": 2.0,
        "idle": 2,
        "dropped": 0,
        "load": [0.0, 0.6, 0.4, 0.0],
        "chosen": [[1, 2]] * tokens,
        "weights": [[0.56, 0.44]] * tokens,
    }
    records = [{"layer": f"blocks.{n}.ffn", **record} for n in range(2)]
    return dataclasses.replace(look, extra={"routing": records})


def of_image_tested() -> Look:
    """A vision transformer with a map over the image that was put to the test."""
    notes = ["test: " + "it was put to the test " * 9]
    heat = of_convolutions().heat
    return dataclasses.replace(of_image(14), notes=notes, heat=heat)


def of_mixing(tokens: int = 12) -> Look:
    """Another mixer, whose weights have signs."""
    look = made(2, 3, tokens)
    layers = []
    for layer in look.layers:
        sign = torch.where(torch.arange(tokens) % 3 == 0, -1.0, 1.0)
        blocks = Blocks(layer.blocks.most * sign, layer.blocks.mean * sign, 1, 1)
        read = layer.read * sign
        layers.append(
            dataclasses.replace(
                layer, kind="mixing", signed=True, blocks=blocks, read=read, moved=None, letters=""
            )
        )
    return Look("mamba", layers)


def _with(layer: Layer, queries: Side, keys: Side) -> Layer:
    return dataclasses.replace(layer, queries=queries, keys=keys)


def _crossed(own: Layer, source: Side, target: Side, generator: torch.Generator) -> Layer:
    scores = 3 * torch.randn(4, len(target), len(source), generator=generator)
    for place in range(len(target)):
        scores[:, place, min(place, len(source) - 1)] += 4
    weights = scores.softmax(-1)
    nothing = torch.full((4,), math.nan)
    statistics = dataclasses.replace(
        own.statistics, sink=weights[:, :, 0].mean(-1), previous=nothing, own=nothing
    )
    return dataclasses.replace(
        own,
        name=own.name.replace("mixer", "cross"),
        kind="cross",
        keys=source,
        causal=False,
        statistics=statistics,
        blocks=Blocks(weights, weights, 1, 1),
        read=weights[:, -1],
        received=weights.mean(1),
        moved=None,
        top=None,
        letters="xxcu",
    )


def of_convolutions(size: int = 28, channels: int = 3) -> Look:
    """A map over an image, of a network without heads."""
    place = torch.linspace(0, 1, size)
    image = torch.stack(
        [place[:, None] * place, place.expand(size, size), 1 - place.expand(size, size).T]
    )
    heat = torch.exp(-((place[:, None] - 0.3) ** 2 + (place - 0.7) ** 2) * 20)
    seen = Heat(image[:channels], heat, "cat", 0.91, (7, 7), "Grad-CAM", None)
    return Look(
        "cnn", [], answer="cat: 91.0 %", notes=["test: " + "it was put to the test " * 9], heat=seen
    )
