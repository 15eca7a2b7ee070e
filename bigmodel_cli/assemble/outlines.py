"""A model's weights and their bytes, without storage: it is built on the meta device, with long
stacks of equal blocks shortened.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from bigmodel_cli.adapters import saved_by_four_bits
from bigmodel_cli.assemble.building import build_on_meta
from bigmodel_cli.assemble.sizes import state_bytes
from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.console import quantity
from bigmodel_cli.device import total_memory
from bigmodel_cli.errors import SpecError, Unfit
from bigmodel_cli.frozen import freeze
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.models import Model
from bigmodel_cli.models.stacks import Stack, in_whole, shortened
from bigmodel_cli.roles import Weight, named_weights
from bigmodel_cli.spec import Spec


@dataclass(frozen=True)
class Outline:
    """A model on the meta device, frozen as the spec says, with long stacks of equal blocks
    shortened.

    `short` is the model with shortened stacks, `more` are those with one more block of each long
    stack; `weights` are the whole model's, and `saved` bytes of them are not needed, since they are
    held in 4 bits. Nothing is shortened where weights are frozen by the
    names of their blocks, or adapted.
    """

    stacks: list[Stack]
    short: Model
    more: list[Model]
    weights: list[Weight]
    saved: int = 0

    @property
    def measured(self) -> list[Model]:
        """The models that are run to measure the cost of the whole."""
        return [self.short, *self.more]

    @property
    def tensors(self) -> list[Tensor]:
        """The weights themselves, without storage; equal blocks have the same ones."""
        return [weight.tensor for weight in self.weights]


def outline(spec: Spec, info: DatasetInfo) -> Outline:
    """The model without storage.

    Raises `SpecError` where it does not fit the data, or one of its tensors any machine.
    """
    short, stacks, more = shortened(spec.model)
    cut = bool(more) and not spec.init.freeze and spec.adapter is None
    try:
        built = [
            build_on_meta(spec.model_copy(update={"model": options}), info)
            for options in ([short, *more] if cut else [spec.model])
        ]
    except SpecError:
        build_on_meta(spec, info)  # whose blocks have the numbers that the file gives them
        raise
    if cut and any(name.startswith(f"{s.name}.") for s in stacks for name in aliases(built[0])):
        built, cut = [build_on_meta(spec, info)], False  # blocks that share weights
    for model in built if spec.adapter is None else ():
        freeze(model, spec.init)
    weights = named_weights(built[0])
    if not cut:
        four = spec.adapter is not None and spec.adapter.base is not None
        return Outline([], built[0], [], weights, saved_by_four_bits(built[0]) if four else 0)
    whole = in_whole(
        stacks, weights, lambda weight: weight.name, lambda weight, name: replace(weight, name=name)
    )
    return Outline(stacks, built[0], built[1:], whole)


def aliases(model: Model) -> set[str]:
    """Further names of weights that have one already."""
    every = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return every - {name for name, _ in model.named_parameters()}


def check_memory(
    spec: Spec, info: DatasetInfo, device: torch.device, room: int | None = None
) -> Outline:
    """The model's outline.

    Raises `Unfit` for a model that cannot fit the device, or the `room` in bytes that several
    processes have together, which divide it.
    """
    outlined = outline(spec, info)
    needed = state_bytes(spec, outlined.weights, outlined.saved)
    available = total_memory(device) if room is None else room
    if needed > available:
        count = sum(p.numel() for p in outlined.tensors)
        where = f"{device} has" if room is None else "the processes that divide them have"
        raise Unfit(
            f"model: {count:,} parameters need {quantity(needed, 'B')} for weights, gradients and"
            f" optimizer, and {where} {quantity(available, 'B')}; make the model smaller"
        )
    return outlined
