"""Encoder-decoders of text: Marian (Junczys-Dowmunt et al. 2018) and T5 (Raffel et al. 2020)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.convert.config import Config
from bigmodel_cli.convert.family import NO_DATA, SEQ2SEQ, Family, Model, grouped
from bigmodel_cli.convert.rules import Rule, rows, shaped
from bigmodel_cli.data import TOKENIZER

SIDES = ("encoder", "decoder")


class _Seq2Seq(Family):
    def data(self, folder: Path, info: DatasetInfo) -> dict[str, Any]:
        return {
            "type": "pairs",
            "source": [NO_DATA],
            "target": [NO_DATA],
            "context": info.context,
            "tokenizer": {"type": "file", "path": str(folder / TOKENIZER)},
        }


class Marian(_Seq2Seq):
    """Post-norm blocks, sines first and cosines after them, one matrix of embeddings and logits."""

    model_types: ClassVar = ("marian",)
    heads: ClassVar = {"MarianMTModel": SEQ2SEQ}
    leftovers: ClassVar = (r"model\.(encoder|decoder)\.embed_positions\.weight",)
    copies: ClassVar = {
        "model.encoder.embed_tokens.weight": "model.shared.weight",
        "model.decoder.embed_tokens.weight": "model.shared.weight",
        "lm_head.weight": "model.shared.weight",
    }
    ignored: ClassVar = (
        *("encoder_layerdrop", "decoder_layerdrop", "init_std", "num_hidden_layers"),
        *("add_bias_logits", "extra_pos_embeddings", "classif_dropout", "classifier_dropout"),
        *("_num_labels", "save_step", "output_past"),
    )
    activations: ClassVar = {"swish": "silu", "silu": "silu", "relu": "relu", "gelu": "gelu"}

    def model(self, config: Config) -> dict[str, Any]:
        for key in ("share_encoder_decoder_embeddings", "tie_word_embeddings"):
            config.only(key, True)
        config.only("static_position_embeddings", True)
        for key in ("normalize_before", "normalize_embedding", "add_final_layer_norm"):
            config.only(key, False)
        vocab = config.get("vocab_size", int, 58101)
        config.only("decoder_vocab_size", vocab)
        dropout = config.get("dropout", float, 0.1)
        return {
            "type": "seq2seq",
            "dim": config.get("d_model", int, 1024),
            "max_len": config.get("max_position_embeddings", int, 1024),
            "vocab_size": vocab,
            "position": {"type": "sinusoidal", "layout": "halves"},
            "scale_embeddings": config.get("scale_embedding", bool, False),
            "logit_bias": True,
            "dropout": dropout,
            **{side: self.blocks(config, side, dropout) for side in SIDES},
        }

    def blocks(self, config: Config, side: str, dropout: float) -> list[dict[str, Any]]:
        """The blocks of a side."""
        named = config.get("activation_function", str, "gelu")
        config.only("activation_function", *self.activations)
        heads = {
            "num_heads": config.get(f"{side}_attention_heads", int, 16),
            "dropout": config.get("attention_dropout", float, 0.0),
        }
        block = {
            "mixer": {"type": "attention", **heads},
            **({"cross": heads} if side == "decoder" else {}),
            "ffn": {
                "type": self.activations[named],
                "hidden": config.get(f"{side}_ffn_dim", int, 4096),
                "dropout": config.get("activation_dropout", float, 0.0),
            },
            "placement": "post",
            "dropout": dropout,
        }
        return grouped([block] * config.get(f"{side}_layers", int, 12))

    def config(self, model: Model, info: DatasetInfo) -> dict[str, Any]:
        names = {ours: theirs for theirs, ours in reversed(self.activations.items())}
        block = model["encoder"][0]
        return {
            "model_type": "marian",
            "is_encoder_decoder": True,
            "d_model": model["dim"],
            **side_sizes(model),
            "vocab_size": model["vocab_size"],
            "decoder_vocab_size": model["vocab_size"],
            "max_position_embeddings": model["max_len"],
            "activation_function": names[block["ffn"]["type"]],
            "scale_embedding": model["scale_embeddings"],
            "dropout": model["dropout"],
            "attention_dropout": block["mixer"]["dropout"],
            "activation_dropout": block["ffn"]["dropout"],
            "share_encoder_decoder_embeddings": True,
            "tie_word_embeddings": True,
            # Not those of the family, whose vocabulary is another one; the class wants a start.
            **dict.fromkeys(("eos_token_id", "pad_token_id", "forced_eos_token_id")),
            "decoder_start_token_id": 0,
        }

    def rules(self, model: Model, info: DatasetInfo, task: str) -> Iterator[Rule]:
        yield Rule("model.shared.weight", "source_embedding.weight")
        yield Rule("final_logits_bias", "head.bias", shaped(1, model["vocab_size"]))
        dim = model["dim"]
        for side in SIDES:
            for i in range(len(model[side])):
                theirs, ours = f"model.{side}.layers.{i}.", f"{side}.{i}."
                names = [f"{theirs}self_attn.{p}_proj" for p in ("q", "k", "v", "out")]
                yield from self_attention(names, f"{ours}mixer.", dim, bias=True)
                yield from both(f"{theirs}self_attn_layer_norm", f"{ours}mixer_norm")
                if side == "decoder":
                    names = [f"{theirs}encoder_attn.{p}_proj" for p in ("q", "k", "v", "out")]
                    yield from cross_attention(names, f"{ours}cross.", dim, bias=True)
                    yield from both(f"{theirs}encoder_attn_layer_norm", f"{ours}cross_norm")
                yield from both(f"{theirs}fc1", f"{ours}ffn.up")
                yield from both(f"{theirs}fc2", f"{ours}ffn.down")
                yield from both(f"{theirs}final_layer_norm", f"{ours}ffn_norm")


class T5(_Seq2Seq):
    """Pre-norm RMSNorm, scores without a scale, a bias by distance that all blocks share."""

    model_types: ClassVar = ("t5",)
    heads: ClassVar = {"T5ForConditionalGeneration": SEQ2SEQ, "T5WithLMHeadModel": SEQ2SEQ}
    leftovers: ClassVar = (
        r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",
    )
    copies: ClassVar = {
        "encoder.embed_tokens.weight": "shared.weight",
        "decoder.embed_tokens.weight": "shared.weight",
        "lm_head.weight": "shared.weight",
    }
    ignored: ClassVar = (
        *("classifier_dropout", "initializer_factor", "output_past", "is_gated_act"),
        "dense_act_fn",
    )
    forms: ClassVar = {"relu": "relu", "gated-gelu": "geglu", "gated-silu": "swiglu"}

    def model(self, config: Config) -> dict[str, Any]:
        dim = config.get("d_model", int, 512)
        tied = config.get("tie_word_embeddings", bool, True)
        scaled = config.get("scale_decoder_outputs", bool, tied)
        norm = {"type": "rmsnorm", "eps": config.get("layer_norm_epsilon", float, 1e-6)}
        dropout = config.get("dropout_rate", float, 0.1)
        layers = config.get("num_layers", int, 6)
        length = config.maybe("n_positions", int)
        if length is None:
            config.note(
                f"{config.file}: T5 sets no limit of length; texts have up to 512 tokens here"
                " (model.max_len)"
            )
        return {
            "type": "seq2seq",
            "dim": dim,
            "max_len": length or 512,
            "vocab_size": config.get("vocab_size", int, 32128),
            "position": {"type": "none"},
            "norm": norm,
            "share_embeddings": True if tied else "inputs",
            "scale_embeddings": False,
            "logit_scale": dim**-0.5 if scaled else 1.0,
            "dropout": dropout,
            "encoder": self.blocks(config, norm, dropout, layers, cross=False),
            "decoder": self.blocks(
                config, norm, dropout, config.get("num_decoder_layers", int, layers), cross=True
            ),
        }

    def blocks(
        self, config: Config, norm: dict[str, Any], dropout: float, layers: int, cross: bool
    ) -> list[dict[str, Any]]:
        """The blocks of a side."""
        config.only("feed_forward_proj", *self.forms)
        heads = {
            "num_heads": config.get("num_heads", int, 8),
            "head_dim": config.get("d_kv", int, 64),
            "bias": False,
            "scale": 1.0,
            "dropout": dropout,
        }
        position = {
            "type": "t5",
            "buckets": config.get("relative_attention_num_buckets", int, 32),
            "max_distance": config.get("relative_attention_max_distance", int, 128),
            "shared": True,
        }
        block = {
            "mixer": {"type": "attention", **heads, "position": position},
            **({"cross": heads} if cross else {}),
            "ffn": {
                "type": self.forms[config.get("feed_forward_proj", str, "relu")],
                "hidden": config.get("d_ff", int, 2048),
                "bias": False,
                "dropout": dropout,
            },
            "norm": norm,
            "dropout": dropout,
        }
        return grouped([block] * layers)

    def config(self, model: Model, info: DatasetInfo) -> dict[str, Any]:
        block = model["encoder"][0]
        mixer, position = block["mixer"], block["mixer"]["position"]
        names = {ours: theirs for theirs, ours in self.forms.items()}
        tied = model["share_embeddings"] is True
        return {
            "model_type": "t5",
            "is_encoder_decoder": True,
            "d_model": model["dim"],
            "d_kv": mixer["head_dim"],
            "d_ff": block["ffn"]["hidden"],
            "num_layers": len(model["encoder"]),
            "num_decoder_layers": len(model["decoder"]),
            "num_heads": mixer["num_heads"],
            "relative_attention_num_buckets": position["buckets"],
            "relative_attention_max_distance": position["max_distance"],
            "feed_forward_proj": names[block["ffn"]["type"]],
            "layer_norm_epsilon": model["norm"]["eps"],
            "dropout_rate": model["dropout"],
            "vocab_size": model["vocab_size"],
            "n_positions": model["max_len"],
            "tie_word_embeddings": tied,
            "scale_decoder_outputs": model["logit_scale"] != 1.0,
        }

    def rules(self, model: Model, info: DatasetInfo, task: str) -> Iterator[Rule]:
        yield Rule("shared.weight", "source_embedding.weight")
        for side in SIDES:
            for i, block in enumerate(model[side]):
                yield from self.block(f"{side}.block.{i}.layer.", f"{side}.{i}.", block)
            bias = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
            yield Rule(bias, f"{side}.0.mixer.bias.table.weight")
            yield Rule(f"{side}.final_layer_norm.weight", f"{side}_norm.weight")
        if model["share_embeddings"] is not True:
            yield Rule("lm_head.weight", "head.weight")

    def block(self, theirs: str, ours: str, block: Model) -> Iterator[Rule]:
        """The weights of a block: its layers are numbered, with cross-attention between."""
        width = block["mixer"]["num_heads"] * block["mixer"]["head_dim"]
        own = [f"{theirs}0.SelfAttention.{p}" for p in "qkvo"]
        yield from self_attention(own, f"{ours}mixer.", width, bias=False)
        yield Rule(f"{theirs}0.layer_norm.weight", f"{ours}mixer_norm.weight")
        last = 1
        if block["cross"] is not None:
            of = [f"{theirs}1.EncDecAttention.{p}" for p in "qkvo"]
            yield from cross_attention(of, f"{ours}cross.", width, bias=False)
            yield Rule(f"{theirs}1.layer_norm.weight", f"{ours}cross_norm.weight")
            last = 2
        dense = f"{theirs}{last}.DenseReluDense."
        names = {"gate": "wi_0", "up": "wi_1"} if block["ffn"]["type"] != "relu" else {"up": "wi"}
        for name, its in {**names, "down": "wo"}.items():
            yield Rule(f"{dense}{its}.weight", f"{ours}ffn.{name}.weight")
        yield Rule(f"{theirs}{last}.layer_norm.weight", f"{ours}ffn_norm.weight")


def side_sizes(model: Model) -> dict[str, int]:
    """Layers, heads and width between of each side, as config.json calls them."""
    found: dict[str, int] = {}
    for side in SIDES:
        first = model[side][0]
        found |= {
            f"{side}_layers": len(model[side]),
            f"{side}_attention_heads": first["mixer"]["num_heads"],
            f"{side}_ffn_dim": first["ffn"]["hidden"],
        }
    return found


def both(theirs: str, ours: str) -> Iterator[Rule]:
    """Weight and bias."""
    for kind in ("weight", "bias"):
        yield Rule(f"{theirs}.{kind}", f"{ours}.{kind}")


def self_attention(theirs: Sequence[str], ours: str, width: int, bias: bool) -> Iterator[Rule]:
    """Projections to queries, keys, values (rows of one matrix of ours) and the output's."""
    for kind in ("weight", "bias") if bias else ("weight",):
        for i in range(3):
            yield Rule(f"{theirs[i]}.{kind}", f"{ours}qkv.{kind}", rows(i * width, width))
        yield Rule(f"{theirs[3]}.{kind}", f"{ours}out.{kind}")


def cross_attention(theirs: Sequence[str], ours: str, width: int, bias: bool) -> Iterator[Rule]:
    """The same where keys and values alone share a matrix."""
    for kind in ("weight", "bias") if bias else ("weight",):
        yield Rule(f"{theirs[0]}.{kind}", f"{ours}q.{kind}")
        for i in (1, 2):
            yield Rule(f"{theirs[i]}.{kind}", f"{ours}kv.{kind}", rows((i - 1) * width, width))
        yield Rule(f"{theirs[3]}.{kind}", f"{ours}out.{kind}")
