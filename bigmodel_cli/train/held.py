"""Frozen weights in the precision of the products that read them: held once, and cast once."""

from __future__ import annotations

from collections.abc import Collection

from bigmodel_cli.adapters import adapters
from bigmodel_cli.checkpoints.weights import below
from bigmodel_cli.device import dtype_of
from bigmodel_cli.lazy import Module, nn
from bigmodel_cli.models import Model
from bigmodel_cli.roles import adapted_name, named_weights, plain_name


def hold_in_precision(model: Model, frozen: Collection[str], precision: str) -> frozenset[str]:
    """Round the `frozen` matrices that only products read to `precision`, as autocast does in each
    step; what is computed stays the same to the bit (DoRA's lengths are of the rounded weights).

    `frozen` are weights that no checkpoint of this run holds: their exact values are elsewhere.
    Routers, tables that are looked up, norms and biases stay as they are. Returns the names of what
    is rounded.
    """
    if precision == "fp32" or not frozen:
        return frozenset()
    held = []
    last, owners = model.last_layers(), _owners(model)
    of_adapted = {
        adapted_name(name): next(iter(adapter.factors().values())).role
        for name, adapter in adapters(model).items()
    }
    for weight in named_weights(model):
        role = of_adapted.get(weight.name, weight.role)
        layers = owners[id(weight.tensor)]
        plain = all(isinstance(m, nn.Linear | nn.modules.conv._ConvNd) for m in layers)
        multiplied = role.matrix or below(plain_name(weight.name), last)
        if (
            weight.name in frozen
            and weight.tensor.dim() > 1
            and multiplied
            and (plain or role.stacked)
        ):
            weight.tensor.data = weight.tensor.data.to(dtype_of(precision))
            held.append(weight.name)
    return frozenset(held)


def _owners(model: Module) -> dict[int, list[Module]]:
    """The layers that each weight belongs to, by its identity; of an adapted weight, the layers
    that it is computed for.
    """
    found: dict[int, list[Module]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for name, p in module.named_parameters(recurse=False, remove_duplicate=False):
            full = plain_name(f"{path}.{name}" if path else name)
            layer = model.get_submodule(full.rpartition(".")[0])
            found.setdefault(id(p), []).append(layer)
    return found
