"""LoRA, and its rank-stabilized scale."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from bigmodel_cli.adapters.base import LowRankOptions
from bigmodel_cli.config import Positive


class LoRAOptions(LowRankOptions):
    """Low-rank adaptation (Hu et al. 2021): the frozen weight plus a product of two factors."""

    type: Literal["lora"] = "lora"


class RsLoRAOptions(LowRankOptions):
    """LoRA whose scale is alpha / sqrt(r), so that larger ranks learn too (Kalajdzievski 2023)."""

    type: Literal["rslora"] = "rslora"
    alpha: Positive = Field(
        16.0, description="the product of the factors is scaled by alpha / sqrt(r)"
    )

    @property
    def scale(self) -> float:
        return self.alpha / math.sqrt(self.rank)

    def to_peft(self) -> tuple[dict[str, object], int]:
        return {"use_rslora": True}, 1
