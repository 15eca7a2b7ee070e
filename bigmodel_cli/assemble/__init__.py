"""The only place where a model is built, from a spec and the data's info, initialised, frozen, and
adapted.

Its size is computed without allocating it, on the meta device.
"""

from bigmodel_cli.assemble.building import build_for, build_model, build_on_meta
from bigmodel_cli.assemble.later import Later
from bigmodel_cli.assemble.outlines import Outline, check_memory, outline
from bigmodel_cli.assemble.sizes import kept_bytes
from bigmodel_cli.assemble.starting import (
    assemble,
    check_start,
    reference_of,
    reference_source,
    source_of,
)

__all__ = [
    "Later",
    "Outline",
    "assemble",
    "build_for",
    "build_model",
    "build_on_meta",
    "check_memory",
    "check_start",
    "kept_bytes",
    "outline",
    "reference_of",
    "reference_source",
    "source_of",
]
