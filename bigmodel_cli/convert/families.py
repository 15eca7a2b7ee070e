"""The families of published models that are read and written: one file and one line each."""

from __future__ import annotations

from bigmodel_cli.convert.bert import Bert, DistilBert, Roberta
from bigmodel_cli.convert.family import Family
from bigmodel_cli.convert.gpt2 import GPT2
from bigmodel_cli.convert.llama import Llama
from bigmodel_cli.convert.modernbert import ModernBert

FAMILIES: tuple[Family, ...] = (
    Llama(),
    GPT2(),
    Bert(),
    Roberta(),
    DistilBert(),
    ModernBert(),
)

BY_TYPE = {name: family for family in FAMILIES for name in family.model_types}
"""By config.json's `model_type`."""
