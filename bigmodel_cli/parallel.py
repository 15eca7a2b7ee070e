"""`train.parallel` of a spec: how the processes of a training share its weights."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from bigmodel_cli.config import Count, Options
from bigmodel_cli.errors import SpecError


class SharingOptions(Options):
    """How the processes share the work; replicate x shard x context x tensor is their number.

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
            " experts and tokens of the vocabulary each, and take the same samples"
        ),
    )
    experts: Count = Field(
        1,
        description=(
            "neighbours that keep different experts of each mixture and all other weights, with"
            " other samples each: tokens are sent to their experts and return; replicate is a"
            " multiple of it, and shard and tensor are 1"
        ),
    )
    context: Count = Field(
        1,
        description=(
            "neighbours that take the same samples, each some positions of every sequence, so that"
            " activations of long ones are divided: attention gets the others' keys and values;"
            " for causal_lm and masked_lm, and not for what mixes positions without attention; a"
            " validation passes whole sequences; shard divides weights among these processes too"
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

        With `context` there are as many processes of each sample.

        Raises `SpecError` where these are not that many.
        """
        given = {"tensor": self.tensor, "context": self.context}
        names = [name for name, count in given.items() if count > 1]
        together = self.tensor * self.context
        if processes % together:
            raise SpecError(
                f"train.parallel.{' x '.join(names)}: {together:,} does not divide {processes:,},"
                " the number of processes; start a multiple of it (--processes), or set it to 1"
            )
        processes //= together
        others = ("replicate", self.replicate), ("shard", self.shard)
        numbers = {name: value for name, value in others if isinstance(value, int)}
        if not numbers:
            alone = processes == 1 and self.context == 1
            return (processes, 1) if alone or self.tensor > 1 or self.experts > 1 else None
        product = math.prod(numbers.values())
        if len(numbers) == len(others) and product != processes:
            raise SpecError(
                f"train.parallel: replicate {self.replicate} x shard {self.shard} is {product:,},"
                f" and {processes:,} train: start {product:,} (--processes {product * together}),"
                " or set one of the two to auto"
            )
        if processes % product:
            (name,) = numbers
            raise SpecError(
                f"train.parallel.{name}: {product:,} does not divide {processes:,}, the number of"
                " processes; start a multiple of it (--processes), or set it to auto"
            )
        rest = processes // product
        return numbers.get("replicate", rest), numbers.get("shard", rest)
