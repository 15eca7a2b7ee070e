"""Whose the weights of an adapted model are: an adapted weight has moved away from its layer."""

from __future__ import annotations

from dataclasses import dataclass

from bigmodel_cli.adapters.attaching import adapters
from bigmodel_cli.lazy import Module
from bigmodel_cli.roles import Role, Weight, adapted_name, named_weights, plain_name


@dataclass(frozen=True)
class Owner:
    """`module` holds the weight under `name`; `layer` computes with it."""

    module: Module
    name: str
    layer: Module


def owners(model: Module) -> dict[int, list[Owner]]:
    """The owners of each weight, by its identity; several of a tied one."""
    found: dict[int, list[Owner]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for name, p in module.named_parameters(recurse=False, remove_duplicate=False):
            full = plain_name(f"{path}.{name}" if path else name)
            layer = model.get_submodule(full.rpartition(".")[0])
            found.setdefault(id(p), []).append(Owner(module, name, layer))
    return found


def with_roles(model: Module) -> list[tuple[Weight, Role]]:
    """Every weight, and the role that it has without its adapter, if any."""
    of_adapted = {
        adapted_name(name): next(iter(adapter.factors().values())).role
        for name, adapter in adapters(model).items()
    }
    return [(w, of_adapted.get(w.name, w.role)) for w in named_weights(model)]
