"""The `distill` section of a spec: who teaches a model."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from bigmodel_cli.config import NonNegative, Options, Positive


class DistillOptions(Options):
    """A teacher, whose probabilities a smaller network learns beside the data's targets (Hinton et
    al. 2015).
    """

    teacher: str = Field(description="a checkpoint for the same task, tokens and classes")
    weight: Annotated[float, Field(ge=0, le=1)] = Field(
        0.5, description="of the teacher's probabilities; the rest is that of the data's targets"
    )
    temperature: Positive = Field(
        2.0, description="both models' logits are divided by it, which softens their probabilities"
    )
    hidden: NonNegative = Field(
        0.0,
        description=(
            "weight of the mean squared difference of the residual streams, of one width (Romero et"
            " al. 2015); of a deeper teacher after every second, third ... layer, the last with the"
            " last"
        ),
    )
    once: bool = Field(
        False,
        description=(
            "the teacher answers each training row before the first step, in fp32, and is freed:"
            " its answers wait in a file beside the run (residual streams in bf16) that goes with"
            " the process; for data whose rows are the same in each epoch"
        ),
    )
