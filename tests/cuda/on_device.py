"""The GPU that tests in this folder need; BIGMODEL_TEST_DEVICE=cpu tries them without one."""

from __future__ import annotations

import os

import pytest
import torch

from bigmodel_cli.device import exact_fp32

NAME = os.environ.get("BIGMODEL_TEST_DEVICE", "cuda")
DEVICE = torch.device(NAME)
needed = pytest.mark.skipif(
    NAME == "cuda" and not torch.cuda.is_available(),
    reason="needs a CUDA device; BIGMODEL_TEST_DEVICE=cpu tries it without one",
)
exact_fp32()
