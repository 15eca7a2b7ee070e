"""Constants of losses are kept on a device; what has no numbers is not kept for what has."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from bigmodel_cli.device import constant

CPU = torch.device("cpu")


@pytest.mark.parametrize("fake_first", [True, False])
def test_a_plan_and_a_training_have_their_own(fake_first: bool) -> None:
    values = (2.5, -7.0, float(fake_first))
    for fake in (fake_first, not fake_first, fake_first):
        if not fake:
            assert constant(values, CPU, torch.float32).tolist() == list(values)
            continue
        with FakeTensorMode():  # another one each time, as for each spec of a plan
            found = constant(values, CPU, torch.float32)
            assert isinstance(found, FakeTensor)
            assert (found + torch.zeros(3)).shape == (3,)


def test_one_made_in_inference_mode_takes_part_in_a_training() -> None:
    values = (0.25, 3.0)
    with torch.inference_mode():
        constant(values, CPU, torch.float32)
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    (x.square() * constant(values, CPU, torch.float32)).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0.5, 12.0]
