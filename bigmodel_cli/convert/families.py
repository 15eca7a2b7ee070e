"""The families of published models that are read and written: one file and one line each."""

from __future__ import annotations

from bigmodel_cli.convert.bert import Bert, Roberta
from bigmodel_cli.convert.deepseek import DeepseekV3
from bigmodel_cli.convert.dino import Dinov2, Dinov2WithRegisters, Dinov3
from bigmodel_cli.convert.distilbert import DistilBert
from bigmodel_cli.convert.experts import Mixtral, Qwen2Moe, Qwen3Moe
from bigmodel_cli.convert.family import Family
from bigmodel_cli.convert.gemma import Gemma2, Gemma3
from bigmodel_cli.convert.gpt2 import GPT2
from bigmodel_cli.convert.gpt_oss import GptOss
from bigmodel_cli.convert.granite import Granite, GraniteMoeHybrid
from bigmodel_cli.convert.lfm2 import Lfm2
from bigmodel_cli.convert.llama import Llama
from bigmodel_cli.convert.mamba2 import Mamba2
from bigmodel_cli.convert.mistral import Mistral
from bigmodel_cli.convert.modernbert import ModernBert
from bigmodel_cli.convert.olmo import Olmo2, Olmo3
from bigmodel_cli.convert.qwen import Qwen2, Qwen3
from bigmodel_cli.convert.qwen3_5 import Qwen3_5
from bigmodel_cli.convert.seq2seq import T5, Marian
from bigmodel_cli.convert.smollm3 import SmolLM3
from bigmodel_cli.convert.timm import TimmResNet, TimmViT
from bigmodel_cli.convert.vit import HFViT
from bigmodel_cli.convert.whisper import Whisper

FAMILIES: tuple[Family, ...] = (
    Llama(),
    Mistral(),
    Qwen2(),
    Qwen3(),
    SmolLM3(),
    Olmo2(),
    Olmo3(),
    Gemma2(),
    Gemma3(),
    Qwen3_5(),
    Mixtral(),
    Qwen2Moe(),
    Qwen3Moe(),
    GptOss(),
    DeepseekV3(),
    Granite(),
    GraniteMoeHybrid(),
    Lfm2(),
    Mamba2(),
    GPT2(),
    Bert(),
    Roberta(),
    DistilBert(),
    ModernBert(),
    HFViT(),
    Dinov2(),
    Dinov2WithRegisters(),
    Dinov3(),
    Marian(),
    T5(),
    Whisper(),
)

TIMM: tuple[Family, ...] = (TimmViT(), TimmResNet())
"""Those of timm's own layout."""

BY_TYPE = {name: family for family in FAMILIES for name in family.model_types}
"""By config.json's `model_type`."""
