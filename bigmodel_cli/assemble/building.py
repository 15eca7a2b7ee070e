"""Here alone a model is built, from a spec and the data's info."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

from bigmodel_cli.adapters import attach
from bigmodel_cli.assemble.sizes import numbers_per_weight
from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.console import quantity
from bigmodel_cli.errors import Unfit
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.models import Model, build, within
from bigmodel_cli.models.sizing import watched
from bigmodel_cli.plugin_faults import plugin_faults
from bigmodel_cli.products import quicken
from bigmodel_cli.spec import Spec


def build_model(spec: Spec, info: DatasetInfo) -> Model:
    """The model for data as `info` describes it, with freshly drawn weights, and the adapter, if
    any, without first values.

    Raises `SpecError` where they do not fit.
    """
    with spec.placing():
        model = build(spec.model, info)
        quicken(model)
        if spec.adapter is not None:
            attach(model, spec.adapter.low_rank(), fill=False)
        return model


def build_for(
    spec: Spec,
    info: DatasetInfo,
    weights: Mapping[str, Tensor],
    new_outputs: int = 0,
    *,
    draw: bool = True,
    alone: Collection[torch.Size] | None = None,
) -> Model:
    """The model that these weights belong to, up to a new head.

    Without `draw` its own weights are undefined, for these to replace all of them; with `alone`
    those of other shapes than these. Raises
    `CheckpointError` before it becomes far larger than they are.
    """
    # not on the meta device: position tables are not among the weights
    with within(weights, new_outputs, draw=draw, alone=alone):
        return build_model(without_download(spec), info)


def build_on_meta(spec: Spec, info: DatasetInfo) -> Model:
    """The model without storage.

    Raises `SpecError` where it does not fit the data, `Unfit` where it is too large.
    """
    with watched(math.inf) as watch:
        try:
            with torch.device("meta"), plugin_faults():
                return build_model(spec, info)
        except RuntimeError as error:  # sizes whose product does not fit an integer
            needed = 4 * math.prod(watch.shape) * numbers_per_weight(spec)
            shape, text = " x ".join(f"{n:,}" for n in watch.shape), str(error).splitlines()[0]
    raise Unfit(
        f"model: too large for any machine: one tensor of {shape} numbers needs"
        f" {quantity(needed, 'B')} with its gradient and the optimizer's state ({text}); make the"
        " model smaller"
    )


def without_download(spec: Spec) -> Spec:
    return spec.model_copy(update={"model": spec.model.without_download()})
