"""The values and arrays of a page: what its script reads."""

from __future__ import annotations

import base64
import math
from dataclasses import dataclass, replace
from typing import Any

from bigmodel_cli.attend import colours
from bigmodel_cli.attend.classes import CLASSES
from bigmodel_cli.attend.details import Detail, Details, deflated
from bigmodel_cli.attend.look import CAUTION, Blocks, Layer, Look, Side
from bigmodel_cli.attend.page_heat import KIND
from bigmodel_cli.attend.telling import telling
from bigmodel_cli.console import counted, one_line
from bigmodel_cli.lazy import F, Tensor, torch

THUMBNAIL = 48
"""Most blocks to a side of the small map of a head."""
FEW_WEIGHTS = 1_500_000
"""More of them to a head, and the page also carries the blocks of the look."""
MOST_BLOCKS = 200_000
"""Most blocks of the heads of a layer; 256 to a side of each at most."""
MOST_ROWS = 400_000
"""Most weights of rows that are carried for heads without details, in a layer."""
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

    `view` is "map", "lines", "text", "image", "keys" or "statistics", the one that fits the input
    when None; `image` a PNG that lies under the patches.
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


def facts_of(look: Look, details: Details, options: PageOptions, arrays: Arrays) -> dict[str, Any]:
    """The page's values, for JSON; their arrays are added to `arrays`."""
    sides: list[Side] = []
    for layer in look.layers:
        sides += [s for s in (layer.queries, layer.keys) if s not in sides]
    layers = [
        _layer(layer, sides, details.found.get(layer.name, {}), arrays) for layer in look.layers
    ]
    place, head = options.head or _opened(look, details)
    first = look.layers[min(place, len(look.layers) - 1)]
    return {
        "model": one_line(look.model),
        "facts": " · ".join(filter(None, (_line(look), one_line(look.answer)))),
        "caution": CAUTION,
        "notes": [one_line(note) for note in look.notes],
        "sides": [_side(side) for side in sides],
        "layers": layers,
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
        "start": {
            "layer": place,
            "head": head,
            "query": first.query if options.query is None else options.query,
            "key": options.key,
            "view": options.view or ("map" if first.keys.grid is None else "image"),
        },
    }


def _line(look: Look) -> str:
    """How much there is of what, and how true it is."""
    attending = [layer for layer in look.layers if layer.kind != KIND]
    if not attending:
        return ""
    sides = (side for layer in attending for side in (layer.queries, layer.keys))
    lengths = " x ".join(dict.fromkeys(f"{one_line(s.name)}: {len(s)}" for s in sides))
    heads = counted(sum(layer.heads for layer in attending), "head")
    true = f"weights x values within {look.difference:.1e} of the kernel's output"
    return f"{lengths} · {heads} in {counted(len(attending), 'layer')} · {true}"


def _opened(look: Look, details: Details) -> tuple[int, int]:
    """The first head that is shown, by the place of its layer."""
    places = [
        (place, head)
        for place, layer in enumerate(look.layers)
        for head in details.found.get(layer.name, {})
    ]
    heads = replace(look, layers=[layer for layer in look.layers if layer.kind != KIND])
    told = [(one.layer, one.head) for one in telling(heads, 8)]
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


def _layer(
    layer: Layer, sides: list[Side], details: dict[int, Detail], arrays: Arrays
) -> dict[str, Any]:
    queries, keys = sides.index(layer.queries), sides.index(layer.keys)
    signed = layer.signed
    peak = float(layer.blocks.most.nan_to_num(0).abs().max()) or 1.0 if signed else 1.0
    many = len(layer.queries) * len(layer.keys) > FEW_WEIGHTS
    bare = len(details) < layer.heads
    return {
        "name": one_line(layer.name),
        "number": layer.number,
        "kind": layer.kind,
        "queries": queries,
        "keys": keys,
        "heads": layer.heads,
        "letters": layer.letters,
        "signed": signed,
        "peak": peak,
        "statistics": _statistics(layer),
        "difference": _plain(layer.difference) or 0.0,
        "query": layer.query,
        "thumbnails": _thumbnails(layer, signed, peak, arrays),
        "blocks": _blocks(layer.blocks, signed, peak, arrays) if many or bare else None,
        "read": _rows(layer) if bare else None,
        "details": {head: _detail(detail, arrays) for head, detail in details.items()},
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


def _rows(layer: Layer) -> list[list[float | None]] | None:
    if layer.read.numel() > MOST_ROWS:
        return None
    return [[_plain(round(value, 5)) for value in row] for row in layer.read.tolist()]


def _detail(detail: Detail, arrays: Arrays) -> dict[str, Any]:
    written: dict[str, Any] = {
        "form": detail.form,
        "facts": detail.facts,
        "arrays": {name: arrays.add(packed) for name, packed in detail.arrays.items()},
    }
    if detail.minus is not None:
        written |= {"minus": _detail(detail.minus, arrays), "factor": detail.factor}
    return written


def _thumbnails(layer: Layer, signed: bool, peak: float, arrays: Arrays) -> dict[str, Any]:
    most = layer.blocks.most
    if layer.kind == KIND and layer.keys.grid is not None:
        most = most.unflatten(-1, layer.keys.grid)[:, 0]
    small, tall, wide = _coarser(most, THUMBNAIL)
    return {
        "rows": small.shape[1],
        "columns": small.shape[2],
        "tall": tall * layer.blocks.rows,
        "wide": wide * layer.blocks.columns,
        "codes": arrays.add(deflated(_codes(small, signed, peak))),
    }


def _blocks(blocks: Blocks, signed: bool, peak: float, arrays: Arrays) -> dict[str, Any]:
    limit = min(256, math.isqrt(MOST_BLOCKS // len(blocks.most)))
    most, tall, wide = _coarser(blocks.most, limit)
    mean, *_ = _coarser(blocks.mean, limit, mean=True)
    return {
        "rows": most.shape[1],
        "columns": most.shape[2],
        "tall": tall * blocks.rows,
        "wide": wide * blocks.columns,
        "most": arrays.add(deflated(_codes(most, signed, peak))),
        "mean": arrays.add(deflated(_codes(mean, signed, peak))),
    }


def _coarser(values: Tensor, most: int, mean: bool = False) -> tuple[Tensor, int, int]:
    """(H, R, C) with at most `most` rows and columns, and how many became one of each.

    A block takes the largest of its own by size, or the mean of them; NaN where all are NaN.
    """
    rows, columns = (-(-size // most) for size in values.shape[1:])
    values = values.float()
    if rows == columns == 1:
        return values, 1, 1
    pads = (0, -values.shape[2] % columns, 0, -values.shape[1] % rows)
    whole = F.pad(values, pads, value=math.nan)
    parts = whole.unflatten(2, (-1, columns)).unflatten(1, (-1, rows)).transpose(2, 3).flatten(3)
    if mean:
        return parts.nanmean(-1), rows, columns
    place = parts.abs().nan_to_num(-1).argmax(-1, keepdim=True)
    return parts.gather(-1, place).squeeze(-1), rows, columns


def _codes(values: Tensor, signed: bool, peak: float) -> Tensor:
    """Bytes: the root in steps of 1/254 (around 127 where signed), 255 where nothing is seen."""
    part = values.nan_to_num(0) / peak
    if signed:
        codes = (part.abs().clamp(max=1).sqrt() * part.sign() * 127 + 127).round()
    else:
        codes = (part.clamp(0, 1).sqrt() * 254).round()
    return codes.masked_fill(values.isnan(), 255).to(torch.uint8)
