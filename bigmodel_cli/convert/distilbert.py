"""DistilBERT: BERT without token types, with names of its own."""

from __future__ import annotations

from typing import Any, ClassVar

from bigmodel_cli.convert.bert import Bert
from bigmodel_cli.convert.config import Config
from bigmodel_cli.convert.family import BODY, CLASSIFICATION, MASKED_LM, TAGGING, Model


class DistilBert(Bert):
    """DistilBERT (Sanh et al. 2019): no token types, ReLU before a label.

    In training ours also drops what attention adds, and theirs does not.
    """

    model_types: ClassVar[tuple[str, ...]] = ("distilbert",)
    prefix: ClassVar = "distilbert."
    heads: ClassVar = {
        "DistilBertModel": BODY,
        "DistilBertForMaskedLM": MASKED_LM,
        "DistilBertForSequenceClassification": CLASSIFICATION,
        "DistilBertForTokenClassification": TAGGING,
    }
    leftovers: ClassVar[tuple[str, ...]] = (
        r"(distilbert\.)?embeddings\.position_ids",
        r"vocab_projector\.weight",
    )
    copies: ClassVar = {"vocab_projector.weight": "distilbert.embeddings.word_embeddings.weight"}
    spare: ClassVar[tuple[str, ...]] = ()
    ignored: ClassVar = ("qa_dropout", "tie_weights_")
    keys: ClassVar = {
        "dim": ("dim", 768),
        "hidden": ("hidden_dim", 3072),
        "heads": ("n_heads", 12),
        "layers": ("n_layers", 6),
        "vocab": ("vocab_size", 30522),
        "positions": ("max_position_embeddings", 512),
        "dropout": ("dropout", 0.1),
        "attention_dropout": ("attention_dropout", 0.1),
        "std": ("initializer_range", 0.02),
    }
    activation: ClassVar = "activation"
    layer: ClassVar = "transformer.layer."
    qkv: ClassVar = "attention.{}_lin"
    projections: ClassVar = ("q", "k", "v")
    modules: ClassVar = {
        "attention.out_lin": "mixer.out",
        "sa_layer_norm": "mixer_norm",
        "ffn.lin1": "ffn.up",
        "ffn.lin2": "ffn.down",
        "output_layer_norm": "ffn_norm",
    }
    after: ClassVar = {
        MASKED_LM: {"vocab_transform": "head.dense", "vocab_layer_norm": "head.norm"},
        CLASSIFICATION: {"pre_classifier": "pooler", "classifier": "head"},
        TAGGING: {"classifier": "head"},
    }
    logits_bias: ClassVar = "vocab_projector.bias"

    def model(self, config: Config) -> dict[str, Any]:
        config.only("sinusoidal_pos_embds", False)
        return super().model(config)

    def head_dropout(self, config: Config, dropout: float) -> float:
        own = config.get("seq_classif_dropout", float, 0.2)
        return dropout if self.task_of(config) == TAGGING else own

    def head_config(self, model: Model) -> dict[str, Any]:
        own = model["head_dropout"]
        return {"seq_classif_dropout": model["dropout"] if own is None else own}

    def pooler(self, dropout: float) -> Any:
        return {"activation": "relu"}
