"""A linear layer whose product is not to be rounded: where close numbers decide."""

from __future__ import annotations

from typing import Any

from bigmodel_cli.device import full_precision
from bigmodel_cli.lazy import F, Tensor, torch


def in_full_precision(layer: Any, x: Tensor) -> Tensor:
    """(..., N) -> (..., M)   In fp32, or in the layer's own precision where that is more, whatever
    its weight is stored in and autocast says.
    """
    weight, bias = layer.weight, layer.bias
    kind = torch.promote_types(weight.dtype, torch.float32)
    with full_precision(x.device):
        if weight.dtype == kind:
            y: Tensor = layer(x.to(kind))
            return y
        y = F.linear(x.to(kind), weight.to(kind))
        return y if bias is None else y + bias.to(kind)
