"""BERT and the encoders with its structure: MiniLM, RoBERTa, XLM-RoBERTa."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.convert.config import Config
from bigmodel_cli.convert.family import (
    BODY,
    CLASSIFICATION,
    MASKED_LM,
    TAGGING,
    Family,
    Model,
)
from bigmodel_cli.convert.label_heads import class_labels
from bigmodel_cli.convert.llama import kinds
from bigmodel_cli.convert.marks import mask_token
from bigmodel_cli.convert.rules import Rule, rows


class Bert(Family):
    """Post-norm blocks, learned positions, token types (Devlin et al. 2019); MiniLM is one."""

    model_types: ClassVar[tuple[str, ...]] = ("bert",)
    heads: ClassVar = {
        "BertModel": BODY,
        "BertForMaskedLM": MASKED_LM,
        "BertForPreTraining": MASKED_LM,
        "BertForSequenceClassification": CLASSIFICATION,
        "BertForTokenClassification": TAGGING,
    }
    prefix: ClassVar = "bert."
    whole_texts: ClassVar = True
    renamed: ClassVar = {
        r"LayerNorm\.gamma$": "LayerNorm.weight",
        r"LayerNorm\.beta$": "LayerNorm.bias",
    }
    # which of two sentences comes first; the logits' matrix, which is the embedding
    leftovers: ClassVar[tuple[str, ...]] = (
        r"(bert\.)?embeddings\.position_ids",
        r"(bert\.)?pooler\.dense\.(weight|bias)",
        r"cls\.seq_relationship\.(weight|bias)",
        r"cls\.predictions\.decoder\.(weight|bias)",
    )
    copies: ClassVar[Mapping[str, str]] = {
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    }
    spare: ClassVar[tuple[str, ...]] = ("pooler",)

    keys: ClassVar[Mapping[str, tuple[str, Any]]] = {
        "dim": ("hidden_size", 768),
        "hidden": ("intermediate_size", 3072),
        "heads": ("num_attention_heads", 12),
        "layers": ("num_hidden_layers", 12),
        "vocab": ("vocab_size", 30522),
        "positions": ("max_position_embeddings", 512),
        "types": ("type_vocab_size", 2),
        "eps": ("layer_norm_eps", 1e-12),
        "dropout": ("hidden_dropout_prob", 0.1),
        "attention_dropout": ("attention_probs_dropout_prob", 0.1),
        "std": ("initializer_range", 0.02),
    }
    """What of a model is said in config.json -> its key and the family's default."""
    activation: ClassVar = "hidden_act"
    first: ClassVar = 0
    """The number of the first position."""

    layer: ClassVar = "encoder.layer."
    qkv: ClassVar = "attention.self.{}"
    projections: ClassVar[tuple[str, ...]] = ("query", "key", "value")
    modules: ClassVar[Mapping[str, str]] = {
        "attention.output.dense": "mixer.out",
        "attention.output.LayerNorm": "mixer_norm",
        "intermediate.dense": "ffn.up",
        "output.dense": "ffn.down",
        "output.LayerNorm": "ffn_norm",
    }
    """Of a layer, beside its queries, keys and values: theirs -> ours."""
    after: ClassVar[Mapping[str, Mapping[str, str]]] = {
        MASKED_LM: {
            "cls.predictions.transform.dense": "head.dense",
            "cls.predictions.transform.LayerNorm": "head.norm",
        },
        CLASSIFICATION: {"bert.pooler.dense": "pooler", "classifier": "head"},
        TAGGING: {"classifier": "head"},
    }
    """Of the head for a task: theirs -> ours."""
    logits_bias: ClassVar = "cls.predictions.bias"

    def model(self, config: Config) -> dict[str, Any]:
        for key in ("is_decoder", "add_cross_attention"):
            config.only(key, False)
        config.only("tie_word_embeddings", True)
        config.only("position_embedding_type", "absolute")
        config.only(self.activation, "gelu")
        of = {name: config.get(key, type(d), d) for name, (key, d) in self.keys.items()}
        norm = {"type": "layernorm", "eps": of.get("eps", 1e-12)}
        dropout = of["dropout"]
        head_dropout = self.head_dropout(config, dropout)
        block = {
            "repeat": of["layers"],
            "mixer": {
                "type": "attention",
                "num_heads": of["heads"],
                "dropout": of["attention_dropout"],
            },
            "ffn": {"type": "gelu", "hidden": of["hidden"]},
            "norm": norm,
            "placement": "post",
            "dropout": dropout,
        }
        return {
            "type": "encoder",
            "dim": of["dim"],
            "position": {"type": "learned", "first": self.first},
            "token_types": of.get("types", 0),
            "embedding_norm": norm,
            "blocks": [block],
            "norm": None,
            "pooler": self.pooler(head_dropout),
            "vocab_size": of["vocab"],
            "max_len": of["positions"] - self.first,
            "dropout": dropout,
            "head_dropout": head_dropout,
            "init_std": of["std"],
        }

    def head_dropout(self, config: Config, dropout: float) -> float:
        """What is dropped before the logits of labels."""
        return config.get("classifier_dropout", float, dropout)

    def pooler(self, dropout: float) -> Any:
        """The layer before a label; `dropout` is that before the logits."""
        return True

    def beside(self, folder: Path) -> dict[str, Any]:
        found = mask_token(folder)
        return {"mask_token": "none" if found is None else found}

    def unused(self, task: str, model: Model) -> tuple[str, ...]:
        if task == CLASSIFICATION:
            return ()
        pooler = model["pooler"]
        reads_tokens = task == TAGGING and isinstance(pooler, dict) and pooler["tags"]
        return ("pool",) if reads_tokens else ("pool", "pooler")

    def config(self, model: Model, info: DatasetInfo) -> dict[str, Any]:
        block = model["blocks"][0]
        mixer = block["mixer"]
        of = {
            "dim": model["dim"],
            "hidden": block["ffn"]["hidden"],
            "heads": mixer["num_heads"],
            "layers": len(model["blocks"]),
            "vocab": model["vocab_size"],
            "positions": model["max_len"] + self.first,
            "types": model["token_types"],
            "eps": block["norm"]["eps"],
            "dropout": model["dropout"],
            "attention_dropout": mixer["dropout"],
            "std": model["init_std"] or self.keys["std"][1],
        }
        return {
            "model_type": self.model_types[0],
            self.activation: "gelu",
            **{key: of[name] for name, (key, _) in self.keys.items()},
            **self.head_config(model),
            **class_labels(info),
        }

    def unfit(self, model: Model, info: DatasetInfo) -> Iterator[tuple[str, str]]:
        if "types" in self.keys and not model["token_types"]:
            yield "model.token_types", "0, without which their class cannot be built"

    def head_config(self, model: Model) -> dict[str, Any]:
        """What config.json says of the head."""
        own = model["head_dropout"]
        return {} if own in (None, model["dropout"]) else {"classifier_dropout": own}

    def rules(self, model: Model, info: DatasetInfo, task: str) -> Iterator[Rule]:
        body = self.prefix if task else ""
        tables = {"position_embeddings": "position.table", "word_embeddings": "embedding"}
        if "types" in self.keys:
            tables["token_type_embeddings"] = "types"
        for name, ours in tables.items():
            yield Rule(f"{body}embeddings.{name}.weight", f"{ours}.weight")
        pairs = {f"{body}embeddings.LayerNorm": "embedding_norm", **self.after.get(task, {})}
        for i in range(len(model["blocks"])):
            theirs, ours = f"{body}{self.layer}{i}.", f"blocks.{i}."
            pairs |= {theirs + name: ours + own for name, own in self.modules.items()}
            for j, name in enumerate(self.projections):
                view = rows(j * model["dim"], model["dim"])
                for kind in kinds(True):
                    projection = theirs + self.qkv.format(name)
                    yield Rule(f"{projection}.{kind}", f"{ours}mixer.qkv.{kind}", view)
        for name, ours in pairs.items():
            for kind in kinds(True):
                yield Rule(f"{name}.{kind}", f"{ours}.{kind}")
        if task == MASKED_LM:
            yield Rule(self.logits_bias, "head.logits.bias")


class Roberta(Bert):
    """RoBERTa (Liu et al. 2019): positions from 2 on, another layer before a label.

    XLM-RoBERTa (Conneau et al. 2020) is the same with another vocabulary.
    """

    model_types: ClassVar[tuple[str, ...]] = ("roberta", "xlm-roberta")
    prefix: ClassVar = "roberta."
    heads: ClassVar = {
        f"{family}{head}": task
        for family in ("Roberta", "XLMRoberta")
        for head, task in (
            ("Model", BODY),
            ("ForMaskedLM", MASKED_LM),
            ("ForSequenceClassification", CLASSIFICATION),
            ("ForTokenClassification", TAGGING),
        )
    }
    leftovers: ClassVar[tuple[str, ...]] = (
        r"(roberta\.)?embeddings\.position_ids",
        r"(roberta\.)?pooler\.dense\.(weight|bias)",
        r"lm_head\.decoder\.(weight|bias)",
    )
    copies: ClassVar = {
        "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
        "lm_head.decoder.bias": "lm_head.bias",
    }
    spare: ClassVar[tuple[str, ...]] = ()
    keys: ClassVar = {**Bert.keys, "vocab": ("vocab_size", 50265)}
    first: ClassVar = 2
    padding: ClassVar = 1
    after: ClassVar = {
        MASKED_LM: {"lm_head.dense": "head.dense", "lm_head.layer_norm": "head.norm"},
        CLASSIFICATION: {"classifier.dense": "pooler", "classifier.out_proj": "head"},
        TAGGING: {"classifier": "head"},
    }
    logits_bias: ClassVar = "lm_head.bias"

    def model(self, config: Config) -> dict[str, Any]:
        config.only("pad_token_id", self.padding)
        return super().model(config)

    def pooler(self, dropout: float) -> Any:
        return {"dropout": dropout}
