"""An adapter that the PEFT library saved."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from bigmodel_cli.adapters.base import AnyAdapterOptions


class PEFTOptions(AnyAdapterOptions):
    """An adapter in PEFT's files, which say its kind, rank, scale, targets.

    It is built on the weights that the run starts from, and recorded as what it is.
    """

    type: Literal["peft"] = "peft"
    path: str = Field(description="the folder of adapter_config.json, adapter_model.safetensors")

    def folder(self) -> str:
        return self.path
