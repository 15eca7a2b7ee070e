"""Operations of many sizes and their gradients, for rates between those of networks."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from bigmodel_cli.device import autocast
from bigmodel_cli.lazy import F, Tensor, torch

LARGEST = 4e8
"""FLOPs of a forward pass that is measured here, at most."""
SQUARES = (
    (3, 32),
    (3, 64),
    (16, 32),
    (32, 32),
    (58, 58),
    (64, 128),
    (128, 128),
    (256, 256),
    (512, 512),
)
"""Input and output channels of convolutions."""
ACTIVATIONS: Sequence[str] = ("gelu", "silu", "relu", "tanh", "sigmoid", "softplus")
Work = Callable[[], Tensor]


def works(device: torch.device) -> Iterator[Work]:
    """Each of them, as something that gives a tensor to differentiate."""

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, requires_grad=True)

    yield from _convolutions(drawn)
    yield from _attentions(drawn)
    yield from _products(drawn)
    for rows, width in ((48, 36), (640, 36), (320, 160), (4000, 48), (1500, 384)):
        x, gain = drawn(rows, width), drawn(width)
        yield partial(F.layer_norm, x, (width,), gain, gain)
        yield partial(F.rms_norm, x, (width,), gain)
        yield partial(torch.softmax, x, -1)
        yield partial(torch.log_softmax, x, -1)
        yield from (partial(mixed, x, gain) for mixed in (_scaled, _normed, _turned))
        yield from (partial(getattr(F, name), x) for name in ACTIVATIONS)


def _scaled(x: Tensor, gain: Tensor) -> Tensor:
    return (x * gain + x) * 0.5


def _normed(x: Tensor, gain: Tensor) -> Tensor:
    return x.square().mean(-1, keepdim=True).rsqrt() * x


def _turned(x: Tensor, gain: Tensor) -> Tensor:
    return torch.cat([x, x], -1).t().contiguous()


def _convolutions(drawn: Callable[..., Tensor]) -> Iterator[Work]:
    for (inputs, columns), kernel, side in itertools.product(SQUARES, (1, 3, 5), (2, 4, 8, 16, 40)):
        for rows in (2, 12):
            flops = 2 * rows * side**2 * inputs * columns * kernel**2
            if flops > LARGEST or (kernel == 1 and inputs == 3):
                continue
            x, w = drawn(rows, inputs, side, side), drawn(columns, inputs, kernel, kernel)
            yield partial(F.conv2d, x, w, padding=kernel // 2)
    for channels, side, rows in itertools.product((24, 96, 320), (4, 10, 28), (3, 12)):
        x, w = drawn(rows, channels, side, side), drawn(channels, 1, 3, 3)
        yield partial(F.conv2d, x, w, padding=1, groups=channels)
        x, w = drawn(rows, channels, 6 * side), drawn(channels, 1, 4)
        yield partial(F.conv1d, x, w, padding=3, groups=channels)
    for patch, width, side in ((3, 24, 24), (4, 128, 32), (8, 192, 64), (16, 256, 64)):
        for channels, rows in itertools.product((1, 3), (8, 16)):
            x, w = drawn(rows, channels, side, side), drawn(width, channels, patch, patch)
            yield partial(F.conv2d, x, w, stride=patch)


def _attentions(drawn: Callable[..., Tensor]) -> Iterator[Work]:
    sizes = itertools.product((2, 12), (3, 8), (5, 17, 40, 72, 160, 400), (6, 10, 16, 32, 64, 96))
    for rows, heads, length, width in sizes:
        if 4 * rows * heads * length**2 * width > LARGEST:
            continue
        # as projections give them: the heads of a token lie side by side
        q, k, v = (drawn(rows, length, heads, width).transpose(1, 2) for _ in range(3))
        for causal in (False, True):
            yield partial(F.scaled_dot_product_attention, q, k, v, is_causal=causal)


def _products(drawn: Callable[..., Tensor]) -> Iterator[Work]:
    widths = ((36, 44), (36, 108), (24, 96), (61, 36), (192, 600), (512, 512))
    for rows, (inputs, columns) in itertools.product((12, 80, 640), widths):
        x, w = drawn(rows, inputs), drawn(columns, inputs)
        yield partial(F.linear, x, w)
    for batch, rows, inputs, columns in itertools.product((8, 64), (16, 64), (8, 40), (8, 16, 64)):
        x, w = drawn(batch, rows, inputs), drawn(batch, inputs, columns)
        yield partial(torch.bmm, x, w)


def run(work: Work, precision: str, device: torch.device, between: Tensor) -> None:
    """It and its gradient, each after other memory was used, as within a network: `between`."""
    between.add_(1)
    with autocast(device, precision):
        y = work()
    gradient = torch.ones_like(y)
    between.add_(1)
    y.backward(gradient)
