"""The attention weights of every head of a model, recorded during one forward pass.

The output still comes from the fused kernel: the weights are computed beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bigmodel_cli.console import columns_of, cut, one_line
from bigmodel_cli.errors import SpecError
from bigmodel_cli.lazy import Module, Tensor, torch
from bigmodel_cli.parts.contract import attending
from bigmodel_cli.parts.kernels import weights
from bigmodel_cli.parts.watched import AttentionCall


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


def record_heads(model: Module, inputs: Sequence[Tensor], labels: list[str]) -> Heads:
    """Run the model on tokens (1, T) and record the attention weights of each head.

    Raises `SpecError` where the model has no attention.
    """
    recorded, _ = record(model, *inputs)
    return Heads(labels, list(recorded), list(recorded.values()))


def record(model: Module, *inputs: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """The weights (H, T, T) of every layer by name for a batch of 1, and the model's output."""
    found = attending(model)
    if not found:
        raise SpecError("this model has no attention to look at")
    recorded: dict[str, Tensor] = {}
    try:
        for name, module in found.items():
            module.watcher = lambda call, name=name: recorded.__setitem__(name, dense(call))
        with torch.inference_mode():
            output: Tensor = model(*inputs)
    finally:
        for module in found.values():
            module.watcher = None
    return {name: recorded[name] for name in found}, output


def dense(call: AttentionCall) -> Tensor:
    """All weights of a call with one row: (H, T, S) in fp32 on the CPU."""
    found = weights(
        call.q,
        call.k,
        call.spec,
        segments=call.segments,
        key_mask=call.key_mask,
        bias=call.bias,
        sinks=call.sinks,
    )[0]
    if call.minus is not None:
        first, second = found.chunk(2)
        found = first - call.minus * second
    return found.float().cpu()


def label(token: str, most: int) -> str:
    """A token as a label: white space made visible, cut to at most `most` columns."""
    text = one_line(token.replace("\n", "\\n").replace("\t", "\\t").replace(" ", "␣")) or "␣"
    return text if columns_of(text) <= most else cut(text, most - 1) + "…"
