"""Frozen parts of a model: weights without gradients, and modules that stay in evaluation mode."""

from __future__ import annotations

from collections.abc import Sequence

from bigmodel_cli.errors import SpecError
from bigmodel_cli.models import Model
from bigmodel_cli.names import matches
from bigmodel_cli.start_options import InitOptions


def freeze(model: Model, init: InitOptions) -> None:
    """Turn off gradients for the weights that `init` excludes.

    Raises `SpecError` for a pattern that matches nothing.
    """
    parameters = dict(model.named_parameters())
    names = [*parameters, *(name for name, _ in model.named_buffers())]
    for pattern in init.freeze:
        matching = [name for name in names if matches(name, pattern)]
        if not matching:
            raise SpecError(
                f"init.freeze: {pattern!r} matches no weight; they are called like"
                f" {next(iter(parameters))}"
            )
        for name in matching:
            if name in parameters:
                parameters[name].requires_grad_(False)
    if init.train == "head":
        for name, p in parameters.items():
            p.requires_grad_(p.requires_grad and _below(name, model.output_layers()))
    if not any(p.requires_grad for p in parameters.values()):
        tied = init.train == "head" and not any(
            _below(name, model.output_layers()) for name in parameters
        )
        way = (
            "the head has the weights of the embedding (tie_embeddings); write init.freeze:"
            " ['blocks.*'] instead of init.train"
            if tied
            else "leave some out of init.freeze"
        )
        raise SpecError(f"init: every weight is frozen, and nothing is left to train: {way}")


def still_modules(model: Model, init: InitOptions) -> frozenset[str]:
    """Names of the modules that stay in evaluation mode: those whose weights are all frozen, with
    all below them.

    So normalisation statistics and expert loads do not change, and dropout is off there. A module
    that has buffers but no weight is frozen where `init` names it; one that has neither follows the
    module around it.
    """
    still: dict[str, bool] = {}
    for name, module in model.named_modules():
        around = still.get(name.rpartition(".")[0], False) if name else False
        trained = [p.requires_grad for p in module.parameters()]
        still[name] = (
            not any(trained)
            if trained
            else around or (next(module.buffers(), None) is not None and _named(model, name, init))
        )
    return frozenset(name for name, evaluates in still.items() if evaluates)


def _named(model: Model, name: str, init: InitOptions) -> bool:
    """Whether `init` excludes this name, or a module that contains it."""
    return any(matches(name, pattern) for pattern in init.freeze) or (
        init.train == "head" and not _below(name, model.output_layers())
    )


def _below(name: str, prefixes: Sequence[str]) -> bool:
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)
