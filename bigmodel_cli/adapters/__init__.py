"""Adapters: a few trained numbers beside frozen weights. One file each, one name in the table."""

from __future__ import annotations

from typing import Annotated

from bigmodel_cli.adapters.attaching import adapters, attach, count_trained, merged
from bigmodel_cli.adapters.base import AnyAdapterOptions
from bigmodel_cli.adapters.dora import DoRAOptions
from bigmodel_cli.adapters.four_bits import bytes_of, is_quantized, stored_as
from bigmodel_cli.adapters.lora import LoRAOptions, RsLoRAOptions
from bigmodel_cli.adapters.owners import owners, with_roles
from bigmodel_cli.adapters.peft import PEFTOptions
from bigmodel_cli.adapters.pissa import PiSSAOptions
from bigmodel_cli.adapters.quantizing import (
    Hollow,
    four_bit_names,
    moved,
    quantize,
    saved_by_four_bits,
)
from bigmodel_cli.config import Table

ADAPTERS = Table(
    "adapter",
    AnyAdapterOptions,
    LoRAOptions,
    RsLoRAOptions,
    DoRAOptions,
    PiSSAOptions,
    PEFTOptions,
)
AdapterOptions = Annotated[AnyAdapterOptions, ADAPTERS]

__all__ = [
    "ADAPTERS",
    "AdapterOptions",
    "AnyAdapterOptions",
    "Hollow",
    "adapters",
    "attach",
    "bytes_of",
    "count_trained",
    "four_bit_names",
    "is_quantized",
    "merged",
    "moved",
    "owners",
    "quantize",
    "saved_by_four_bits",
    "stored_as",
    "with_roles",
]
