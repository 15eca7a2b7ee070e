"""Where the matrices of a Hugging Face model, which PEFT's files name, lie in a model of ours."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from bigmodel_cli.adapters.owners import with_roles
from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.convert.exporting import express
from bigmodel_cli.convert.family import head_of, written_out
from bigmodel_cli.convert.rules import Rule
from bigmodel_cli.lazy import Module, Tensor, torch
from bigmodel_cli.models.base import AnyModelOptions
from bigmodel_cli.roles import plain_name

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
EXPERT = re.compile(r"(.*\.experts\.)\d+\.(\w+)\.weight")
"""An expert's matrix in the files of families that have one of each."""
RENAMED = (
    (r"\.block_sparse_moe\.(gate|experts\.\d+)\.", r".mlp.\1."),  # Mixtral
    (r"(\.block_sparse_moe\.)input_linear\.weight", r"\1experts.gate_up_proj"),  # Granite
    (r"(\.block_sparse_moe\.)output_linear\.weight", r"\1experts.down_proj"),
    (r"(\.block_sparse_moe\.router\.)layer\.", r"\1"),
)
"""What transformers (5) calls experts and routers in memory, by their names in files."""
ROUTERS = (".mlp.gate", ".mlp.router", ".block_sparse_moe.router")
"""Ends of modules that are no linear layers for PEFT, though their weights are matrices."""
TAKEN_FOR_EXPERTS = ("qwen3_moe", "deepseek_v3")
"""Families of which PEFT takes modules called so for stacks of experts."""
OF_EXPERTS = (".gate_proj", ".up_proj", ".down_proj")


@dataclass(frozen=True)
class Place:
    """Where the rows of a matrix of theirs lie in ours: for each the weight's name and its row.

    The name is "" for a row that only theirs has.
    """

    module: str
    rows: list[tuple[str, int]]

    @property
    def ours(self) -> list[str]:
        """The weights of ours, in the order of theirs."""
        return list(dict.fromkeys(name for name, _ in self.rows if name))

    def of_part(self, name: str, first: int, count: int) -> dict[int, int]:
        """For each row that lies in these rows of a weight, its number among them."""
        last = first + count
        return {
            i: row - first
            for i, (own, row) in enumerate(self.rows)
            if own == name and first <= row < last
        }


def place_of(module: str, rules: Sequence[Rule], weights: Mapping[str, Tensor]) -> Place:
    """By its rules, which are asked where they put each row's number."""
    rows: list[tuple[str, int]] = []
    for rule in rules:
        ours = weights[rule.ours]
        numbers = torch.arange(ours.shape[0]).view(-1, *[1] * (ours.dim() - 1)).expand(ours.shape)
        try:
            view = rule.view(numbers)
        except RuntimeError:  # one with other axes, of numbers that must lie in memory
            view = rule.view(numbers.contiguous())
        flat = view.reshape(view.shape[0], -1)
        turned = bool((flat[:1] != flat[:1, :1]).any())  # (in, out)
        own = (flat[0] if turned else flat[:, 0]).tolist()
        own = own if rule.order is None else [own[i] for i in rule.order]
        rows = [*rows, *[("", 0)] * (rule.skip - len(rows)), *((rule.ours, row) for row in own)]
    return Place(module, rows)


def in_memory(name: str) -> str:
    """A name of their files as it is in memory."""
    for pattern, text in RENAMED:
        name = re.sub(pattern, text, name)
    return name


class Layout:
    """Where the weights of a Hugging Face model lie in a model of ours.

    Raises `SpecError` where no published family has this model.
    """

    def __init__(
        self, model: Module, options: AnyModelOptions, info: DatasetInfo, task: str
    ) -> None:
        family, task = express(options, info, task).family, head_of(task)
        self.reads_texts = info.frame_width is None  # PEFT's task types name input_ids
        values = written_out(options)
        self.weights = {
            plain_name(name): p for name, p in model.named_parameters(remove_duplicate=False)
        }
        rules = list(family.rules(values, info, task))
        untied = {**values, "tie_embeddings": False}
        tied = self.weights.get("head.weight") is self.weights.get("embedding.weight")
        if tied and values.get("tie_embeddings"):
            rules += [r for r in family.rules(untied, info, task) if r.ours == "head.weight"]
        self.rules = [replace(rule, theirs=in_memory(rule.theirs)) for rule in rules]
        self.reread = any(kind in TAKEN_FOR_EXPERTS for kind in family.model_types)
        self.stacked = {plain_name(w.name) for w, role in with_roles(model) if role.stacked}

    def as_parameter(self, module: str) -> bool:
        """Whether PEFT is to be told of a module's matrix by the name of the parameter."""
        return module.endswith(ROUTERS) or (self.reread and module.endswith(OF_EXPERTS))

    def is_trained(self, name: str) -> bool:
        """Whether a weight of ours is trained whole."""
        return name in self.weights and self.weights[name].requires_grad

    def places(self) -> Iterator[Place]:
        """Every matrix of theirs, but for stacks of them."""
        shared: dict[str, list[Rule]] = {}
        for rule in self.rules:
            ours = self.weights.get(rule.ours)  # None: a buffer, such as a table of sines
            matrix = ours is not None and ours.dim() > 1 and rule.ours not in self.stacked
            if rule.theirs.endswith(".weight") and matrix:
                shared.setdefault(rule.theirs.removesuffix(".weight"), []).append(rule)
        for module, rules in shared.items():
            if all(rule.half is None for rule in rules):
                yield place_of(module, rules, self.weights)
