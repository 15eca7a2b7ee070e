"""Positions of a Vision Transformer: what they are called, and how far apart they are."""

from __future__ import annotations

from dataclasses import replace

from bigmodel_cli.attend.classes import letters
from bigmodel_cli.attend.look import Layer, Side
from bigmodel_cli.attend.tiles import ROWS, Tiled, spans
from bigmodel_cli.errors import SpecError
from bigmodel_cli.lazy import Tensor, torch


def patches(length: int, first: int, grid: tuple[int, int]) -> Side:
    """The side of `length` positions: a class token, patches by row and column, registers."""
    rows, columns = grid
    labels = [f"[class {i + 1}]" if first > 1 else "[class]" for i in range(first)]
    labels += [f"{row},{column}" for row in range(rows) for column in range(columns)]
    labels += [f"[register {i + 1}]" for i in range(length - len(labels))]
    return Side("patches", labels[:length], None, first, grid)


def position_of(given: str | None, side: Side) -> int:
    """The position of `--query` or `--key`: a number, or ROW,COLUMN of a patch (from 0).

    Left out, it is the class token, else the patch in the middle. Raises `SpecError`.
    """
    assert side.grid is not None
    rows, columns = side.grid
    if given is None:
        return 0 if side.first else (rows // 2) * columns + columns // 2
    numbers = given.split(",")
    if len(numbers) > 2 or not all(n.strip().isdecimal() and n.isascii() for n in numbers):
        raise SpecError(
            f"--query {given!r} is neither a position nor the ROW,COLUMN of a patch, such as 3,4"
        )
    if len(numbers) == 1:
        place = int(numbers[0])
        if place >= len(side):
            raise SpecError(f"--query {given}: the positions are 0 to {len(side) - 1}")
        return place
    row, column = map(int, numbers)
    if row >= rows or column >= columns:
        raise SpecError(
            f"--query {given}: the patches' rows are 0 to {rows - 1}, their columns 0 to"
            f" {columns - 1}"
        )
    return side.first + row * columns + column


def in_patches(layer: Layer, tiled: Tiled) -> Layer:
    """The layer with `distance` in patches, from one's centre to another's, and letters by it.

    It is a mean over the patches' queries, of each by its weights on patches, which count as 1
    together, however much it reads of other positions (Dosovitskiy et al. 2021, figure 7).
    """
    assert layer.queries.grid is not None
    far, equal = _apart(layer.queries.grid), float(_apart(layer.queries.grid).mean())
    first, count = layer.queries.first, len(far)
    sums = torch.zeros(tiled.heads, dtype=torch.float64)
    there = torch.zeros(tiled.heads)
    for start in range(first, first + count, ROWS):
        rows = torch.arange(start, min(start + ROWS, first + count))
        queries = tiled.of(rows)
        moved, mass = torch.zeros(2, tiled.heads, len(rows), dtype=torch.float64)
        for keys in spans(queries):
            inside = slice(max(keys.start, first), min(keys.stop, first + count))
            if inside.start >= inside.stop:
                continue
            seen = tiled.seen(queries, inside)
            steps = far[rows - first][:, inside.start - first : inside.stop - first]
            for heads in tiled.chunks(tiled.heads, len(rows), inside):
                weights = tiled.tile(queries, heads, inside, seen).weights.abs().double().cpu()
                mass[heads] += weights.sum(2)
                moved[heads] += (weights * steps).sum(2)
        sums += torch.where(mass > 0, moved / mass, 0.0).sum(1)
        there += (mass > 0).sum(1)
    distance = (sums / there).float()
    # letters know places in a row: equal weights' mean distance is (T + S) / 6 there
    size = (len(layer.queries) + len(layer.keys)) / 6
    row = replace(layer.statistics, distance=distance / equal * size if equal else distance)
    named = letters(row, len(layer.queries), len(layer.keys), layer.causal)
    return replace(layer, statistics=replace(layer.statistics, distance=distance), letters=named)


def _apart(grid: tuple[int, int]) -> Tensor:
    """(N, N)   distances of the patches' centres, in patches."""
    places = torch.cartesian_prod(*(torch.arange(float(n)) for n in grid)).double()
    return torch.cdist(places, places)
