"""The kinds of work that `bench` times, by name."""

from __future__ import annotations

from collections.abc import Callable

from bigmodel_cli.bench.doing import Doing, Opened
from bigmodel_cli.bench.training import Training
from bigmodel_cli.lazy import torch

KINDS: dict[str, Callable[[Opened, torch.device], Doing]] = {"training": Training}
