"""Training and evaluation mode of a model's modules, where not all of them train."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator

from bigmodel_cli.lazy import Module


def training_mode(model: Module, still: Collection[str]) -> None:
    """Bring every module into training mode but those named in `still`, which evaluate: their
    statistics do not move.
    """
    for name, module in model.named_modules():
        module.training = name not in still


@contextlib.contextmanager
def evaluating(model: Module) -> Iterator[None]:
    """Inside, the whole model evaluates; afterwards each module is in the mode that it was in."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training
