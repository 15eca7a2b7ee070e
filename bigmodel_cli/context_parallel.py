"""Processes that have some positions of each sequence: who they are, and which networks allow it.

How positions are divided is parts/row_share.py; gradients of the weights, losses and counts are
sums over these processes, as they are over those with other samples.
"""

from __future__ import annotations

from bigmodel_cli.distributed import Neighbours
from bigmodel_cli.lazy import Module, Tensor, nn, torch
from bigmodel_cli.parts.contract import fault_in_rows
from bigmodel_cli.products import kinds
from bigmodel_cli.shares import ALONE, Team
from bigmodel_cli.tensor_parallel import Processes


class Context(Processes):
    """The processes that take the same samples."""

    def stacked(self, x: Tensor) -> Tensor:
        return self.group.stacked(x)

    def share_of_sum(self, x: Tensor) -> Tensor:
        return self.group.share_of_sum(x)


def context_of(size: int, every: int) -> Team:
    """So many processes, with `every` that divide parts between one and the next; all call it."""
    return ALONE if size == 1 else Context(Neighbours.of(size, every))


def row_faults(model: Module) -> list[str]:
    """Why positions of a row of this network cannot be divided, where they cannot: a sentence for
    each kind of module, with the path of the first one.

    A module's own class says it: a subclass may compute otherwise. Of what does not say it nothing
    inside is looked at.
    """
    by_position = *kinds(), nn.Embedding, nn.LayerNorm, nn.Identity, nn.ModuleList
    found: dict[str, str] = {}
    hidden: list[str] = []
    for path, module in model.named_modules():
        makes_weights = "parametrizations" in path.split(".")  # an adapter's
        if makes_weights or any(path.startswith(prefix) for prefix in hidden):
            continue
        where = f"model.{path}".removesuffix(".")
        kind = torch.nn.utils.parametrize.type_before_parametrizations(module)
        fault = "" if kind in by_position else fault_in_rows(module, kind)
        if fault is None:
            hidden.append(f"{path}." if path else "")
            name = kind.__name__
            why = "mixes positions, or does not say how it would compute some of them alone"
            found.setdefault(name, f"{where}: {name} {why} (context_fault)")
        elif fault:
            found.setdefault(fault, f"{where}.{fault}")
    return list(found.values())
