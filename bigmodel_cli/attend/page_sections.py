"""The few forms that further views of a page are made of, as plain values that its script draws.

They are sentences, a table, shades (a table whose cells are coloured by a share) and lines over
steps; what is text in them is shown as text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from bigmodel_cli.console import one_line

Section = dict[str, Any]
MOST_CELLS = 60_000
"""Most cells of a table; of a longer one the last rows are carried."""


def sentences(*lines: str) -> Section:
    """Paragraphs; empty ones are left out."""
    return {"form": "sentences", "lines": [one_line(line) for line in lines if line]}


def column(title: str, kind: str = "number", meaning: str = "") -> dict[str, str]:
    """A column of a table: of "text", "number", "head" ([place of its layer, head], whose name is
    LAYER.HEAD) or "pairs" ([text, share] each).
    """
    return {"title": title, "kind": kind, "meaning": meaning}


def table(caption: str, columns: Sequence[dict[str, str]], rows: Sequence[list[Any]]) -> Section:
    """Rows, which can be sorted by a column; None: nothing. Of too many the last ones, said."""
    most = max(1, MOST_CELLS // max(1, len(columns)))
    left_out = max(0, len(rows) - most)
    said = f"{caption}; the last {most:,} of {len(rows):,}" if left_out else caption
    kinds = [each["kind"] for each in columns]
    return {
        "form": "table",
        "caption": one_line(said),
        "columns": [{**each, "title": one_line(each["title"])} for each in columns],
        "rows": [
            [_cell(kind, value) for kind, value in zip(kinds, row, strict=True)]
            for row in rows[left_out:]
        ],
    }


def shades(
    caption: str,
    corner: str,
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float]],
    texts: Sequence[Sequence[str]] | None = None,
    most: float = 1.0,
) -> Section:
    """A table whose cells are coloured by their `values`, shares of `most`, and hold `texts`."""
    return {
        "form": "shades",
        "caption": one_line(caption),
        "corner": corner,
        "rows": [one_line(name) for name in rows],
        "columns": [one_line(name) for name in columns],
        "values": [[_rounded(value) for value in row] for row in values],
        "texts": texts and [[one_line(text) for text in row] for row in texts],
        "most": most,
    }


def lines(caption: str, across: str, steps: Sequence[float], panels: Sequence[Section]) -> Section:
    """Small charts over the same steps; `across` names these."""
    return {"form": "lines", "caption": caption, "across": across, "steps": list(steps),
            "panels": list(panels)}  # fmt: skip


def panel(
    title: str, series: Sequence[tuple[str, list[int] | None, Sequence[float]]], least: float = 0.0
) -> Section:
    """One chart: (name, [place of its layer, head] or None, value at each step) of each line.

    Its scale begins at `least` or below.
    """
    known = [value for *_, values in series for value in values if math.isfinite(value)]
    return {
        "title": title,
        "low": _rounded(min([least, *known])),
        "high": _rounded(max(known, default=1.0)),
        "series": [
            {"name": one_line(name), "head": head, "values": [_rounded(v) for v in values]}
            for name, head, values in series
        ],
    }


def _cell(kind: str, value: Any) -> Any:
    if kind == "pairs":
        return [[one_line(text), _rounded(share)] for text, share in value]
    if kind == "text":
        return None if value is None else one_line(str(value))
    return _rounded(value) if isinstance(value, float) else value


def _rounded(value: float) -> float | None:
    """A number of JSON, which has neither NaN nor infinity."""
    return float(f"{value:.5g}") if math.isfinite(value) else None
