"""What of an operation decides how fast it is: its form, and its sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bigmodel_cli.bench import named
from bigmodel_cli.lazy import Tensor


def form_of(
    name: str, bound: Mapping[str, Any], inputs: Sequence[Tensor]
) -> tuple[str, tuple[int, ...]]:
    """(what it is called and how its tensors lie, sizes that set its rate beside FLOPs and bytes).

    Sizes of a product: batch, rows, inputs, columns; of a convolution: places, inputs and columns
    of a group, places of the kernel, groups; of attention: heads of all samples, queries, keys,
    width; of what works on all weights at once: their number.
    """
    if name in named.PRODUCTS:
        return _product(name, inputs)
    if name in ("convolution", "convolution_backward"):
        return _convolution(name, bound)
    if name.startswith("_scaled_dot_product"):
        q, k = bound["query"], bound["key"]
        causal = " causal" if bound.get("is_causal") else ""
        title = "attention backward" if "backward" in name else "attention"
        return title + causal, (q.shape[0] * q.shape[1], q.shape[2], k.shape[2], q.shape[3])
    if name.startswith(named.UPDATES):
        first = next(iter(bound.values()))
        return name, (len(first),)
    lying = all(t.is_contiguous() for t in inputs)
    manner = f" {bound['approximate']}" if bound.get("approximate", "none") != "none" else ""
    return name + manner + ("" if lying else " strided"), ()


def _product(name: str, inputs: Sequence[Tensor]) -> tuple[str, tuple[int, ...]]:
    factors = [t for t in inputs if t.dim() >= 2][-2:]
    if len(factors) < 2:
        return name, ()
    a, b = factors
    if name == named.LINEAR:
        columns, width = b.shape
        return "product nt", (1, a.numel() // width, width, columns)
    batch = a.shape[0] if a.dim() > 2 else 1
    lies = "".join("n" if t.stride(-1) == 1 or t.shape[-1] == 1 else "t" for t in factors)
    kind = "product" if batch == 1 else "products"
    return f"{kind} {lies}", (batch, a.shape[-2], a.shape[-1], b.shape[-1])


def _convolution(name: str, bound: Mapping[str, Any]) -> tuple[str, tuple[int, ...]]:
    x, weight, groups = bound["input"], bound["weight"], int(bound["groups"])
    columns, inputs, *kernel = weight.shape
    step = [int(n) for n in bound["stride"]] or [1]
    places = x.shape[0]
    for number, length in enumerate(x.shape[2:]):
        places *= max(1, length // step[min(number, len(step) - 1)])
    size = 1
    for length in kernel:
        size *= length
    last = x.dim() > 2 and x.shape[1] > 1 and x.stride(1) == 1
    title = f"{name}{' channels_last' if last else ''}{' deep' if inputs == 1 < groups else ''}"
    return title, (places, inputs, columns // groups, size, groups)
