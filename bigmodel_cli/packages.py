"""Optional packages: imported in one place, so that all messages about a missing one are alike."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from bigmodel_cli.errors import SpecError


class MissingPackage(SpecError):
    """A package that is missing or cannot be imported; the message has the command that installs
    it.
    """


def need(module: str, extra: str, what: str) -> Any:
    """Import a module of an optional package.

    Raises `MissingPackage` where `what` needs it and it is missing.

    `extra` is the name of bigmodel's extra that lists it.
    """
    try:
        return importlib.import_module(module)
    except (ImportError, OSError) as error:  # OSError: of a library in C that a package loads
        package = module.partition(".")[0]
        missing = (
            isinstance(error, ModuleNotFoundError)
            and (error.name or "").partition(".")[0] == package
        )
        reason = "is not installed" if missing else f"cannot be imported ({error})"
        raise MissingPackage(
            f"{what} needs {package}, which {reason}: pip install 'bigmodel[{extra}]'"
        ) from None
