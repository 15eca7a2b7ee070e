"""Mamba-2: blocks of a state space alone; and its layer, which hybrids have too."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.convert.config import Config
from bigmodel_cli.convert.family import CAUSAL_LM, LONGEST_WINDOW, Model
from bigmodel_cli.convert.layered import Layered
from bigmodel_cli.convert.rules import Rule
from bigmodel_cli.errors import CheckpointError


class Mamba2(Layered):
    """Mamba-2 (Dao and Gu 2024) as transformers has it; a model has no longest sequence."""

    model_types: ClassVar = ("mamba2",)
    heads: ClassVar = {"Mamba2ForCausalLM": CAUSAL_LM}
    ignored: ClassVar = (
        "time_step_rank", "time_step_min", "time_step_max", "time_step_floor",
        "rescale_prenorm_residual",  # of first weights
        "residual_in_fp32",  # of precision
        "rms_norm", "norm_before_gate",  # that transformers does not heed either
    )  # fmt: skip
    eps_key: ClassVar = "layer_norm_epsilon"
    eps = 1e-5
    body: ClassVar = "backbone."
    copies: ClassVar = {"lm_head.weight": "backbone.embeddings.weight"}
    embedding: ClassVar = "embeddings"
    last_norm: ClassVar = "norm_f"
    norms: ClassVar = {"mixer_norm": "norm"}

    def longest(self, config: Config) -> int | None:
        return config.maybe("max_position_embeddings", int)

    def block(self, config: Config, layer: int) -> dict[str, Any]:
        config.only("use_bias", False)
        config.only("use_conv_bias", True)
        check_step_sizes(config)
        width, expand = config.get("head_dim", int, 64), config.get("expand", int, 2)
        check_heads(config, "num_heads", width, expand, 128)
        mixer = {
            "type": "mamba2",
            "state": config.get("state_size", int, 128),
            "head_dim": width,
            "expand": float(expand),
            "groups": config.get("n_groups", int, 8),
            "kernel": config.get("conv_kernel", int, 4),
            "chunk": config.get("chunk_size", int, 256),
            "eps": config.get("layer_norm_epsilon", float, 1e-5),
        }
        return {"mixer": mixer, "norm": self.norm(config)}

    def config(self, model: Model, info: DatasetInfo) -> dict[str, Any]:
        mixer = model["blocks"][0]["mixer"]
        return {
            **{k: value for k, value in super().config(model, info).items() if value is not None},
            "state_size": mixer["state"],
            "head_dim": mixer["head_dim"],
            "num_heads": int(mixer["expand"] * model["dim"]) // mixer["head_dim"],
            "expand": int(mixer["expand"]),
            "n_groups": mixer["groups"],
            "conv_kernel": mixer["kernel"],
            "chunk_size": mixer["chunk"],
        }

    def info(self, config: Config, folder: Path, model: Model, task: str) -> DatasetInfo:
        longest = model["max_len"] or LONGEST_WINDOW
        return super().info(config, folder, {**model, "max_len": longest}, task)

    def layer(self, theirs: str, ours: str, block: Model) -> Iterator[Rule]:
        return state_space(theirs + "mixer.", ours + "mixer.")


def check_heads(config: Config, key: str, width: int, expand: int, usual: int) -> None:
    """Raise `CheckpointError` where the heads do not fill the inner width."""
    heads, inner = config.get(key, int, usual), expand * config.get("hidden_size", int)
    if heads * width != inner:
        raise CheckpointError(
            f"{config.file}: {key}: {heads} heads of {width} do not fill the inner width {inner}"
        )


def check_step_sizes(config: Config) -> None:
    """Raise `CheckpointError` where step sizes have bounds; infinity is written in several ways."""
    limits = config.maybe("time_step_limit", list) or [0.0, float("inf")]
    if limits[0] or limits[1:] not in ([float("inf")], [{"__float__": "Infinity"}]):
        raise CheckpointError(
            f"{config.file}: time_step_limit: {str(limits)[:60]} is not built; what is: none"
        )


def state_space(theirs: str, ours: str) -> Iterator[Rule]:
    """A Mamba-2 layer: filters have an axis of one channel."""
    yield Rule(theirs + "in_proj.weight", ours + "input.weight")
    yield Rule(theirs + "conv1d.weight", ours + "conv.weight", lambda filters: filters[:, None])
    yield Rule(theirs + "conv1d.bias", ours + "conv.bias")
    for mine, name in (("dt_bias", "dt_bias"), ("log_a", "A_log"), ("d", "D")):
        yield Rule(theirs + name, ours + mine)
    yield Rule(theirs + "norm.weight", ours + "norm.weight")
    yield Rule(theirs + "out_proj.weight", ours + "out.weight")
