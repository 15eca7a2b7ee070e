"""Which patches of an image a Vision Transformer's answer comes from."""

from __future__ import annotations

from bigmodel_cli.attend.gradcam import Heat, heat_over
from bigmodel_cli.attend.heads import record
from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.models import Model
from bigmodel_cli.tasks import Task


def rollout(model: Model, image: Tensor, info: DatasetInfo, task: Task | None = None) -> Heat:
    """Attention rollout (Abnar and Zuidema 2020) over one normalised image (1, C, H, W).

    The layers' attention, averaged over heads and mixed half and half with the identity (the
    residual stream), is multiplied; the class token's row (without one, the mean of the patches'
    rows) is the share of each patch.
    """
    weights, logits = record(model, image)
    total: Tensor | None = None
    for layer in weights.values():
        mixed = 0.5 * layer.mean(0) + 0.5 * torch.eye(layer.shape[-1])  # (T, T)
        total = mixed if total is None else mixed @ total
    assert total is not None
    assert model.grid is not None
    height, width = model.grid
    patches = slice(model.first, model.first + height * width)
    row = total[0] if model.first else total[patches].mean(0)  # (T,)
    heat = row[patches]
    heat = (heat - heat.min()).view(1, 1, height, width)
    return heat_over(image, heat, logits, info, task, "attention rollout")
