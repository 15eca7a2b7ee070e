"""Training and evaluation mode of a model's modules, when some are frozen."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator

from bigmodel_cli.lazy import Module


def training_mode(model: Module, still: Collection[str]) -> None:
    """Put every module into training mode, except those named in `still`, whose statistics do not
    change.
    """
    for name, module in model.named_modules():
        module.training = name not in still


@contextlib.contextmanager
def evaluating(model: Module) -> Iterator[None]:
    """Inside, the whole model is in evaluation mode; afterwards each module is in the mode it
    had.
    """
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training
