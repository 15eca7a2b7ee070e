"""Which frozen matrices of an adapted model are held in 4 bits."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from bigmodel_cli.adapters.base import AnyAdapterOptions
from bigmodel_cli.adapters.four_bits import (
    BLOCK,
    bytes_for,
    bytes_of,
    in_four_bits,
    is_quantized,
    largest,
    library,
    on_device,
)
from bigmodel_cli.adapters.owners import Owner, owners, with_roles
from bigmodel_cli.errors import CheckpointError
from bigmodel_cli.lazy import Module, Tensor, nn, torch
from bigmodel_cli.names import matches
from bigmodel_cli.roles import plain_name


@dataclass(frozen=True)
class Quantized:
    """The names of the matrices that are held in 4 bits, their number of weights, and the bytes
    that they take; `whole`: names of frozen matrices that are not.
    """

    names: frozenset[str]
    numbers: int
    bytes: int
    whole: list[str]

    def to_text(self) -> str:
        """For people, in one line."""
        more = (
            f"; {len(self.whole)} more as they were (experts, convolutions, sizes that are not a"
            f" multiple of {BLOCK}, zeros): {', '.join(map(plain_name, self.whole[:3]))}"
            if self.whole
            else ""
        )
        return (
            f"{len(self.names)} frozen matrices of {self.numbers:,} numbers are held in"
            f" {self.bytes:,} bytes ({8 * self.bytes / max(1, self.numbers):.2f} bits each){more}"
        )


def quantize(model: Module) -> Quantized:
    """Hold the frozen hidden matrices of the model's linear layers in 4 bits.

    Output layers, embeddings, routers, norms and stacked experts stay as they are. Raises
    `CheckpointError` where numbers are not finite, and `MissingPackage` without torchao.
    """
    held, whole, numbers, size = set(), [], 0, 0
    of_weights = owners(model)
    for weight, role in with_roles(model):
        tensor = weight.tensor
        if tensor.requires_grad or not role.matrix or tensor.dim() < 2:
            continue
        places = of_weights[id(tensor)]
        if not is_quantized(tensor):
            if not _fits(tensor, places) or _has_empty_block(tensor, weight.name):
                whole.append(weight.name)
                continue
            _put(places, in_four_bits(tensor.detach()))
        numbers += tensor.numel()
        size += bytes_of(getattr(places[0].module, places[0].name))
        held.add(weight.name)
    return Quantized(frozenset(held), numbers, size, whole)


def four_bit_names(model: Module) -> frozenset[str]:
    """All names of the matrices that the model holds in 4 bits."""
    named = model.named_parameters(remove_duplicate=False)
    return frozenset(name for name, p in named if is_quantized(p))


def saved_by_four_bits(model: Module) -> int:
    """The bytes that `quantize` will save of a model without storage; zeros are not known of."""
    found, of_weights = 0, owners(model)
    for weight, role in with_roles(model):
        tensor = weight.tensor
        matrix = role.matrix and not tensor.requires_grad
        if matrix and _fits(tensor, of_weights[id(tensor)]):
            found += tensor.numel() * tensor.element_size() - bytes_for(tensor.numel())
    return found


def _fits(tensor: Tensor, places: Sequence[Owner]) -> bool:
    """Whether it is a matrix of linear layers alone, of whole blocks."""
    linear = tensor.dim() == 2 and all(isinstance(at.layer, nn.Linear) for at in places)
    return linear and not tensor.numel() % BLOCK


def _put(places: Sequence[Owner], tensor: Tensor) -> None:
    """Give a frozen weight another tensor."""
    frozen = nn.Parameter(tensor, False)
    for at in places:
        at.module._parameters[at.name] = frozen


def _has_empty_block(tensor: Tensor, name: str) -> bool:
    """Whether all numbers of a block are 0: it has no scale."""
    most = largest(tensor)
    if not bool(most.isfinite().all()):
        raise CheckpointError(
            f"adapter.base: {name} has numbers that are not finite: start from another checkpoint"
        )
    return bool((most == 0).any())


class Hollow:
    """A model before its weights are loaded, whose frozen matrices become 4 bits one by one.

    Until then they are on the meta device, so that no more than one of them is in memory whole.
    `measured` has what the adapter's first values need of the exact matrices, by name.
    """

    def __init__(
        self, model: Module, adapter: AnyAdapterOptions | None, drawn: Collection[str] = ()
    ) -> None:
        """With an adapter whose base is not of 4 bits, or without any, the model stays as it is.

        `drawn`: names of weights that will not be loaded. Raises `MissingPackage`.
        """
        self.measured: dict[str, Tensor] = {}
        self._places: dict[str, list[Owner]] = {}
        if adapter is None or adapter.base is None:
            return
        library()
        options = adapter.low_rank()
        self._measure = options.measured
        named = dict(model.named_parameters(remove_duplicate=False))
        trained = {
            id(p)
            for name, p in named.items()
            if any(matches(plain_name(name), pattern) for pattern in options.modules_to_save)
        }
        of_weights = owners(model)
        for weight, role in with_roles(model):
            tensor, places = weight.tensor, of_weights[id(weight.tensor)]
            names = [name for name, p in named.items() if p is tensor]
            kept = id(tensor) in trained or any(name in drawn for name in names)
            if kept or not role.matrix or not _fits(tensor, places):
                continue
            _put(places, tensor.detach().to("meta"))
            self._places |= dict.fromkeys(names, places)

    def keep(self, name: str, exact: Tensor) -> None:
        """Hold a matrix that has been read; where 4 bits cannot, as it is."""
        places = self._places[name]
        held = places[0].module._parameters[places[0].name]
        if held is None or not held.is_meta:  # a tied one comes once for each name
            return
        if (found := self._measure(exact)) is not None:
            self.measured[plain_name(name)] = found
        most = largest(exact)
        fits = bool((most.isfinite() & (most > 0)).all())
        _put(places, in_four_bits(exact) if fits else exact)


def moved(model: Module, device: torch.device) -> Module:
    """The model on a device, with what it holds in 4 bits."""
    of_weights = owners(model)
    for p in list(model.parameters()):
        if is_quantized(p) and p.device != device:
            _put(of_weights[id(p)], on_device(p, device))
    return model.to(device)
