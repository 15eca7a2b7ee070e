"""Convolutions of maps of one place: the convolution's numbers and gradients, to the bit or by
rounding.
"""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from bigmodel_cli.parts.one_place import at_one_place


@pytest.mark.parametrize(
    ("kernel", "bias", "stride"), [(3, False, 1), (5, True, 2), ((3, 5), True, 1)]
)
def test_the_middle_of_a_kernel_is_all_that_one_place_reads(
    kernel: int | tuple[int, int], bias: bool, stride: int
) -> None:
    size = (kernel, kernel) if isinstance(kernel, int) else kernel
    padding = (size[0] // 2, size[1] // 2)
    plain = nn.Conv2d(7, 11, size, stride, padding, bias=bias).to(memory_format=torch.channels_last)
    quick = copy.deepcopy(plain)
    at_one_place(quick)
    assert type(quick).__name__ == "Conv2d"
    for shape in ((5, 7, 1, 1), (3, 7, 4, 3)):
        found = []
        for conv in (plain, quick):
            torch.manual_seed(2)
            x = torch.randn(shape, requires_grad=True)
            y = conv(x)
            conv.zero_grad()
            y.square().sum().backward()
            found.append([y, x.grad, *(p.grad for p in conv.parameters())])
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_others_stay() -> None:
    for conv in (
        nn.Conv2d(4, 4, 1),
        nn.Conv2d(4, 4, 3),
        nn.Conv2d(4, 4, 3, padding=1, groups=2),
        nn.Conv2d(4, 4, 3, padding=2, dilation=2),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"),
        nn.Conv2d(4, 4, 2, padding=1),
        nn.ReLU(),
    ):
        before = type(conv)
        at_one_place(conv)
        assert type(conv) is before


def test_a_layer_can_be_pickled_and_copied() -> None:
    conv = nn.Conv2d(3, 5, 3, padding=1)
    at_one_place(conv)
    x = torch.randn(2, 3, 1, 1)
    for other in (pickle.loads(pickle.dumps(conv)), copy.deepcopy(conv)):
        assert type(other) is type(conv)
        assert torch.equal(other(x), conv(x))
