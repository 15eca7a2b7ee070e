"""ModernBERT (Warner et al. 2024): rotary local and global attention, GeGLU, pre-norm blocks."""

from __future__ import annotations

from collections.abc import Iterator
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
    grouped,
)
from bigmodel_cli.convert.label_heads import class_labels
from bigmodel_cli.convert.llama import kinds
from bigmodel_cli.convert.marks import mask_token
from bigmodel_cli.convert.rotary import rope_parameters, rotary
from bigmodel_cli.convert.rules import Rule

FULL, LOCAL = "full_attention", "sliding_attention"
BASES = {FULL: ("global_rope_theta", 160_000.0), LOCAL: ("local_rope_theta", 10_000.0)}
"""Older keys of the rotary bases, and the defaults."""

PAD = 50_283
"""The default of `pad_token_id`, which their class needs to be a token or null."""


class ModernBert(Family):
    """Encoders of ModernBERT's layout; the first block's attention has no norm of its own."""

    model_types: ClassVar = ("modernbert",)
    heads: ClassVar = {
        "ModernBertModel": BODY,
        "ModernBertForMaskedLM": MASKED_LM,
        "ModernBertForSequenceClassification": CLASSIFICATION,
        "ModernBertForTokenClassification": TAGGING,
    }
    prefix: ClassVar = "model."
    whole_texts: ClassVar = True
    leftovers: ClassVar = (r"decoder\.weight",)
    copies: ClassVar = {"decoder.weight": "model.embeddings.tok_embeddings.weight"}
    # keys of BERT's that their class does not read, and how to compute and to draw
    ignored: ClassVar = (
        *("layer_norm_eps", "position_embedding_type", "sparse_prediction"),
        *("sparse_pred_ignore_index", "deterministic_flash_attn", "reference_compile"),
        *("repad_logits_with_grad", "initializer_cutoff_factor"),
    )

    def model(self, config: Config) -> dict[str, Any]:
        config.only("tie_word_embeddings", True)
        config.only("decoder_bias", True)
        for key in ("hidden_activation", "classifier_activation"):
            config.only(key, "gelu")
        norm = {
            "type": "layernorm",
            "eps": config.get("norm_eps", float, 1e-5),
            "bias": config.get("norm_bias", bool, False),
        }
        ffn = {
            "type": "geglu",
            "approximate": "none",
            "hidden": config.get("intermediate_size", int, 1152),
            "bias": config.get("mlp_bias", bool, False),
            "dropout": config.get("mlp_dropout", float, 0.0),
        }
        blocks: list[dict[str, Any]] = [
            {"mixer": self.mixer(config, kind), "ffn": ffn, "norm": norm}
            for kind in self.layer_types(config)
        ]
        blocks[0]["mixer_norm"] = {"type": "none"}
        bias = config.get("classifier_bias", bool, False)
        config.only("classifier_pooling", "cls", "mean")
        return {
            "type": "encoder",
            "dim": config.get("hidden_size", int, 768),
            "embedding_norm": norm,
            "blocks": grouped(blocks),
            "norm": norm,
            "head_bias": bias,
            "pool": config.get("classifier_pooling", str, "cls"),
            "pooler": {"activation": "gelu", "bias": bias, "norm": norm, "tags": True},
            "vocab_size": config.get("vocab_size", int, 50368),
            "max_len": config.get("max_position_embeddings", int, 8192),
            "dropout": config.get("embedding_dropout", float, 0.0),
            "head_dropout": config.get("classifier_dropout", float, 0.0),
            "init_std": config.get("initializer_range", float, 0.02),
        }

    def layer_types(self, config: Config) -> list[str]:
        """Of each layer, by a list or by the distance of those that see everything."""
        layers = config.get("num_hidden_layers", int, 22)
        every = config.get("global_attn_every_n_layers", int, 3)
        default = [LOCAL if i % max(every, 1) else FULL for i in range(layers)]
        found = config.get("layer_types", list, default)
        config.only("layer_types", [kind for kind in found if kind in BASES][:layers])
        return [*found]

    def mixer(self, config: Config, kind: str) -> dict[str, Any]:
        """Local layers see as many positions on each side, half of `local_attention`."""
        window = config.get("local_attention", int, 128) // 2 + 1
        bases = {name: config.get(key, float, base) for name, (key, base) in BASES.items()}
        return {
            "type": "attention",
            "num_heads": config.get("num_attention_heads", int, 12),
            "bias": config.get("attention_bias", bool, False),
            "window": window if kind == LOCAL else None,
            "dropout": config.get("attention_dropout", float, 0.0),
            "position": rotary(config, bases[kind], kind),
        }

    def beside(self, folder: Path) -> dict[str, Any]:
        found = mask_token(folder)
        return {"mask_token": "none" if found is None else found}

    def unused(self, task: str, model: Model) -> tuple[str, ...]:
        labels = {CLASSIFICATION: ("head_bias",), TAGGING: ("head_bias", "pool")}
        return labels.get(task, ("pool", "pooler"))

    def config(self, model: Model, info: DatasetInfo) -> dict[str, Any]:
        mixers = [block["mixer"] for block in model["blocks"]]
        ffn, norm = model["blocks"][0]["ffn"], model["norm"]
        local = [mixer for mixer in mixers if mixer["window"] is not None]
        full = [mixer for mixer in mixers if mixer["window"] is None]
        positions = {name: m[0]["position"] for name, m in ((FULL, full), (LOCAL, local)) if m}
        return {
            "model_type": self.model_types[0],
            "hidden_activation": "gelu",
            "hidden_size": model["dim"],
            "intermediate_size": ffn["hidden"],
            "num_hidden_layers": len(mixers),
            "num_attention_heads": mixers[0]["num_heads"],
            "layer_types": [FULL if mixer["window"] is None else LOCAL for mixer in mixers],
            "local_attention": 2 * (local[0]["window"] - 1) if local else 128,
            "rope_parameters": {
                name: rope_parameters(positions[name])
                if name in positions
                else {"rope_type": "default", "rope_theta": base}
                for name, (_, base) in BASES.items()
            },
            "attention_bias": mixers[0]["bias"],
            "attention_dropout": mixers[0]["dropout"],
            "mlp_bias": ffn["bias"],
            "mlp_dropout": ffn["dropout"],
            "norm_eps": norm["eps"],
            "norm_bias": norm["bias"],
            "embedding_dropout": model["dropout"],
            "classifier_bias": _head_bias(model, labels=bool(info.outputs)),
            "classifier_pooling": model["pool"],
            "classifier_dropout": model["head_dropout"] or 0.0,
            "vocab_size": model["vocab_size"],
            "pad_token_id": PAD if model["vocab_size"] > PAD else None,
            "max_position_embeddings": model["max_len"],
            "initializer_range": model["init_std"] or 0.02,
            **class_labels(info),
        }

    def rules(self, model: Model, info: DatasetInfo, task: str) -> Iterator[Rule]:
        body, blocks = self.prefix if task else "", model["blocks"]
        yield Rule(f"{body}embeddings.tok_embeddings.weight", "embedding.weight")
        norms = {"embeddings.norm": "embedding_norm", "final_norm": "norm"}
        for i, block in enumerate(blocks):
            norms |= {f"layers.{i}.mlp_norm": f"blocks.{i}.ffn_norm"}
            norms |= {f"layers.{i}.attn_norm": f"blocks.{i}.mixer_norm"} if i else {}
            yield from self.layer(f"{body}layers.{i}.", f"blocks.{i}.", block)
        for name, ours in norms.items():
            for kind in kinds(model["norm"]["bias"]):
                yield Rule(f"{body}{name}.{kind}", f"{ours}.{kind}")
        if task:
            yield from self.head(model, task)

    def layer(self, theirs: str, ours: str, block: Model) -> Iterator[Rule]:
        """Two projections of ours are one of theirs, one below the other."""
        hidden = block["ffn"]["hidden"]
        for kind in kinds(block["mixer"]["bias"]):
            yield Rule(f"{theirs}attn.Wqkv.{kind}", f"{ours}mixer.qkv.{kind}")
            yield Rule(f"{theirs}attn.Wo.{kind}", f"{ours}mixer.out.{kind}")
        for kind in kinds(block["ffn"]["bias"]):
            yield Rule(f"{theirs}mlp.Wi.{kind}", f"{ours}ffn.gate.{kind}")
            yield Rule(f"{theirs}mlp.Wi.{kind}", f"{ours}ffn.up.{kind}", skip=hidden)
            yield Rule(f"{theirs}mlp.Wo.{kind}", f"{ours}ffn.down.{kind}")

    def head(self, model: Model, task: str) -> Iterator[Rule]:
        """A dense layer and a norm, then the logits, for every task."""
        tokens = task == MASKED_LM
        dense, norm = ("head.dense", "head.norm") if tokens else ("pooler", "pooler_norm")
        for kind in kinds(_head_bias(model, labels=not tokens)):
            yield Rule(f"head.dense.{kind}", f"{dense}.{kind}")
        for kind in kinds(model["norm"]["bias"]):
            yield Rule(f"head.norm.{kind}", f"{norm}.{kind}")
        if tokens:
            yield Rule("decoder.bias", "head.logits.bias")
        else:
            yield Rule("classifier.weight", "head.weight")
            yield Rule("classifier.bias", "head.bias")


def _head_bias(model: Model, labels: bool) -> bool:
    """Whether the dense layer before the logits has a bias: of labels, or of tokens."""
    pooler = model["pooler"]
    found: bool = pooler["bias"] if labels and isinstance(pooler, dict) else model["head_bias"]
    return found
