"""Logits in fp32 of products in bf16, where they are read and not learnt from.

A product in bf16 is rounded to 8 bits: a logit near 16 by up to 0.06. Which way it is rounded
follows the order of the sum, and so the number of rows: a text's log-probability would differ by
tenths of a nat between a batch and its row alone. Training and means over many tokens need no more
than bf16; scores of single texts do, and whoever gives them asks for it around the model's call.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from bigmodel_cli.device import full_precision
from bigmodel_cli.lazy import F, Tensor, torch
from bigmodel_cli.products import is_plain

_ASKED: list[bool] = [False]


@contextlib.contextmanager
def wide() -> Iterator[None]:
    """Inside, models give logits in fp32, for one product more, where these would be in bf16."""
    _ASKED.append(True)
    try:
        yield
    finally:
        _ASKED.pop()


def wide_logits(hidden: Tensor, head: Any) -> Tensor:
    """(..., C) -> (..., V)   `head(hidden)`, in fp32 where that was asked for.

    The rounded product and, by a second one, what the rounding left out; on a GPU the product
    itself gives fp32 where its weight is in bf16 as it is.
    """
    if not _applies(hidden, head):
        y: Tensor = head(hidden)
        return y
    weight, x = head.weight, hidden.flatten(0, -2)
    if x.is_cuda and weight.dtype == torch.bfloat16:
        with full_precision(x.device):
            found = torch.mm(x.to(weight.dtype), weight.T, out_dtype=torch.float32)
    else:
        rounded = F.linear(x, weight)
        # the bias is the matrix itself: autocast keeps its copy of the weight for both
        found = rounded.float() + F.linear(x, weight, -rounded).float()
    if head.bias is not None:
        found += head.bias
    whole: Tensor = found.unflatten(0, hidden.shape[:-1])
    return whole


def _applies(hidden: Tensor, head: Any) -> bool:
    """Whether the head is one product in bf16 that nobody watches and nothing is learnt from."""
    kind = hidden.device.type
    if (
        not _ASKED[-1]
        or kind not in ("cpu", "cuda")
        or torch.is_grad_enabled()
        or torch.compiler.is_compiling()
        or not is_plain(head)
        or head._forward_hooks
        or head._forward_pre_hooks
    ):
        return False
    if torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind) == torch.bfloat16
    return bool(head.weight.dtype == torch.bfloat16)
