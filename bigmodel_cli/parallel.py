"""`train.parallel` of a spec: how the processes of a training share its weights."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from bigmodel_cli.config import Count, Options
from bigmodel_cli.errors import SpecError


class SharingOptions(Options):
    """How the processes share the weights; replicate x shard x tensor is their number.

    With both `auto` each has all weights where these fit its device, and else a part.
    """

    replicate: Literal["auto"] | Count = Field("auto", description="copies of the weights")
    shard: Literal["auto"] | Count = Field(
        "auto",
        description=(
            "processes that one copy of weights, gradients and optimizer state is divided among"
            " (FSDP; with several copies HSDP); a block's weights come together for its pass,"
            " and all of them for a validation"
        ),
    )
    tensor: Count = Field(
        1,
        description=(
            "neighbours that compute each part together, with a share of its heads, hidden units,"
            " experts and tokens of the vocabulary each, and take the same samples; not with shard"
        ),
    )
    reshard: bool = Field(
        True,
        description=(
            "free a block's weights after its forward pass, and gather them again for its backward"
            " pass; false: more memory, less communication"
        ),
    )

    reduce: Literal["fp32", "bf16"] = Field(
        "fp32",
        description=(
            "what gradients are summed in over processes where weights are divided (shard); bf16:"
            " half as much is sent, and each sum is rounded"
        ),
    )
    offload: bool = Field(
        False,
        description=(
            "keep the parts of divided weights (shard), of their gradients and of the optimizer's"
            " state in the CPU's memory, which updates them; for GPUs that do not hold them"
        ),
    )

    def division(self, processes: int) -> tuple[int, int] | None:
        """(replicate, shard) for so many processes; None where the size of the model decides.

        Raises `SpecError` where these are not that many.
        """
        if processes % self.tensor:
            raise SpecError(
                f"train.parallel.tensor: {self.tensor:,} does not divide {processes:,}, the number"
                " of processes; start a multiple of it (--processes), or set it to 1"
            )
        processes //= self.tensor
        given = ("replicate", self.replicate), ("shard", self.shard)
        numbers = {name: value for name, value in given if isinstance(value, int)}
        if not numbers:
            return (processes, 1) if processes == 1 or self.tensor > 1 else None
        product = math.prod(numbers.values())
        if len(numbers) == len(given) and product != processes:
            raise SpecError(
                f"train.parallel: replicate {self.replicate} x shard {self.shard} is {product:,},"
                f" and {processes:,} train: start {product:,} (--processes {product}), or set one"
                " of the two to auto"
            )
        if processes % product:
            (name,) = numbers
            raise SpecError(
                f"train.parallel.{name}: {product:,} does not divide {processes:,}, the number of"
                " processes; start a multiple of it (--processes), or set it to auto"
            )
        rest = processes // product
        return numbers.get("replicate", rest), numbers.get("shard", rest)
