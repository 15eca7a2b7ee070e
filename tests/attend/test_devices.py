"""A look at tensors that are not in a CPU's memory: nothing of two devices meets in an operation.

The other device is pretended: its tensors are computed here, and refuse others as CUDA's do.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from bigmodel_cli.attend.layers import Wanted, column_of, row_of, tiled_layer, weights_of
from bigmodel_cli.attend.look import Side
from bigmodel_cli.attend.rollout import rolled
from bigmodel_cli.attend.stream import Stream
from bigmodel_cli.attend.tiles import Dense, Tiled
from bigmodel_cli.parts.kernels import AttentionSpec, attended
from bigmodel_cli.parts.watched import AttentionCall

T = 43
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "window both ways": {"causal": False, "window": 5},
    "grouped": {"groups": 2},
    "segments and padding": {"segments": True, "mask": True},
    "bias and softcap": {"bias": True, "softcap": 2.0},
    "sinks": {"sinks": True},
    "differential": {"minus": 0.3},
}


class Away(Tensor):
    """A tensor of the other device; `held` is where it is computed."""

    held: Tensor

    @staticmethod
    def __new__(cls, real: Tensor) -> Away:
        made: Away = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, real.shape, strides=real.stride(), dtype=real.dtype, device="meta"
        )
        made.held = real
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise AssertionError(f"{function}: outside the device")


class OtherDevice(TorchDispatchMode):
    """Computes what is asked of tensors away, and refuses what CUDA would."""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        away = [x for x in given if isinstance(x, Away)]
        here = [x for x in given if not isinstance(x, Away) and x.dim()]
        name = function.overloadpacket.__name__
        moving = name in ("copy_", "_to_copy")
        if name in ("index", "index_put_") and isinstance(args[0], Away):
            here = [x for x in here if x.is_floating_point()]  # places may be anywhere
        assert moving or not (away and here), f"{function}: tensors of two devices"
        device = kwargs.get("device")
        target = bool(away) if device is None else device.type == "meta"
        if device is not None:
            kwargs = {**kwargs, "device": torch.device("cpu")}
        real = tree_map(lambda x: x.held if isinstance(x, Away) else x, (args, kwargs))
        found = function(*real[0], **real[1])
        if name.endswith("_") and not name.endswith("__"):
            return args[0]
        if not target:
            return found
        return tree_map(lambda x: Away(x) if isinstance(x, Tensor) else x, found)


@pytest.fixture
def device() -> Iterator[None]:
    with torch.no_grad(), OtherDevice():
        yield


def calls(name: str) -> tuple[AttentionCall, AttentionCall]:
    """The same call here and away."""
    case, generator = CASES[name], torch.Generator().manual_seed(2)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    q = normal(1, 4, T, 6)
    k, v = normal(1, case.get("groups", 4), T, 6), normal(1, case.get("groups", 4), T, 6)
    spec = AttentionSpec(case.get("causal", True), case.get("window"), case.get("softcap"))
    masks: dict[str, Tensor] = {}
    if "segments" in case:
        masks["segments"] = (torch.arange(T) // 15)[None]
    if "mask" in case:
        masks["key_mask"] = (torch.arange(T) % 5 > 0)[None]
    if "bias" in case:
        masks["bias"] = normal(4, T, T)
    if "sinks" in case:
        masks["sinks"] = normal(4)
    y, sums = attended(q, k, v, spec, **masks)
    minus = torch.tensor(case["minus"]) if "minus" in case else None
    tensors = {"q": q, "k": k, "v": v, "output": y, "log_sums": sums, "minus": minus, **masks}
    there = {key: None if x is None else Away(x) for key, x in tensors.items()}
    return AttentionCall(spec=spec, **tensors), AttentionCall(spec=spec, **there)  # type: ignore[arg-type]


def shown(tiled: Tiled, rows: int | None) -> list[Tensor | None]:
    """All that a look takes of a layer; in a CPU's memory."""
    side = Side("text", [str(i % 9) for i in range(T)], [i % 9 for i in range(T)])
    sizes = torch.linspace(0.5, 1, T).expand(tiled.heads, T)
    wanted = Wanted(rows=rows, top=3, resolution=11, key=4)
    layer, _ = tiled_layer("layer", "self", tiled, (side, side), wanted, sizes)
    found: list[Tensor | None] = [layer.blocks.most, layer.blocks.mean, layer.received, layer.read]
    found += [layer.moved, *(layer.top or ()), layer.readers, torch.tensor(layer.difference)]
    figures = layer.statistics
    found += [figures.entropy, figures.sink, figures.previous, figures.distance, figures.induction]
    found += [figures.column, figures.moved, *figures.half.values()]
    found += [row_of(tiled, 7), column_of(tiled, 3), weights_of(tiled, [1, 0])]
    found.append(rolled([tiled], torch.full((T,), 1 / T, dtype=torch.float64)))
    return found


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("rows", [None, 20], ids=["all queries", "some queries"])
@pytest.mark.parametrize("name", CASES)
def test_attention_away_is_looked_at_as_here(name: str, rows: int | None) -> None:
    here, away = calls(name)
    stream = Stream(away)
    for one, other in zip(shown(Stream(here), rows), shown(stream, rows), strict=True):
        assert not isinstance(other, Away)
        torch.testing.assert_close(other, one, equal_nan=True)
    kept = stream.kept([0, 2])
    assert (kept is None) == (name == "differential")
    if kept is not None:
        for value in vars(kept).values():
            assert not isinstance(value, Away)


@pytest.mark.usefixtures("device")
def test_signed_weights_away_are_looked_at_as_here() -> None:
    weights, values = torch.randn(3, T, T).tril(), torch.randn(3, T, 5)
    given = weights, values, weights @ values
    here, away = Dense(*given, True, True), Dense(*map(Away, given), True, True)
    for one, other in zip(shown(here, None), shown(away, None), strict=True):
        assert not isinstance(other, Away)
        torch.testing.assert_close(other, one, equal_nan=True)


@pytest.mark.usefixtures("device")
def test_the_pretended_device_refuses_what_cuda_does() -> None:
    here, away = torch.ones(3), Away(torch.ones(3))
    with pytest.raises(AssertionError, match="two devices"):
        away + here
    assert float((away * 2).sum()) == 6
    assert not isinstance((away + torch.tensor(1.0)).cpu(), Away)
