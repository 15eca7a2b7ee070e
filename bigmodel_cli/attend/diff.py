"""`--diff`: the same input through two checkpoints of one structure, head by head."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bigmodel_cli.attend.apart import Apart, LayerApart
from bigmodel_cli.attend.blocks import Maps
from bigmodel_cli.attend.capture import watch, watch_mixing
from bigmodel_cli.attend.judging import judge_of, judged, read_alone
from bigmodel_cli.attend.matching import matched
from bigmodel_cli.attend.mixing import Mixed
from bigmodel_cli.attend.pairs import forced
from bigmodel_cli.attend.runs import titled
from bigmodel_cli.attend.stream import Stream
from bigmodel_cli.attend.tiles import ROWS, Queries, Tiled, spans
from bigmodel_cli.checkpoints.weights import below
from bigmodel_cli.console import one_line
from bigmodel_cli.data import input_of
from bigmodel_cli.device import autocast, full_precision
from bigmodel_cli.errors import SpecError
from bigmodel_cli.lazy import Module, Tensor, torch
from bigmodel_cli.loaded import Loaded
from bigmodel_cli.models import Model
from bigmodel_cli.parts.contract import Attends
from bigmodel_cli.parts.mixing import MixingCall
from bigmodel_cli.parts.watched import AttentionCall
from bigmodel_cli.roles import PARAMETRIZED, plain_name
from bigmodel_cli.tasks import Batch


@dataclass(frozen=True)
class DiffOptions:
    """`resolution` is the most blocks to a side of the difference maps; 0: none are made.

    `target` is what an encoder-decoder is to write; left out: what the first writes.
    """

    resolution: int = 0
    target: str | None = None


def diff(
    first: Loaded, second: Loaded, given: str, options: DiffOptions, place: str = "the input"
) -> Apart:
    """How far the heads of two models are apart on an input, which messages call `place`.

    Raises `DataError` for an input that cannot be read, and `SpecError` where the two are not of
    one structure, or read the input otherwise.
    """
    check_same(first, second)
    ours, theirs = (read_alone(loaded, given, place) for loaded in (first, second))
    if ours.keys() != theirs.keys() or not all(torch.equal(ours[n], theirs[n]) for n in ours):
        raise SpecError(
            "--diff: the two read the input otherwise: they have other tokenizers, or other sizes"
            " of images or sounds"
        )
    if first.model.is_encoder_decoder:
        task = judge_of(first)
        ours = judged(first, task, [given], options.target)[0].batch
    kind = input_of(first.info)
    title = one_line(Path(given).name) if kind.in_files else titled(given)
    return replace(compare(first, second, ours, options), title=title)


def compare(first: Loaded, second: Loaded, batch: Batch, options: DiffOptions) -> Apart:
    """How far the heads of two models are apart on an input, a batch of one row.

    The queries, keys and values of the first are kept, layer by layer; the second is compared with
    them as it runs. Raises `SpecError` where their heads differ in number or size.
    """
    calls: list[_Call] = []
    kept: dict[str, Tensor] = {}
    with _watching(first.model, calls.append), _outputs(first.model, kept):
        _run(first, batch)
    layers: list[LayerApart] = []
    others: dict[str, Tensor] = {}

    def compare(call: _Call) -> None:
        if len(layers) == len(calls) or calls[len(layers)].name != call.name:
            raise SpecError(
                f"--diff: the two run otherwise: {call.name} attends in the second alone"
            )
        before = calls[len(layers)]
        calls[len(layers)] = call  # the first's is no longer needed
        with full_precision(first.device):  # the second runs in its own, which autocast rounds to
            layers.append(_layer(before, call, options))

    with _watching(second.model, compare), _outputs(second.model, others):
        _run(second, batch)
    if len(layers) < len(calls):
        raise SpecError("--diff: the two run otherwise: the first attends more often")
    parts = {name: _change(y, others[name]) for name, y in kept.items() if name in others}
    names = first.name, second.name
    if names[0] == names[1]:  # of one run
        names = f"{first.name} {first.path.name}", f"{second.name} {second.path.name}"
    return Apart(*names, layers, parts, (str(first.path), str(second.path)))


def check_same(first: Loaded, second: Loaded) -> None:
    """Raise `SpecError` where the two, up to their last layers, have weights of other names or
    shapes.
    """
    ours, theirs = (_body(loaded.model) for loaded in (first, second))
    for name in dict.fromkeys([*ours, *theirs]):
        if name not in ours or name not in theirs:
            side = "first" if name in ours else "second"
            raise SpecError(
                f"--diff: {name} is in the {side} alone: the two are not of one structure"
            )
        if ours[name].shape != theirs[name].shape:
            raise SpecError(
                f"--diff: {name} is {list(ours[name].shape)} in the first and"
                f" {list(theirs[name].shape)} in the second: the two are not of one structure"
            )


def _body(model: Model) -> dict[str, Tensor]:
    """The weights before the layers that a new task draws anew, without those of adapters."""
    last = model.output_layers()
    own = {plain_name(name): x for name, x in model.state_dict().items()}
    return {
        name: x for name, x in own.items() if PARAMETRIZED not in name and not below(name, last)
    }


def _run(loaded: Loaded, batch: Batch) -> None:
    """One pass, of an encoder-decoder over all of the target but its last token."""
    if loaded.model.is_encoder_decoder:
        forced(loaded, {name: x.to(loaded.device) for name, x in batch.items()})
        return
    with torch.inference_mode(), autocast(loaded.device, loaded.precision):
        loaded.model(*loaded.model.arguments({n: t.to(loaded.device) for n, t in batch.items()}))


@contextmanager
def _outputs(model: Any, kept: dict[str, Tensor]) -> Iterator[None]:
    """Inside, what each part of the model's blocks gives is kept by name."""

    def keep(name: str) -> Any:
        def hook(module: Module, inputs: Any, output: Any) -> None:
            if torch.is_tensor(output):
                kept[name] = output

        return hook

    hooks = [part.register_forward_hook(keep(name)) for name, part in model.parts().items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@dataclass(frozen=True)
class _Call:
    """A call of attention, or of a mixer in its place: how many heads, queries and keys, its
    weights, and what the heads gave (H, T, E), as is asked for.
    """

    name: str
    sizes: tuple[int, int, int]
    weights: Callable[[], Tiled]
    outputs: Callable[[Tiled], Tensor]


@contextmanager
def _watching(model: Module, each: Callable[[_Call], None]) -> Iterator[None]:
    """Inside, `each` is given every call, in the order by which a look numbers layers."""

    def attends(name: str, part: Attends, call: AttentionCall) -> None:
        heads, queries = call.q.shape[1:3]
        each(_Call(name, (heads, queries, call.keys), lambda: Stream(call), _all_outputs))

    def mixes(name: str, call: MixingCall) -> None:
        heads, queries = call.output.shape[1:3]
        own = call.output[0].detach()
        each(_Call(name, (heads, queries, call.keys), lambda: Mixed(call.matrix()), lambda _: own))

    with watch(model, attends), watch_mixing(model, mixes):
        yield


def _all_outputs(tiled: Tiled) -> Tensor:
    return tiled.outputs(slice(0, tiled.heads), torch.arange(tiled.queries))


def _layer(one: _Call, two: _Call, options: DiffOptions) -> LayerApart:
    """The heads of one call of each."""
    if one.sizes != two.sizes:
        raise SpecError(
            f"--diff: {one.name}: {_said(one.sizes)} and {_said(two.sizes)}: other heads or"
            " positions"
        )
    first, second = one.weights(), two.weights()
    pairs = zip(one.outputs(first), two.outputs(second), strict=True)
    outputs = torch.stack([_change(a, b) for a, b in pairs])
    sums = _Sums(first, second, options.resolution)
    bits = None if first.signed else (sums.nats / (first.queries * math.log(2))).float()
    partners = None
    if not first.signed and first.heads > 1:
        partners, _ = matched(first, second)
    return LayerApart(one.name, bits, outputs, partners, sums.maps.blocks())


def _said(sizes: tuple[int, int, int]) -> str:
    return f"{sizes[0]} heads x {sizes[1]} queries x {sizes[2]} keys"


def _change(one: Tensor, two: Tensor) -> Tensor:
    """()   the length of the difference, as a part of the mean of both; 0 for equal ones."""
    a, b = one.detach().double().cpu(), two.detach().double().cpu()
    if a.shape != b.shape:
        return torch.tensor(math.nan)
    size = (a.norm() + b.norm()) / 2
    change: Tensor = ((a - b).norm() / size if bool(size) else size).float()
    return change


class _Sums:
    """Summed over queries: (H,) nats of divergence, and maps of the second's weights minus the
    first's.
    """

    def __init__(self, first: Tiled, second: Tiled, resolution: int) -> None:
        self.first, self.second = first, second
        self.nats = torch.zeros(first.heads, dtype=torch.float64)
        self.maps = Maps((first.heads, first.queries, first.keys), resolution, signed=True)
        for start in range(0, first.queries, ROWS):
            self._rows(torch.arange(start, min(start + ROWS, first.queries)))
        self.nats.clamp_(min=0)

    def _rows(self, rows: Tensor) -> None:
        one, two = self.first.of(rows), self.second.of(rows)
        both = Queries(one.rows, one.places, min(one.start, two.start), max(one.stop, two.stop))
        for keys in spans(both, self.maps.columns):
            seen, other = self.first.seen(one, keys), self.second.seen(two, keys)
            either = None if seen is None or other is None else seen | other
            if either is not None and not bool(either.any()):
                continue
            self.maps.count(rows, keys, either)
            for heads in self.first.chunks(self.first.heads, 2 * len(rows), keys):
                p = self.first.tile(one, heads, keys, seen).weights
                q = self.second.tile(two, heads, keys, other).weights
                if not self.first.signed:
                    self.nats[heads] += _nats(p, q)
                self.maps.add(rows, heads, keys, q - p)
        if self.first.signed:
            return
        outside = [tiled.outside(rows) for tiled in (self.first, self.second)]
        if any(each is not None for each in outside):
            p, q = (
                torch.zeros(self.first.heads, len(rows)) if each is None else each.exp().cpu()
                for each in outside
            )
            self.nats += _nats(p[..., None], q[..., None])


def _nats(p: Tensor, q: Tensor) -> Tensor:
    """(h, R, C) twice -> (h,)   a tile's part of the Jensen-Shannon divergences."""
    middle = (p + q) / 2
    each = (torch.special.xlogy(p, p) + torch.special.xlogy(q, q)) / 2
    nats: Tensor = (each - torch.special.xlogy(middle, middle)).double().sum((1, 2)).cpu()
    return nats
