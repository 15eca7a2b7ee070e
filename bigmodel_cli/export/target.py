"""What a form of export answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from bigmodel_cli.export.source import Source


class Target(ABC):
    """A form in which a checkpoint is written; `opens` names what opens it, for the help."""

    opens: str
    of_adapters: ClassVar[bool] = False
    """Whether it writes adapters rather than whole models."""

    @abstractmethod
    def write(self, source: Source, folder: Path) -> None:
        """Write the files into an empty folder, which becomes the result when all are there.

        Raises `SpecError` naming the part and the option that this form cannot express.
        """
