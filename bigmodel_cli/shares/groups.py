"""Which weights come together for a pass, and along which axis each is divided (sharding.py)."""

from __future__ import annotations

from collections.abc import Sequence

from bigmodel_cli.lazy import Module


def gathered_apart(model: Module, groups: Sequence[Module]) -> list[Module]:
    """Those of the groups whose weights are gathered for their own pass; what is left, weights that
    are shared among it, is gathered with the outermost.
    """
    shared = _shared(model, groups)
    every = ((module, [id(p) for p in module.parameters()]) for module in groups)
    return [module for module, own in every if own and not shared & set(own)]


def _shared(model: Module, groups: Sequence[Module]) -> set[int]:
    """The weights that are in more than one of the groups, or in one of them and outside."""
    inside = {module: group for group in groups for module in group.modules()}
    places: dict[int, set[Module | None]] = {}
    for module in model.modules():
        for p in module.parameters(recurse=False):
            places.setdefault(id(p), set()).add(inside.get(module))
    return {p for p, at in places.items() if len(at) > 1}


def axis_of(shape: Sequence[int], count: int) -> int:
    """The axis along which so many processes divide a weight."""
    even = (axis for axis, size in enumerate(shape) if axis and size % count == 0)
    return next(even, 0) if shape[0] < count else 0
