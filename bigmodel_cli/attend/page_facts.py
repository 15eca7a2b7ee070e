"""The values and arrays of a page: what its script reads."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from bigmodel_cli.attend import colours
from bigmodel_cli.attend.classes import CLASSES
from bigmodel_cli.attend.details import Detail, Details, deflated
from bigmodel_cli.attend.look import CAUTION, Layer, Look, Side, within
from bigmodel_cli.attend.page_blocks import MOST_ROWS, coarse, codes, thumbnails
from bigmodel_cli.attend.page_heat import KIND
from bigmodel_cli.attend.page_room import LONG, SHORT, fitted
from bigmodel_cli.attend.page_views import View
from bigmodel_cli.attend.telling import telling
from bigmodel_cli.attend.terminal.heat_map import CAUTION as OF_MAPS
from bigmodel_cli.console import counted, one_line

FEW_WEIGHTS = 1_500_000
"""More of them to a head, and the page also carries the blocks of the look."""
DIFFERENCE = "difference"
"""The kind of layers whose heads are differences of two models."""
SHOWN = 8
"""Heads that tell most, which are carried before others where not all fit."""
CODE = 120_000
"""Bytes of the script, the style and the frame of a page, or more."""
STATISTICS = (
    ("entropy", "Entropy", "nats"),
    ("sink", "First key", "share of the weight on the first key, or the head's own sink"),
    ("own", "Own", "share on the query's own position"),
    ("previous", "Previous", "share on the position before the query"),
    ("distance", "Distance", "mean of |i - j| in positions"),
    ("induction", "Induction", "share on what followed earlier occurrences of the query's token"),
    ("duplicate", "Duplicate", "share on earlier occurrences of the query's token"),
    ("column", "Column", "largest share that one key other than the first receives"),
    ("uniform", "Uniform", "entropy as a part of that of equal weights"),
    ("moved", "Sink moves", "share of |weight| x |v W_O| on the first key"),
)


@dataclass(frozen=True)
class PageOptions:
    """How the page opens: at which layer, head, query and key, and in which view.

    Without a `head` (layer, head) it is the most telling one of which the page has all weights.

    `view` is "map", "lines", "text", "image", "keys", "statistics" or the name of a further view,
    the one that fits the input when None; `image` a PNG that lies under the patches.
    """

    head: tuple[int, int] | None = None
    query: int | None = None
    key: int = 0
    view: str | None = None
    image: bytes | None = None


class Arrays:
    """Arrays that the script unpacks when it needs them, each carried once."""

    def __init__(self) -> None:
        self.numbers: dict[bytes, int] = {}

    def add(self, packed: bytes) -> int:
        """The number of an array."""
        return self.numbers.setdefault(packed, len(self.numbers))

    def written(self) -> str:
        """As elements that are not run."""
        return "\n".join(
            f'<script type="text/plain" id="b{number}">{base64.b64encode(packed).decode()}</script>'
            for packed, number in self.numbers.items()
        )


def facts_of(
    look: Look,
    details: Details,
    options: PageOptions,
    arrays: Arrays,
    views: Sequence[View] = (),
) -> dict[str, Any]:
    """The page's values, for JSON; their arrays are added to `arrays`."""
    sides: list[Side] = []
    for layer in look.layers:
        sides += [s for s in (layer.queries, layer.keys) if s not in sides]
    layers = [_layer(layer, look, sides, arrays) for layer in look.layers]
    facts: dict[str, Any] = {
        "model": one_line(look.model),
        "facts": " · ".join(filter(None, (*_named(look), _line(look), one_line(look.answer)))),
        "caution": _caution(look),
        "notes": [one_line(note) for note in look.notes],
        "sides": [_side(side) for side in sides],
        "layers": layers,
        "views": [view.to_json() for view in views],
        "statistics": STATISTICS,
        "classes": {
            letter: {"name": name, "rule": f"{name}: {rule}", "colour": colours.CLASSES[letter]}
            for letter, (name, rule) in CLASSES.items()
        },
        "scales": {
            theme: {kind: _scale(kind, theme == "dark") for kind in ("sequential", "diverging")}
            for theme in ("light", "dark")
        },
        "image": None
        if options.image is None
        else "data:image/png;base64," + base64.b64encode(options.image).decode(),
    }
    details, said = _fitted(look, details, facts, arrays)
    facts["notes"] += [said] if said else []
    for layer, written in zip(look.layers, layers, strict=True):
        own = details.found.get(layer.name, {})
        written |= _coarse(layer, look, arrays, bare=len(own) < layer.heads)
        written["details"] = {head: _detail(detail, arrays) for head, detail in own.items()}
    return {**facts, "start": _start(look, details, options, views)}


def _fitted(
    look: Look, details: Details, facts: dict[str, Any], arrays: Arrays
) -> tuple[Details, str]:
    """The heads that fit into the page beside all else, and what was done for it."""
    short = all(_weights(layer) <= FEW_WEIGHTS for layer in look.layers)
    room = (SHORT if short else LONG) - CODE - len(json.dumps(facts)) - len(arrays.written())
    all_there = all(len(details.found.get(la.name, {})) == la.heads for la in look.layers)
    if short and all_there:
        found, said = fitted(details, room)
        if sum(map(len, found.found.values())) == sum(map(len, details.found.values())):
            return found, said
    others = Arrays()
    for layer in look.layers:
        _coarse(layer, look, others, bare=True)
    told = telling(_attending(look), SHOWN)
    first = [(look.layers[one.layer].name, one.head) for one in told]
    return fitted(details, max(0, room - len(others.written())), first)


def _coarse(layer: Layer, look: Look, arrays: Arrays, bare: bool) -> dict[str, Any]:
    """Blocks of a layer that has many weights, or heads of which the page has no others."""
    found: dict[str, Any] = {"blocks": None, "read": None}
    peak, heads = _peak(layer, look), sum(la.heads for la in look.layers)
    if bare or _weights(layer) > FEW_WEIGHTS:
        found["blocks"] = coarse(layer.blocks, heads, layer.signed, peak, arrays)
    if bare and sum(la.read.numel() for la in look.layers) <= MOST_ROWS:
        found["read"] = arrays.add(deflated(codes(layer.read.float().cpu(), layer.signed, peak)))
    return found


def _weights(layer: Layer) -> int:
    return len(layer.queries) * len(layer.keys)


def _peak(layer: Layer, look: Look) -> float:
    """The weight at the end of the scale: 1 of shares, the largest of signed ones."""
    if not layer.signed:
        return 1.0
    same = (
        [la for la in look.layers if la.kind == DIFFERENCE] if layer.kind == DIFFERENCE else [layer]
    )
    return max(float(la.blocks.most.nan_to_num(0).abs().max()) for la in same) or 1.0


def _start(
    look: Look, details: Details, options: PageOptions, views: Sequence[View]
) -> dict[str, Any]:
    if not look.layers:
        return {"layer": 0, "head": 0, "query": 0, "key": 0, "view": options.view or views[0].name}
    place, head = options.head or _opened(look, details)
    first = look.layers[min(place, len(look.layers) - 1)]
    return {
        "layer": place,
        "head": head,
        "query": first.query if options.query is None else options.query,
        "key": options.key,
        "view": options.view or ("map" if first.keys.grid is None else "image"),
    }


def _caution(look: Look) -> str:
    """What is to be kept in mind of heads, or of a map alone."""
    return CAUTION if _attending(look).layers else OF_MAPS if look.layers else ""


def _attending(look: Look) -> Look:
    return replace(look, layers=[layer for layer in look.layers if layer.kind != KIND])


def _named(look: Look) -> list[str]:
    """Which input was looked at, and which checkpoint of its run."""
    which = within(look.checkpoint)
    titled = [f"“{one_line(look.title)}”"] if look.title else []
    titled += [one_line(look.part)] if look.part and not look.title else []
    return [*titled, *([f"checkpoint {which}"] if which else [])]


def _line(look: Look) -> str:
    """How much there is of what, and how true it is."""
    attending = _attending(look).layers
    if not attending:
        return ""
    sides = (side for layer in attending for side in (layer.queries, layer.keys))
    lengths = " x ".join(dict.fromkeys(f"{one_line(s.name)}: {len(s)}" for s in sides))
    heads = counted(sum(layer.heads for layer in attending), "head")
    said = f"{lengths} · {heads} in {counted(len(attending), 'layer')}"
    if any(layer.kind == DIFFERENCE for layer in attending):
        return said
    rounded = f", rounded to {look.rounded}" if look.rounded else ""
    said += f" · weights x values within {look.difference:.1e} of the kernel's output{rounded}"
    return said


def _opened(look: Look, details: Details) -> tuple[int, int]:
    """The first head that is shown, by the place of its layer."""
    places = [
        (place, head)
        for place, layer in enumerate(look.layers)
        for head in details.found.get(layer.name, {})
    ]
    told = [(one.layer, one.head) for one in telling(_attending(look), SHOWN)]
    return next((head for head in told if head in places), places[0] if places else (0, 0))


def _scale(kind: str, dark: bool) -> str:
    numbers = bytes(round(255 * part) for point in colours.table(kind, dark) for part in point)
    return base64.b64encode(numbers).decode()


def _side(side: Side) -> dict[str, Any]:
    return {
        "name": one_line(side.name),
        "labels": [one_line(label) for label in side.labels],
        "breaks": [i for i, label in enumerate(side.labels) if "\n" in label],
        "first": side.first,
        "grid": side.grid,
        "seconds": side.seconds,
    }


def _layer(layer: Layer, look: Look, sides: list[Side], arrays: Arrays) -> dict[str, Any]:
    peak, heads = _peak(layer, look), sum(la.heads for la in look.layers)
    return {
        "name": one_line(layer.name),
        "number": layer.number,
        "kind": layer.kind,
        "queries": sides.index(layer.queries),
        "keys": sides.index(layer.keys),
        "heads": layer.heads,
        "letters": layer.letters,
        "signed": layer.signed,
        "peak": peak,
        "statistics": _statistics(layer),
        "difference": _plain(layer.difference) or 0.0,
        "query": layer.query,
        "thumbnails": thumbnails(layer, heads, peak, arrays),
    }


def _statistics(layer: Layer) -> dict[str, list[float | None]]:
    found = {}
    for name, *_ in STATISTICS:
        values = vars(layer.statistics)[name]
        if values is not None:
            found[name] = [_plain(value) for value in values.tolist()]
    return found


def _plain(value: float) -> float | None:
    """A number of JSON, which has neither NaN nor infinity."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _detail(detail: Detail, arrays: Arrays) -> dict[str, Any]:
    written: dict[str, Any] = {
        "form": detail.form,
        "facts": detail.facts,
        "arrays": {name: arrays.add(packed) for name, packed in detail.arrays.items()},
    }
    if detail.minus is not None:
        written |= {"minus": _detail(detail.minus, arrays), "factor": detail.factor}
    return written
