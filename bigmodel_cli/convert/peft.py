"""Adapters in PEFT's files: adapter_config.json and adapter_model.safetensors, in both directions.

The names are those of the Hugging Face model, by the rules of its family. A projection that ours
holds fused is adapted part by part, so that rows of its B are B of theirs; where a matrix of theirs
is several of ours, their A are stacked, and B has a block for each. A tied embedding is
written for both of its modules.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bigmodel_cli.adapters.attaching import Adapter, adapters
from bigmodel_cli.adapters.base import Factors, LowRankOptions
from bigmodel_cli.convert import peft_biases
from bigmodel_cli.convert.peft_layout import CONFIG, EXPERT, PREFIX, WEIGHTS, Layout, Place
from bigmodel_cli.convert.peft_ranks import patterns, plain
from bigmodel_cli.convert.peft_stacks import check, written
from bigmodel_cli.convert.rules import Rule, exported
from bigmodel_cli.errors import SpecError
from bigmodel_cli.lazy import Module, Tensor, torch
from bigmodel_cli.roles import plain_name

TASKS = {
    "causal_lm": "CAUSAL_LM",
    "classification": "SEQ_CLS",
    "multilabel": "SEQ_CLS",
    "regression": "SEQ_CLS",
    "tagging": "TOKEN_CLS",
    "seq2seq": "SEQ_2_SEQ_LM",
}
"""`task.type` -> PEFT's `task_type`; others have none."""


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
    said: dict[str, tuple[int, float]] = {}
    power = 0.5 if kind.get("use_rslora") else 1.0
    reached: set[str] = set()
    for place in layout.places():
        parts = adapted_parts(own, place)
        if not parts:
            continue
        tensors |= _theirs(place, parts, layout.weights)
        whole = sum(len(part.factors.portable()[0]) for part in parts)
        said[place.module] = whole, parts[0].factors.scale * whole**power
        if layout.as_parameter(place.module):
            check(place.ours[0], (part.factors for part in parts), options)
        reached |= set(place.ours)
    of_stacks = written(layout, own, options, power)
    reached |= of_stacks.ours
    if left := sorted(own.keys() - reached):
        raise SpecError(f"adapter: PEFT has no module for {left[0]}; leave it out, or merge")
    modules = [module for module in said if not layout.as_parameter(module)]
    alone = {f"{module}.weight": both for module, both in said.items() if module not in modules}
    parameters = {**alone, **of_stacks.said}
    adapted = [*said, *of_stacks.said]
    tensors |= of_stacks.tensors
    saved = _whole(layout, tensors, adapted, TASKS.get(task))
    bias = peft_biases.write(layout, tensors, adapted, saved)
    rank, alpha = options.rank * times, options.alpha * times**power
    config = {
        "peft_type": "LORA",
        "task_type": TASKS.get(task) if layout.reads_texts else None,
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": plain(alpha),
        "lora_dropout": options.dropout,
        "target_modules": modules,
        "target_parameters": [*parameters] or None,
        "modules_to_save": [*saved] or None,
        "bias": bias,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        **patterns({m: said[m] for m in modules} | parameters, rank, alpha),
        **kind,
    }
    return {
        CONFIG: json.dumps(config, indent=2).encode() + b"\n",
        WEIGHTS: save({n: t.contiguous().clone() for n, t in tensors.items()}, {"format": "pt"}),
    }


def by_every_name(model: Module) -> dict[str, Adapter]:
    """The adapters of a model by all names of their weights, those of tied weights too."""
    named = dict(model.named_modules(remove_duplicate=False))
    found = adapters(model)
    for path, module in named.items():
        for adapter in list(found.values()):
            if module is adapter:
                found[plain_name(f"{path.rpartition('.')[0]}.original")] = adapter
    return found


@dataclass(frozen=True)
class Part:
    """The factors for some rows of a module of theirs: `at` has their number by that of theirs."""

    factors: Factors
    at: dict[int, int]
    ours: str
    lookup: bool

    @property
    def order(self) -> list[int]:
        """The rows of theirs in the order of ours."""
        return sorted(self.at, key=self.at.__getitem__)


def adapted_parts(own: Mapping[str, Adapter], place: Place) -> list[Part]:
    """The factors for rows of a module of theirs, in the order of ours."""
    parts = []
    for name in place.ours:
        for part, factors in own[name].factors().items() if name in own else ():
            at = place.of_part(name, *own[name].rows[part])
            if at:
                parts.append(Part(factors, at, name, own[name].lookup))
    return parts


def _theirs(
    place: Place, parts: Sequence[Part], weights: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The tensors of one of their modules by name."""
    narrow, wide = [], []
    for part in parts:
        a, b = part.factors.portable()
        block = b.new_zeros(len(place.rows), b.shape[1])
        block[list(part.at)] = b[list(part.at.values())]
        # a module of theirs has one scale
        narrow.append(a if part is parts[0] else a * (part.factors.scale / parts[0].factors.scale))
        wide.append(block)
    a, b = torch.cat(narrow), torch.cat(wide, 1)
    stem = PREFIX + place.module
    found = _magnitudes(place, parts, weights)
    if parts[0].lookup and not _is_output(place):  # of an embedding the other way round
        return {f"{stem}.lora_embedding_A": b.T, f"{stem}.lora_embedding_B": a.T, **found}
    kernel = weights[parts[0].ours].shape[2:]
    a, b = a.view(len(a), -1, *kernel), b.view(*b.shape, *[1] * len(kernel))
    return {f"{stem}.lora_A.weight": a, f"{stem}.lora_B.weight": b, **found}


def _is_output(place: Place) -> bool:
    """Whether a tied weight is used by a linear layer in this module."""
    return place.ours == ["head.weight"]


def _magnitudes(
    place: Place, parts: Sequence[Part], weights: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """DoRA's lengths; rows that are not adapted keep theirs."""
    lengths = parts[0].factors.magnitudes()
    if lengths is None:
        return {}
    if parts[0].lookup:
        if _is_output(place):
            raise SpecError(
                "adapter: dora on a tied embedding has lengths of columns, which PEFT's linear"
                " layers do not have; merge it, or leave the embedding out of adapter.targets"
            )
        return {f"{PREFIX}{place.module}.lora_magnitude_vector": lengths.detach()}
    own = {name: weights[name].detach().flatten(1).norm(dim=1) for name in place.ours}
    found = torch.stack([own[name][row] for name, row in place.rows])
    for part in parts:
        lengths = part.factors.magnitudes()
        assert lengths is not None, "parts of one adapter, or of several of one kind"
        found[list(part.at)] = lengths.detach()[list(part.at.values())]
    axes = weights[parts[0].ours].dim() - 2
    found = found.view(1, -1, *[1] * axes) if axes else found
    return {f"{PREFIX}{place.module}.lora_magnitude_vector": found}


def _whole(
    layout: Layout, tensors: dict[str, Tensor], targets: Sequence[str], task: str | None
) -> dict[str, list[Rule]]:
    """The modules of theirs that are trained whole, with their rules; adds their tensors.

    PEFT itself adds a classifier's head, with all that is in it. Raises `SpecError` where some of
    that is adapted.
    """
    heads = ("classifier", "score") if task in ("SEQ_CLS", "TOKEN_CLS") else ()
    modules: dict[str, list[Rule]] = {}
    for rule in layout.rules:
        first, module = rule.theirs.split(".")[0], rule.theirs.rpartition(".")[0]
        modules.setdefault(first if first in heads else module, []).append(rule)
    found = {
        module: rules
        for module, rules in modules.items()
        if module in heads
        or (
            any(layout.is_trained(rule.ours) for rule in rules)
            and not peft_biases.alone(layout, rules)
        )
    }
    for module in found:
        if one := next((r for r in modules[module] if EXPERT.fullmatch(r.theirs)), None):
            raise SpecError(
                f"adapter.modules_to_save: {one.ours}: PEFT saves no expert of this family whole;"
                " adapt it (adapter.targets), or merge"
            )
        if any(f"{target}.".startswith(f"{module}.") for target in targets):
            raise SpecError(
                f"adapter: {module} of PEFT is both adapted and trained whole; leave it out of"
                " adapter.targets"
            )
        for name, tensor in exported(modules[module], layout.weights):
            tensors[PREFIX + name] = tensor.detach()
    return found
