"""Packages that only some of the tool needs: they are asked for in one place, so that a missing one
is said in one form.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from bigmodel_cli.errors import SpecError


class MissingPackage(SpecError):
    """A package that is not installed, or does not load; the message has the command that installs
    it.
    """


def need(module: str, extra: str, what: str) -> Any:
    """Import a module of an optional package.

    Raises `MissingPackage` where `what` needs it and it is not there.

    `extra` is the name under which bigmodel's own packaging lists it.
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
