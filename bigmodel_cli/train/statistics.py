"""Batch normalisation's running statistics where the weights to use are an average of weights."""

from __future__ import annotations

from bigmodel_cli.device import autocast
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.modes import evaluating
from bigmodel_cli.train.normalised import batch_norms
from bigmodel_cli.train.run import Run

BATCHES = 50
"""Micro-batches of training data that the statistics are taken over."""


def recomputed_statistics(run: Run) -> dict[str, Tensor]:
    """Take the running statistics anew with the model's present weights; returns them by name.

    As `torch.optim.swa_utils.update_bn`: the mean over training batches. Dropout is off.
    """
    model = run.loaded.model
    norms = batch_norms(model, run.state.still)
    momenta = {name: module.momentum for name, module in norms.items()}
    with evaluating(model), torch.no_grad():
        for module in norms.values():
            module.reset_running_stats()
            module.momentum, module.training = None, True  # the mean of all batches
        for k in range(BATCHES if norms else 0):
            batch = run.loader.to_device(run.loader.batches[k])
            with autocast(run.device, run.options.precision):
                run.task.forward(model, batch)
    for name, module in norms.items():
        module.momentum = momenta[name]
    return {
        f"{name}.{buffer}": tensor.clone()
        for name, module in norms.items()
        for buffer, tensor in module.named_buffers()
    }
