"""What a checkpoint recorded of a training, checked before anything is restored from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bigmodel_cli.config import Natural
from bigmodel_cli.errors import CheckpointError
from bigmodel_cli.lazy import Tensor

ANOTHER = "use another checkpoint"


def check_fits(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor], name: str) -> None:
    """Raise `CheckpointError` for a tensor of the file `name` that is missing, not wanted, or of
    another shape or dtype.
    """
    for key in sorted(given.keys() | wanted.keys()):
        shown = [
            (
                f"{str(side[key].dtype).removeprefix('torch.')} {list(side[key].shape)}"
                if key in side
                else "none"
            )
            for side in (wanted, given)
        ]
        if shown[0] != shown[1]:
            raise CheckpointError(
                f"{name}: tensor {key}: this run has {shown[0]}, the checkpoint {shown[1]};"
                f" {ANOTHER}"
            )


Batches = dict[Annotated[str, Field(pattern="^[0-9]{1,10}$")], Annotated[int, Field(ge=1)]]


class Divided(BaseModel):
    """A `Division` in state.json: from these batches on, so many pieces, or samples at once in a
    validation.
    """

    model_config = ConfigDict(strict=True, extra="forbid")
    pieces: Batches = {}
    validation: Batches = {}


class Recorded(BaseModel):
    """The plain values of state.json that a resume needs.

    Others are read elsewhere.
    """

    model_config = ConfigDict(strict=True, allow_inf_nan=False)
    step: Natural
    optimizer_steps: Natural
    scores: dict[Annotated[str, Field(pattern="^[0-9]{1,10}$")], float | None]
    best: float | None
    since_best: Natural
    elapsed: Annotated[float, Field(ge=0)]
    loss_sum: float
    loss_count: Annotated[float, Field(ge=0)]
    loss_scale: Annotated[float, Field(ge=1, le=2.0**24)]
    loss_scale_good_steps: Natural
    # these are not in checkpoints of earlier versions
    loss_scale_skipped: Natural = 0
    division: Divided = Divided()
    passed: Natural = 0
    recent: list[float] = []
    rewinds: Natural = 0

    @classmethod
    def of(cls, values: dict[str, Any]) -> Recorded:
        """The values, checked.

        Raises `CheckpointError` naming the first that is missing or not of its type or range.
        """
        try:
            found = cls.model_validate(values)
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]
            raise CheckpointError(
                f"state.json: {'.'.join(map(str, fault['loc']))}: {fault['msg']}; {ANOTHER}"
            ) from None
        if found.optimizer_steps > found.step:
            raise CheckpointError(
                f"state.json: optimizer_steps: {found.optimizer_steps}, after {found.step} steps;"
                f" {ANOTHER}"
            )
        return found
