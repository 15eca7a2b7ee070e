"""What decoders share whose layers differ: mixtures of experts, hybrids of attention and others."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.convert.config import Config
from bigmodel_cli.convert.family import Model
from bigmodel_cli.convert.llama import Llama, kinds
from bigmodel_cli.convert.rotary import rope_parameters
from bigmodel_cli.convert.rules import Rule, nth

SWIGLU = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
"""The matrices of a gated feed-forward network, by our names -> Llama's."""
MIXTRALS = {"gate": "w1", "up": "w3", "down": "w2"}
"""The same, as Mixtral and LFM2 call them."""


class Layered(Llama):
    """A decoder in Llama's layout, layer by layer; subclasses say what a layer is."""

    body: ClassVar[str] = "model."
    embedding: ClassVar[str] = "embed_tokens"
    last_norm: ClassVar[str] = "norm"
    eps_key: ClassVar[str] = "rms_norm_eps"

    def model(self, config: Config) -> dict[str, Any]:
        config.only("hidden_act", "silu")
        return super().model(config)

    def norm(self, config: Config) -> dict[str, Any]:
        return {"type": "rmsnorm", "eps": config.get(self.eps_key, float, self.eps)}

    @abstractmethod
    def block(self, config: Config, layer: int) -> dict[str, Any]:
        """The parts of a layer, and what else its block says."""

    def config(self, model: Model, info: DatasetInfo) -> dict[str, Any]:
        return {
            "model_type": self.model_types[0],
            "hidden_act": "silu",
            "hidden_size": model["dim"],
            "num_hidden_layers": len(model["blocks"]),
            self.eps_key: model["norm"]["eps"],
            "vocab_size": model["vocab_size"],
            "max_position_embeddings": model["max_len"],
            "tie_word_embeddings": model["tie_embeddings"],
        }

    def attention_config(self, model: Model, mixer: Model) -> dict[str, Any]:
        found = {**super().attention_config(model, mixer), "attention_bias": mixer["bias"]}
        position = mixer["position"]
        turned = position["type"] == "rotary"
        return {**found, "rope_parameters": rope_parameters(position)} if turned else found

    def rules(self, model: Model, info: DatasetInfo, task: str) -> Iterator[Rule]:
        yield Rule(f"{self.body}{self.embedding}.weight", "embedding.weight")
        for i, block in enumerate(model["blocks"]):
            theirs, ours = f"{self.body}layers.{i}.", f"blocks.{i}."
            for own, name in self.norms.items():
                yield Rule(f"{theirs}{name}.weight", f"{ours}{own}.weight")
            yield from self.layer(theirs, ours, block)
        yield Rule(f"{self.body}{self.last_norm}.weight", "norm.weight")
        if not model["tie_embeddings"]:
            yield Rule("lm_head.weight", "head.weight")

    @abstractmethod
    def layer(self, theirs: str, ours: str, block: Model) -> Iterator[Rule]:
        """The rules of a layer's parts."""


def of_type(model: Model, slot: str, kind: str) -> list[Model]:
    """The parts of this type in a slot, layer by layer."""
    parts = (block[slot] for block in model["blocks"])
    return [part for part in parts if part is not None and part["type"] == kind]


def balance(config: Config, top_k: int, usual: float) -> dict[str, Any]:
    """How the load of experts is balanced: transformers' loss counts each choice as a token."""
    wanted = config.get("output_router_logits", bool, False)
    weight = top_k * config.get("router_aux_loss_coef", float, usual)
    return {"balance": "loss" if wanted else "none", "balance_weight": rounded(weight)}


def balance_config(ffn: Model) -> dict[str, Any]:
    """The inverse."""
    return {
        "output_router_logits": ffn["balance"] == "loss",
        "router_aux_loss_coef": rounded(ffn["balance_weight"] / ffn["top_k"]),
    }


def rounded(value: float) -> float:
    """A number whose last digit a product or quotient may have changed, as it was written."""
    return float(f"{value:.15g}")


def gated(theirs: str, ours: str, ffn: Model, names: Mapping[str, str] = SWIGLU) -> Iterator[Rule]:
    """A gated feed-forward network."""
    for kind in kinds(ffn["bias"]):
        for mine, name in names.items():
            yield Rule(f"{theirs}{name}.{kind}", f"{ours}{mine}.{kind}")


def experts(
    theirs: str, ours: str, ffn: Model, names: Mapping[str, str] = SWIGLU
) -> Iterator[Rule]:
    """Experts each under a name of its own."""
    for expert in range(ffn["experts"]):
        for mine, name in names.items():
            yield Rule(f"{theirs}experts.{expert}.{name}.weight", ours + mine, nth(expert))
