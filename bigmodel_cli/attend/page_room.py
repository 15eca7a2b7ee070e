"""How much a page may hold, and what its heads are carried in so that it does.

All weights of all heads are carried in 255 steps of their root where there is room. Where there is
not, in fewer steps; and where that does not do either, the heads that tell least are shown as
blocks. Whatever the weights look like, the page keeps to its size, and says what it left out.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

from bigmodel_cli.attend.details import Detail, Details, deflated
from bigmodel_cli.console import counted
from bigmodel_cli.lazy import torch

SHORT, LONG = 15_000_000, 25_000_000
"""Most bytes of a page: of inputs all whose heads are carried, and of long ones."""
STEPS = (255, 127, 63, 31)
"""Of the root of weights, from the finest that is tried."""
TRIED = 8
"""Heads whose sizes tell whether a number of steps is worth a trial of all."""
Heads = dict[tuple[str, int], Detail]


def fitted(
    details: Details, room: int, first: Sequence[tuple[str, int]] = ()
) -> tuple[Details, str]:
    """The same heads in at most `room` bytes of base64, and what was done for it, or "".

    `first` are the heads (layer's name, head) that are kept longest.
    """
    heads = {(n, h): d for n, found in details.found.items() for h, d in found.items()}
    if written(heads) <= room:
        return details, ""
    for steps in STEPS[1:]:
        some = {key: heads[key] for key in list(heads)[:: max(1, len(heads) // TRIED)]}
        share = written({key: _fewer(d, steps) for key, d in some.items()}) / written(some)
        if share * written(heads) > 1.1 * room and steps != STEPS[-1]:
            continue
        fewer = {key: _fewer(detail, steps) for key, detail in heads.items()}
        if written(fewer) <= room:
            return _grouped(fewer), _said(steps, 0, len(heads))
    chosen = _chosen(fewer, room, first)
    return _grouped(chosen), _said(steps, len(heads) - len(chosen), len(heads))


def written(heads: Mapping[tuple[str, int], Detail]) -> int:
    """Bytes of all arrays as base64, in elements of their own; equal ones are carried once."""
    arrays = {packed for detail in heads.values() for packed in _arrays(detail)}
    return sum(-(-len(packed) // 3) * 4 + 60 for packed in arrays)


def _arrays(detail: Detail) -> list[bytes]:
    return [*detail.arrays.values(), *(_arrays(detail.minus) if detail.minus else [])]


def _fewer(detail: Detail, steps: int) -> Detail:
    """The weights of a head in so many steps of their root, where that takes fewer bytes."""
    whole = detail if detail.form == "map" else detail.as_map
    minus = None if detail.minus is None else _fewer(detail.minus, steps)
    if whole is None:
        return replace(detail, minus=minus)
    given = bytearray(zlib.decompress(whole.arrays["codes"], -15))
    codes = torch.frombuffer(given, dtype=torch.uint8).float() if given else torch.zeros(0)
    if whole.facts["signed"]:
        most = steps >> 1
        codes = ((codes - 128) * most / 127).round() + 128
    else:
        most = steps
        codes = (codes * steps / 255).round()
    packed = {"codes": deflated(codes.to(torch.uint8))}
    made = Detail("map", {**whole.facts, "steps": most}, packed)
    best = made if made.size < sum(map(len, detail.arrays.values())) else detail
    return replace(best, minus=minus, factor=detail.factor, as_map=None)


def _chosen(heads: Heads, room: int, first: Sequence[tuple[str, int]]) -> Heads:
    """The heads that fit: the `first`, then those that take the fewest bytes."""
    order = [key for key in first if key in heads]
    order += sorted((k for k in heads if k not in order), key=lambda key: heads[key].size)
    found: Heads = {}
    left, there = room, set[bytes]()
    for key in order:
        new = set(_arrays(heads[key])) - there
        cost = sum(-(-len(packed) // 3) * 4 + 60 for packed in new)
        if cost <= left:
            found[key] = heads[key]
            left -= cost
            there |= new
    return found


def _grouped(heads: Heads) -> Details:
    details = Details()
    for (name, head), detail in sorted(heads.items(), key=lambda pair: pair[0][1]):
        details.found.setdefault(name, {})[head] = detail
    return details


def _said(steps: int, left_out: int, heads: int) -> str:
    said = f"so that this page stays below its size, weights are carried in {steps} steps"
    if left_out:
        said += (
            f", and {left_out:,} of {counted(heads, 'head')} as blocks: --heads chooses some of"
            " which all weights are carried"
        )
    return said
