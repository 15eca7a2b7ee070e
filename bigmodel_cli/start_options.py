"""The `init` section of a spec: what the weights start from."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from bigmodel_cli.config import Natural, Options

BLOCKS = "blocks"
"""The stack of a network that has one."""


def _of_one_stack(value: Any) -> Any:
    """A list of layers is of the blocks."""
    return {BLOCKS: value} if isinstance(value, list) else value


Numbers = Annotated[list[Natural], Field(min_length=1, max_length=10_000)]
Layers = Annotated[
    dict[str, Numbers],
    BeforeValidator(_of_one_stack, json_schema_input_type=Numbers | dict[str, Numbers]),
]


class InitOptions(Options):
    """What the weights start from; `bigmodel finetune --from` fills in `checkpoint`."""

    checkpoint: str | None = Field(
        None, description="a checkpoint of bigmodel whose weights are the start"
    )
    train: Literal["all", "head"] = Field(
        "all", description="which weights are trained: all, or only the output head"
    )
    freeze: list[str] = Field(
        [],
        description=(
            "names or patterns (blocks.0.*) of weights that are not trained; modules with no other"
            " weight evaluate"
        ),
    )
    layers: Layers | None = Field(
        None,
        description=(
            "the checkpoint's layers that become the blocks, in order: [0, 2, 4] makes a network of"
            " three (Sanh et al. 2019, DistilBERT); of an encoder-decoder {encoder: [...], decoder:"
            " [...]}, a side that is left out being whole"
        ),
        examples=[[0, 2, 4]],
    )
    leave_out: list[str] = Field(
        [],
        description=(
            "names or patterns of weights that are not taken from the checkpoint; those that the"
            " network has are drawn"
        ),
    )
