"""Convolutions of maps that have shrunk to one place.

There a kernel lies on padding but for its middle: (B, C, 1, 1) -> (B, K, 1, 1) is a product with
that middle, equal to the bit, where oneDNN computes all nine parts of a kernel of 3 x 3 (ResNet-18
at 32 x 32, its last stage: 5.9 ms for 20.8, forward and backward). Only while a CPU trains: graphs
that are exported, and counted ones, keep the convolution.
"""

from __future__ import annotations

import functools

from bigmodel_cli.lazy import F, Module, Tensor, nn


class OnePlace:
    """Mixed into `nn.Conv2d` of an odd kernel with half its size as padding."""

    training: bool
    padding: tuple[int, int]

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """(B, C, H, W) -> (B, K, h, w)."""
        own = self.training and isinstance(weight, nn.Parameter)  # an adapter's sum has its way
        if not own or x.shape[2:] != (1, 1) or x.device.type != "cpu":
            found: Tensor = super()._conv_forward(x, weight, bias)  # type: ignore[misc]
            return found
        middle = weight[:, :, self.padding[0], self.padding[1]]
        return F.linear(x.flatten(1), middle, bias)[:, :, None, None]


def at_one_place(module: Module) -> None:
    """Let a convolution do so, whose names and class name stay, where it has such a kernel."""
    if type(module) is not nn.Conv2d:
        return
    fitting = module.padding == tuple(size // 2 for size in module.kernel_size)
    plain = set(module.dilation) == {1} and module.groups == 1 and module.padding_mode == "zeros"
    odd = all(size % 2 for size in module.kernel_size) and module.kernel_size != (1, 1)
    if fitting and plain and odd:
        module.__class__ = _class()  # type: ignore[assignment]


@functools.cache
def _class() -> type[Module]:
    names = {"__doc__": nn.Conv2d.__doc__, "__module__": __name__}
    return type("Conv2d", (OnePlace, nn.Conv2d), names)


def __getattr__(name: str) -> type[Module]:
    """The class, by the name under which a pickle of a layer looks for it."""
    if name == "Conv2d":
        return _class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
