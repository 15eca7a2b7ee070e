"""Attention weights of a few tokens as they are drawn, and labels of tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bigmodel_cli.console import columns_of, cut, one_line
from bigmodel_cli.lazy import Tensor


@dataclass(frozen=True)
class Heads:
    """`weights[i]` (H, T, T) are those of `layers[i]`: row t is what position t attends to."""

    tokens: list[str]
    layers: list[str]
    weights: list[Tensor]

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        named = zip(self.layers, self.weights, strict=True)
        return {
            "tokens": self.tokens,
            "layers": [{"name": n, "weights": w.tolist()} for n, w in named],
        }


def label(token: str, most: int) -> str:
    """A token as a label: white space made visible, cut to at most `most` columns."""
    text = one_line(token.replace("\n", "\\n").replace("\t", "\\t").replace(" ", "␣")) or "␣"
    return text if columns_of(text) <= most else cut(text, most - 1) + "…"
