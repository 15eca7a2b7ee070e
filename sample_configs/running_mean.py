"""A mixer of one's own, for `--plugin`: each position becomes the mean of all positions so far."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from bigmodel_cli.config import Options
from bigmodel_cli.parts.context import SINGLE_DOCUMENT, LayerContext, SequenceInfo


class RunningMeanOptions(Options):
    """Each position becomes the mean of a projection of all positions so far."""

    type: Literal["running_mean"] = "running_mean"

    def build(self, layer: LayerContext) -> "RunningMean":
        return RunningMean(layer.dim)


class RunningMean(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.input, self.out = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def new_cache(self, batch: int, max_len: int) -> dict[str, Any]:
        return {}

    def forward(
        self,
        x: Tensor,
        sequence: SequenceInfo = SINGLE_DOCUMENT,
        cache: dict[str, Any] | None = None,
    ) -> Tensor:
        values = self.input(x)  # (B, T, C)
        if cache is not None:  # of the positions before x too: (B, S, C)
            values = cache["values"] = torch.cat([cache["values"], values], 1) if cache else values
        seen = sequence.seen(x).to(x.dtype)  # (B or 1, T, S): 1 where a position may look
        mean: Tensor = self.out(seen @ values / seen.sum(-1, keepdim=True))
        return mean


PARTS = {"mixer": [RunningMeanOptions]}
