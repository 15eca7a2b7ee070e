"""Heat maps in a terminal: in colour, else in characters of increasing darkness."""

from __future__ import annotations

from bigmodel_cli.attend.heads import Heads, label
from bigmodel_cli.attend.heat import Heat
from bigmodel_cli.console import one_line, padded
from bigmodel_cli.lazy import F, Tensor

SHADES = " ·░▒▓█"
MOST_TOKENS = 48
LABEL_WIDTH = 12
MOST_COLUMNS = 64


def show_heads(heads: Heads, layer: int, head: int | None, color: bool) -> str:
    """One head's weights (None: the layer's mean) as a map, and what each head's last row looks at.

    Rows are queries, columns keys. Only the last 48 tokens are drawn.
    """
    weights = heads.weights[layer]  # (H, T, T)
    chosen = weights.mean(0) if head is None else weights[head]
    first = max(0, len(heads.tokens) - MOST_TOKENS)
    what = f"mean of {len(weights)} heads" if head is None else f"head {head}"
    lines = [f"{heads.layers[layer]}, {what}: each row looks at the columns"]
    if first:
        lines.append(f"(the last {MOST_TOKENS} of {len(heads.tokens)} tokens)")
    peak = float(chosen[first:, first:].max()) or 1.0
    causal = not bool(chosen.triu(1).any())
    for t in range(first, len(heads.tokens)):
        seen = chosen[t, first : t + 1] if causal else chosen[t, first:]
        cells = "".join(cell(float(v) / peak, color) for v in seen)
        lines.append(f"{padded(label(heads.tokens[t], LABEL_WIDTH), LABEL_WIDTH)} {cells}")
    lines += ["", "what the last token looks at most, by head:"]
    for index, name in enumerate(heads.layers):
        for number, row in enumerate(heads.weights[index][:, -1]):
            lines.append(f"  {name} head {number}: {_strongest(heads, row)}")
    return "\n".join(lines)


def show_heat(cam: Heat, color: bool) -> str:
    """The heat over the image, at most 64 columns wide; only the class where there is no heat."""
    head = one_line(cam.caption)
    if cam.heat is None:
        return head
    height, width = cam.heat.shape
    scale = min(1.0, MOST_COLUMNS / 2 / width)
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    small = F.interpolate(cam.heat[None, None], size=size, mode="area")[0, 0]
    lines = [
        "".join(cell(float(v), color) for v in row)
        for row in (small.flip(0) if cam.axes else small)
    ]
    return "\n".join([f"{head}; what decides it:", *lines])


def cell(value: float, color: bool) -> str:
    """One square (two characters) of a map, for a value in 0..1."""
    value = min(1.0, max(0.0, value))
    if not color:
        return SHADES[round(value * (len(SHADES) - 1))] * 2
    level = value**0.5  # make small weights visible
    red, green, blue = (round(a + (b - a) * level) for a, b in ((16, 255), (24, 196), (48, 64)))
    return f"\x1b[48;2;{red};{green};{blue}m  \x1b[0m"


def _strongest(heads: Heads, row: Tensor) -> str:
    values, positions = row.topk(min(3, len(row)))
    pairs = zip(values.tolist(), positions.tolist(), strict=True)
    return "  ".join(f"{label(heads.tokens[p], LABEL_WIDTH)}@{p} {100 * v:.0f} %" for v, p in pairs)
