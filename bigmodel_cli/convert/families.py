"""The families of published models that are read and written: one file and one line each."""

from __future__ import annotations

from bigmodel_cli.convert.family import Family
from bigmodel_cli.convert.llama import Llama
from bigmodel_cli.convert.vit import Dinov2, Dinov2WithRegisters, HFViT

FAMILIES: tuple[Family, ...] = (Llama(), HFViT(), Dinov2(), Dinov2WithRegisters())

BY_TYPE = {name: family for family in FAMILIES for name in family.model_types}
"""By config.json's `model_type`."""
