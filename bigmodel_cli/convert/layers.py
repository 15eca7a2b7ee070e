"""Types of a decoder's layers in config.json: with a window or without, and others."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bigmodel_cli.convert.config import Config
from bigmodel_cli.convert.family import Model
from bigmodel_cli.convert.rotary import FULL, SLIDING
from bigmodel_cli.errors import CheckpointError


def layer_types(
    config: Config, usual: Callable[[int], str], known: Sequence[str] = (FULL, SLIDING)
) -> list[str]:
    """The type of each layer; `usual` gives that of a layer where config.json does not.

    Raises `CheckpointError` for a type that is not built, or another number of them.
    """
    count = config.get("num_hidden_layers", int)
    given = config.maybe("layer_types", list)
    if given is None:
        return [usual(i) for i in range(count)]
    odd = [kind for kind in given if kind not in known]
    if odd or len(given) != count:
        what = f"{str(odd[0])[:60]!r} is not built" if odd else f"{len(given)} of {count} layers"
        raise CheckpointError(f"{config.file}: layer_types: {what}")
    return given


def window_of(config: Config, kind: str, window: int | None) -> int | None:
    """What a layer of this type sees. Raises `CheckpointError` where a window is missing."""
    if kind == SLIDING and window is None:
        raise CheckpointError(
            f"{config.file}: layer_types has {SLIDING}, and there is no sliding_window"
        )
    return window if kind == SLIDING else None


def types_of(model: Model) -> list[str]:
    """The inverse, of layers of attention."""
    windows = [block["mixer"]["window"] for block in model["blocks"]]
    return [FULL if window is None else SLIDING for window in windows]


def only_window(model: Model, unused: int | None = None) -> int | None:
    """The window of those layers that have one, or `unused` where none has.

    Of several windows it is the first, which the round trip notices.
    """
    windows = [block["mixer"]["window"] for block in model["blocks"]]
    return next((window for window in windows if window is not None), unused)
