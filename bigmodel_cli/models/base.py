"""What the options of every model answer."""

from __future__ import annotations

from typing import ClassVar

from bigmodel_cli.config import Options


class AnyModelOptions(Options):
    """Options of a model."""

    outputs: ClassVar[tuple[str, ...]]
    """What models of this type can compute, as tasks call it in their `output`."""

    def check_output(self, output: str, task: str) -> None:
        """Raise `ValueError` where this model cannot compute an output for a task, though others of its type can."""
