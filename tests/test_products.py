"""Linear layers by other kernels than PyTorch's usual one: equal to sums in double precision."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch

from bigmodel_cli import products


@pytest.fixture
def forced(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other kernels on any processor, for any size."""
    monkeypatch.setattr(products, "applies", lambda: True)
    monkeypatch.setattr(products, "LEAST", 1)
    monkeypatch.setattr(products, "LEAST_OF_SEVERAL", 1)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("outputs", "inputs", "shape"),
    [
        (8, 5, (1, 1)),
        (5, 7, (1,)),
        (8 * 13 + 3, 33, ()),
        (8 * 13 + 3, 33, (2, 3)),
        (9, 1, (4,)),
        (1, 9, (1, 2, 1)),
    ],
)
def test_equal_to_sums(
    forced: None, outputs: int, inputs: int, shape: tuple[int, ...], bias: bool
) -> None:
    """One row and several, outputs that no number of blocks divides, inputs that are views."""
    layer = torch.nn.Linear(inputs, outputs, bias=bias)
    wide = torch.randn(*shape, inputs, 2)
    x = wide[..., 1]
    known = torch.einsum("...i,oi->...o", x.double(), layer.weight.detach().double())
    if bias:
        known = known + layer.bias.detach().double()
    with torch.no_grad():
        found = products.product(x, layer.weight, layer.bias)
    assert found.shape == known.shape
    assert found.is_contiguous()
    torch.testing.assert_close(found.double(), known, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("outputs", "shape"), [(301, (1, 1, 77)), (1, (129,)), (96, (1, 1024))])
@pytest.mark.parametrize("autocast", [True, False])
def test_a_row_of_16_bits(outputs: int, shape: tuple[int, ...], bias: bool, autocast: bool) -> None:
    """Sums of fp32 that are rounded once: half a unit of the last place of 8 bits away."""
    layer = torch.nn.Linear(shape[-1], outputs, bias=bias).bfloat16()
    x = torch.randn(*shape[:-1], shape[-1], 2).bfloat16()[..., 1]
    known = layer.double()(x.double())
    layer.bfloat16()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        found = products.product(x, layer.weight, layer.bias)
    assert found.dtype == torch.bfloat16
    assert found.shape == known.shape
    torch.testing.assert_close(found.double(), known, rtol=2**-8, atol=1e-5)


def test_a_model_keeps_its_layers(forced: None) -> None:
    """Names, weights, copies and gradients are as before; other tensors go PyTorch's way."""
    model = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
    before, text = copy.deepcopy(model), repr(model)
    products.quicken(model)
    assert repr(model) == text
    assert isinstance(model[0], torch.nn.Linear)
    assert list(model.state_dict()) == list(before.state_dict())
    x = torch.randn(4, 6)
    copy.deepcopy(model)(x).sum().backward()
    assert torch.equal(model(x), before(x))  # with gradients: the same kernel
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model(x), before(x))
    with torch.no_grad():
        assert torch.equal(model.double()(x.double()), before.double()(x.double()))


def test_the_maker(tmp_path: Path) -> None:
    """Read from the system; unknown where it tells nothing."""
    told = tmp_path / "cpuinfo"
    told.write_text("processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: a b\n")
    assert products.maker(told) == "AuthenticAMD"
    told.write_text("processor : 0\n")
    assert products.maker(told) == products.maker(tmp_path / "none") == ""


def test_a_quickened_layer_can_be_pickled(forced: None) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2))
    products.quicken(model)
    again = pickle.loads(pickle.dumps(model))
    assert type(again[0]) is type(model[0])
    torch.testing.assert_close(again[0].weight, model[0].weight)
