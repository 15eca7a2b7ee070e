"""Adapters in PEFT's files: adapter_config.json and adapter_model.safetensors, in both directions.

The names are those of the Hugging Face model, by the rules of its family. A projection that ours
holds fused is adapted part by part, so that rows of its B are B of theirs; where theirs is one of
several of our matrices, their A are stacked, and B has a block for each. A tied embedding is
written for both of its modules.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

from bigmodel_cli.adapters.attaching import Adapter, adapters
from bigmodel_cli.adapters.base import Factors, LowRankOptions
from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.convert.exporting import express
from bigmodel_cli.convert.family import written_out
from bigmodel_cli.convert.rules import Rule
from bigmodel_cli.errors import SpecError
from bigmodel_cli.lazy import Module, Tensor, torch
from bigmodel_cli.models.base import AnyModelOptions
from bigmodel_cli.roles import plain_name

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
TASKS = {
    "causal_lm": "CAUSAL_LM",
    "classification": "SEQ_CLS",
    "tagging": "TOKEN_CLS",
    "seq2seq": "SEQ_2_SEQ_LM",
}
"""`task.type` -> PEFT's `task_type`; others have none."""


@dataclass(frozen=True)
class Place:
    """Where the weight of one of their modules lies in a weight of ours: `rows` has, for each of
    theirs, the row of ours, or -1 for one that only theirs has.
    """

    module: str
    ours: str
    rows: list[int]

    @classmethod
    def of(cls, rule: Rule, ours: Tensor) -> Place:
        """By the rule, which is asked where it puts each row's number."""
        numbers = torch.arange(ours.shape[0]).view(-1, *[1] * (ours.dim() - 1)).expand(ours.shape)
        view = rule.view(numbers)
        first = view.reshape(view.shape[0], -1)
        turned = first.shape[1] > 1 and bool((first[:1] != first[:1, :1]).any())  # (in, out)
        rows = (first[0] if turned else first[:, 0]).tolist()
        if rule.order is not None:
            rows = [rows[i] for i in rule.order]
        return cls(rule.theirs.removesuffix(".weight"), rule.ours, [-1] * rule.skip + rows)


class Layout:
    """Where the weights of a Hugging Face model lie in a model of ours.

    Raises `SpecError` where no published family has this model.
    """

    def __init__(
        self, model: Module, options: AnyModelOptions, info: DatasetInfo, task: str
    ) -> None:
        family = express(options, info, task).family
        values = written_out(options)
        self.weights = {
            plain_name(name): p for name, p in model.named_parameters(remove_duplicate=False)
        }
        rules = list(family.rules(values, info, task))
        untied = {**values, "tie_embeddings": False}
        tied = self.weights.get("head.weight") is self.weights.get("embedding.weight")
        if tied and values.get("tie_embeddings"):
            rules += [r for r in family.rules(untied, info, task) if r.ours == "head.weight"]
        self.rules = rules

    def places(self) -> Iterator[Place]:
        """Every matrix of theirs."""
        for rule in self.rules:
            ours = self.weights[rule.ours]
            if rule.theirs.endswith(".weight") and ours.dim() > 1:
                yield Place.of(rule, ours)


def adapter_files(
    layout: Layout, model: Module, options: LowRankOptions, task: str, base: str
) -> dict[str, bytes]:
    """The files' contents by their names; `base` is what adapter_config.json calls the model.

    Raises `SpecError` for what PEFT's files cannot say.
    """
    from safetensors.torch import save

    own = by_every_name(model)
    kind, times = options.to_peft()
    tensors: dict[str, Tensor] = {}
    targets, ranks = [], {}
    for place in layout.places():
        adapter = own.get(place.ours)
        if adapter is None:
            continue
        found, rank = _theirs(place, adapter, layout.weights[place.ours])
        if not found:
            continue
        tensors |= found
        targets.append(place.module)
        if rank != times * options.rank:
            ranks[place.module] = rank
    reached = {place.ours for place in layout.places()}
    if left := sorted(own.keys() - reached):
        raise SpecError(f"adapter: PEFT has no module for {left[0]} of ours")
    saved = _whole(layout, tensors)
    alpha = options.alpha * times
    growth = {m: (r / (times * options.rank)) for m, r in ranks.items()}
    power = 0.5 if kind.get("use_rslora") else 1.0  # what keeps the scale
    config = {
        "peft_type": "LORA",
        "task_type": TASKS.get(task),
        "base_model_name_or_path": base,
        "r": times * options.rank,
        "lora_alpha": _plain(alpha),
        "lora_dropout": options.dropout,
        "target_modules": targets,
        "modules_to_save": saved or None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "rank_pattern": ranks,
        "alpha_pattern": {m: _plain(alpha * g**power) for m, g in growth.items()},
        **kind,
    }
    return {
        CONFIG: json.dumps(config, indent=2).encode() + b"\n",
        WEIGHTS: save({n: t.contiguous().clone() for n, t in tensors.items()}, {"format": "pt"}),
    }


def _plain(value: float) -> float:
    """PEFT counts alpha in whole numbers where it can."""
    return int(value) if value == int(value) else value


def by_every_name(model: Module) -> dict[str, Adapter]:
    """The adapters of a model by all names of their weights, those of tied weights too."""
    named = dict(model.named_modules(remove_duplicate=False))
    found = adapters(model)
    for path, module in named.items():
        for adapter in list(found.values()):
            if module is adapter:
                found[plain_name(f"{path.rpartition('.')[0]}.original")] = adapter
    return found


def _theirs(place: Place, adapter: Adapter, weight: Tensor) -> tuple[dict[str, Tensor], int]:
    """The tensors of one of their modules by name, and the rank; none where it is not adapted."""
    parts: list[tuple[Factors, dict[int, int]]] = []
    for name, factors in adapter.factors().items():
        if factors.role.stacked:
            raise SpecError(
                f"adapter: PEFT's files for stacked weights ({place.ours}) are not written"
            )
        first, count = adapter.rows[name]
        at = {i: row - first for i, row in enumerate(place.rows) if first <= row < first + count}
        if at:
            parts.append((factors, at))
    if not parts:
        return {}, 0
    narrow, wide = [], []
    for factors, at in parts:
        a, b = factors.portable()
        block = b.new_zeros(len(place.rows), b.shape[1])
        block[list(at)] = b[list(at.values())]
        narrow.append(a)
        wide.append(block)
    a, b = torch.cat(narrow), torch.cat(wide, 1)
    stem = PREFIX + place.module
    lengths = _magnitudes(place, parts, weight)
    return {**_named(stem, a, b, weight, adapter, place), **lengths}, len(a)


def _named(
    stem: str, a: Tensor, b: Tensor, weight: Tensor, adapter: Adapter, place: Place
) -> dict[str, Tensor]:
    """The factors as their module keeps them: of an embedding the other way round."""
    if adapter.lookup and not _is_output(place):
        return {f"{stem}.lora_embedding_A": b.T, f"{stem}.lora_embedding_B": a.T}
    kernel = weight.shape[2:]
    a = a.view(len(a), -1, *kernel)
    return {
        f"{stem}.lora_A.weight": a,
        f"{stem}.lora_B.weight": b.view(*b.shape, *[1] * len(kernel)),
    }


def _is_output(place: Place) -> bool:
    """Whether a tied weight is used by a linear layer in this module."""
    return place.ours == "head.weight"


def _magnitudes(
    place: Place, parts: list[tuple[Factors, dict[int, int]]], weight: Tensor
) -> dict[str, Tensor]:
    """DoRA's lengths; rows that are not adapted keep theirs."""
    lengths = [(f.magnitudes(), at) for f, at in parts]
    if lengths[0][0] is None:
        return {}
    if parts[0][0].lookup:
        if _is_output(place):
            raise SpecError(
                "adapter: dora on a tied embedding has lengths of columns, which PEFT's linear"
                " layers do not have; merge it, or leave the embedding out of adapter.targets"
            )
        found = lengths[0][0].detach()
    else:
        rows = [row for row in place.rows if row >= 0]
        found = weight.detach()[rows].flatten(1).norm(dim=1)
        for magnitude, at in lengths:
            assert magnitude is not None
            found[list(at)] = magnitude.detach()[list(at.values())]
        found = found.view(1, -1, *[1] * (weight.dim() - 2)) if weight.dim() > 2 else found
    return {f"{PREFIX}{place.module}.lora_magnitude_vector": found}


def _whole(layout: Layout, tensors: dict[str, Tensor]) -> list[str]:
    """The modules of theirs that are trained whole; adds their tensors."""
    trained = [
        r.theirs.rpartition(".")[0]
        for r in layout.rules
        if r.ours in layout.weights and layout.weights[r.ours].requires_grad
    ]
    modules = list(dict.fromkeys(trained))
    for rule in layout.rules:
        if rule.theirs.rpartition(".")[0] in modules:
            tensors[PREFIX + rule.theirs] = rule.save(layout.weights[rule.ours].detach())
    return modules
