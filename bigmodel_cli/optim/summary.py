"""Which optimizer moves which weights, for people and as plain values."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from bigmodel_cli.optim.base import AnyOptimizerOptions
from bigmodel_cli.roles import Weight


def describe_weights(
    options: AnyOptimizerOptions, weights: Iterable[Weight]
) -> list[dict[str, Any]]:
    """Each weight's name, shape, optimizer (None: frozen) and decay, as plain values.

    And its multiple of the learning rate, where that differs by weight.
    """
    described, every = [], list(weights)
    by_depth = any(weight.rate != 1.0 for weight in every)
    for weight in every:
        optimizer, decay = options.mover(weight.role)
        trained = weight.tensor.requires_grad
        described.append(
            {
                "name": weight.name,
                "shape": list(weight.tensor.shape),
                "optimizer": optimizer if trained else None,
                "decayed": trained and decay > 0,
                **({"rate": weight.rate} if trained and by_depth else {}),
            }
        )
    return described


def summary(described: list[dict[str, Any]]) -> str:
    """The result of `describe_weights` as one line: tensors per optimizer, and how many decay."""
    trained = [w for w in described if w["optimizer"] is not None]
    parts = []
    for optimizer in dict.fromkeys(w["optimizer"] for w in trained):
        moved = [math.prod(w["shape"]) for w in trained if w["optimizer"] == optimizer]
        parts.append(f"{optimizer} {len(moved)} tensors ({sum(moved):,} numbers)")
    decayed = sum(w["decayed"] for w in trained)
    frozen = (
        f"; {len(described) - len(trained)} tensors frozen" if len(trained) < len(described) else ""
    )
    decay = (
        f"weight decay on {decayed} of {len(trained)} tensors"
        if decayed
        else "weight decay on none"
    )
    return f"{', '.join(parts)}; {decay}{frozen}"
