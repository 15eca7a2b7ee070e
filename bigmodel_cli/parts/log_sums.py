"""The log-sum-exp of each query's scores, as fused kernels of attention compute it anyway."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from bigmodel_cli.lazy import Tensor, torch

GIVING = {
    "_scaled_dot_product_flash_attention_for_cpu": None,
    "_scaled_dot_product_flash_attention": None,
    "_scaled_dot_product_efficient_attention": 4,
    "_scaled_dot_product_cudnn_attention": 4,
}
"""PyTorch's kernels that return log-sums beside the output, and which of their arguments asks for
them, where they are asked.
"""


class Attended(NamedTuple):
    """What attention gives, (B, H, T, E), and the log-sums (B, H, T) of the kernel, if it has."""

    output: Tensor
    log_sums: Tensor | None = None

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Attended:
        """Both, changed alike over their first three dimensions."""
        return Attended(
            change(self.output), None if self.log_sums is None else change(self.log_sums)
        )


def with_log_sums(attention: Callable[[], Tensor], q: Tensor) -> Attended:
    """What `attention`, a call of PyTorch's with queries q (B, H, T, D), gives.

    PyTorch chooses a kernel by the inputs, and passes on one of its results. It is watched, so that
    the same kernel runs once, with the same arguments. None where they are rough, or
    autocast rounded q for it.
    """
    with _watching()(q.dtype) as kept:
        y = attention()
    if rough(q) or kept.log_sums is None or kept.log_sums.numel() < q[..., 0].numel():
        return Attended(y)
    # some kernels fill up the last dimension, or have one more, of one
    return Attended(y, kept.log_sums.reshape(*q.shape[:2], -1)[..., : q.shape[2]])


def rough(q: Tensor) -> bool:
    """Whether a kernel's log-sums are less exact than fp32: of products in TF32, or of the powers
    to 20 bits that CPUs take in half precision (6e-5 off).
    """
    if q.is_cuda:
        return q.dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32
    return q.dtype not in (torch.float32, torch.float64)


@functools.cache
def _watching() -> Any:
    """A class that needs torch."""
    from torch.utils._python_dispatch import TorchDispatchMode

    attention = torch.ops.aten.scaled_dot_product_attention.default
    giving = {getattr(torch.ops.aten, name).default: at for name, at in GIVING.items()}

    class Watching(TorchDispatchMode):
        """Keeps the log-sums of a kernel that computes in a precision."""

        def __init__(self, kind: torch.dtype) -> None:
            super().__init__()  # type: ignore[no-untyped-call]
            self.kind, self.log_sums = kind, None

        @classmethod
        def _should_skip_dynamo(cls) -> bool:
            """Else PyTorch imports its compiler at the first call, which takes seconds."""
            return False

        def __torch_dispatch__(
            self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
        ) -> Any:
            kwargs = kwargs or {}
            if function is attention:  # in inference mode, nothing took it apart before
                with self:
                    return function.decompose(*args, **kwargs)
            if function not in giving:
                return function(*args, **kwargs)
            place = giving[function]
            if place is not None:
                args = (*args[:place], True, *args[place + 1 :])
            found = function(*args, **kwargs)
            if args[0].dtype == self.kind:
                self.log_sums = found[1]
            return found

    return Watching
