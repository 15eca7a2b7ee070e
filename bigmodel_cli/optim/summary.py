"""Which optimizer moves which weights, for people and as plain values."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from bigmodel_cli.console import counted
from bigmodel_cli.optim.base import AnyOptimizerOptions
from bigmodel_cli.roles import Weight


def describe_weights(
    options: AnyOptimizerOptions, weights: Iterable[Weight]
) -> list[dict[str, Any]]:
    """Each weight's name, shape, optimizer (None: frozen) and decay, as plain values.

    And its multiple of the learning rate and its first step, where those differ by weight.
    """
    described, every = [], list(weights)
    rates, starts = any(w.rate != 1.0 for w in every), any(w.start for w in every)
    for weight in every:
        optimizer, decay = options.mover(weight.role)
        trained = weight.tensor.requires_grad
        described.append(
            {
                "name": weight.name,
                "shape": list(weight.tensor.shape),
                "optimizer": optimizer if trained else None,
                "decayed": trained and decay > 0,
                **({"rate": weight.rate} if trained and rates else {}),
                **({"first_step": weight.start + 1} if trained and starts else {}),
            }
        )
    return described


def summary(described: list[dict[str, Any]]) -> str:
    """The result of `describe_weights` as one line: tensors per optimizer, and how many decay."""
    trained = [w for w in described if w["optimizer"] is not None]
    parts = []
    for optimizer in dict.fromkeys(w["optimizer"] for w in trained):
        moved = [math.prod(w["shape"]) for w in trained if w["optimizer"] == optimizer]
        parts.append(f"{optimizer} {counted(len(moved), 'tensor')} ({sum(moved):,} numbers)")
    decayed = sum(w["decayed"] for w in trained)
    frozen = (
        f"; {counted(len(described) - len(trained), 'tensor')} frozen"
        if len(trained) < len(described)
        else ""
    )
    decay = (
        f"weight decay on {decayed} of {len(trained)} tensors"
        if decayed
        else "weight decay on none"
    )
    return f"{', '.join(parts)}; {decay}{frozen}"
