"""Frozen weights in the precision of the products that read them: held once, and cast once."""

from __future__ import annotations

from collections.abc import Collection

from bigmodel_cli.adapters import AnyAdapterOptions, is_quantized, owners, quantize, with_roles
from bigmodel_cli.checkpoints.weights import below
from bigmodel_cli.console import say
from bigmodel_cli.device import dtype_of
from bigmodel_cli.errors import SpecError
from bigmodel_cli.lazy import nn
from bigmodel_cli.models import Model
from bigmodel_cli.roles import plain_name


def hold(
    model: Model, frozen: Collection[str], options: AnyAdapterOptions | None, precision: str
) -> frozenset[str]:
    """Hold the `frozen` weights as training reads them: in 4 bits where the adapter's options say
    so, and else in `precision`. Returns the names of what is not exact now.

    Raises `SpecError` where 4 bits would be all that is left of them.
    """
    held: frozenset[str] = frozenset()
    if options is not None and options.base is not None:
        check_held(options, started=bool(frozen))
        quantized = quantize(model)
        if not quantized.names:
            raise SpecError(
                f"adapter.base: {options.base} is for hidden matrices of linear layers, of which"
                " this model has none; leave it out"
            )
        say(f"adapter.base: {quantized.to_text()}")
        held = quantized.names
    return held | hold_in_precision(model, frozen, precision)


def check_held(options: AnyAdapterOptions, *, started: bool) -> None:
    """Raise `SpecError` where 4 bits are asked for in a run that no checkpoint `started`."""
    if options.base is not None and not started:
        raise SpecError(
            f"adapter.base: {options.base} is for weights of a checkpoint, which keeps the"
            " exact ones: bigmodel finetune --from CKPT SPEC"
        )


def hold_in_precision(model: Model, frozen: Collection[str], precision: str) -> frozenset[str]:
    """Round the `frozen` matrices that only products read to `precision`, as autocast does in each
    step; what is computed stays the same to the bit (DoRA's lengths are of the rounded weights).

    `frozen` are weights that no checkpoint of this run holds: their exact values are elsewhere.
    Routers, tables that are looked up, norms and biases stay as they are. Returns the names of what
    is rounded.
    """
    if precision == "fp32" or not frozen:
        return frozenset()
    held = []
    last, of_weights = model.last_layers(), owners(model)
    for weight, role in with_roles(model):
        places = of_weights[id(weight.tensor)]
        plain = all(isinstance(at.layer, nn.Linear | nn.modules.conv._ConvNd) for at in places)
        multiplied = role.matrix or below(plain_name(weight.name), last)
        if (
            weight.name in frozen
            and not is_quantized(weight.tensor)
            and weight.tensor.dim() > 1
            and multiplied
            and (plain or role.stacked)
        ):
            weight.tensor.data = weight.tensor.data.to(dtype_of(precision))
            held.append(weight.name)
    return frozenset(held)
