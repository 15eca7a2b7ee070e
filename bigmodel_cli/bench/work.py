"""What a step asks of the machine, operation by operation, against the machine's peaks."""

from __future__ import annotations

import contextlib
import functools
import statistics
from collections.abc import Callable, Iterable, Mapping

from bigmodel_cli.bench.losses import Operation
from bigmodel_cli.bench.result import WHOLE, Work
from bigmodel_cli.bench.roof import Peaks, peaks
from bigmodel_cli.bench.watching import Call, overhead, watched
from bigmodel_cli.lazy import Module, torch
from bigmodel_cli.parts.contract import read_in_part

TRIES = 3
"""Steps that are watched, each after one that is not."""
COMPILED = (
    "the operations are those of the network before it is compiled; of those that can be fused with"
    " others nothing is counted as needed"
)


def work_of(
    step: Callable[[], Mapping[str, float]],
    run: Callable[[], object],
    useful: float,
    device: torch.device,
    precision: str,
    compiled: bool = False,
    must_read: float | None = None,
) -> Work:
    """The work of a step that takes `useful` FLOPs.

    `step` is one with its data, which gives the seconds of its parts, and `run` is what it computes
    with data that is there, which is watched.
    """
    own = peaks(device, precision)
    extra = overhead(device)
    times = [step()[WHOLE] for _ in range(TRIES)]
    with _eager(compiled):
        calls = watched(run, device, TRIES)
    times += [step()[WHOLE] for _ in range(TRIES)]
    rates = functools.cache(lambda kind: _peaks_of(kind, device, own).matrix_rate)
    return Work(
        useful=useful,
        matrix_rate=own.matrix_rate,
        copy_rate=own.copy_rate,
        must_read=must_read,
        operations=operations(calls, rates, own.copy_rate, extra, compiled),
        peaks=str(own),
        step=statistics.median(times),
        note=COMPILED if compiled else "",
    )


def operations(
    calls: Iterable[Call],
    rate: Callable[[torch.dtype], float],
    copy_rate: float,
    extra: float = 0.0,
    compiled: bool = False,
) -> list[Operation]:
    """The calls by name, those that lose most time first.

    The least time of a call is the larger of its FLOPs over the `rate` of its precision and its
    bytes over `copy_rate`, and at most what it took: caches are faster than memory. `extra` seconds
    of each call are of the watching.
    """
    found: dict[str, list[float]] = {}
    for call in calls:
        seconds = max(call.seconds - extra, 0.0)
        moving = 0.0 if compiled and not call.flops else call.bytes / copy_rate
        bound = max(call.flops / rate(call.kind) if call.flops else 0.0, moving)
        least = min(bound, seconds)
        row = found.setdefault(call.name, [0.0] * 6)
        for i, value in enumerate((1, call.flops, call.bytes, least, seconds, bound > seconds)):
            row[i] += value
    rows = [
        Operation(name, int(count), flops, moved, least, seconds, int(held))
        for name, (count, flops, moved, least, seconds, held) in found.items()
    ]
    return sorted(rows, key=lambda o: o.least - o.seconds)


def read_by_decoding(model: Module, batch: int, cache: float) -> float:
    """Bytes that a step of generation of `batch` rows has to read: weights, and `cache` bytes.

    Of an embedding that is a row for each token, unless the logits read all of it; of experts as
    many as tokens that choose evenly and each by itself take.
    """
    parts: dict[int, float] = {}
    sizes: dict[int, int] = {}
    for module in model.modules():
        picked = isinstance(module, torch.nn.Embedding)
        chosen = read_in_part(module, batch)
        for name, weight in module.named_parameters(recurse=False):
            part = chosen.get(name, min(1.0, batch / len(weight)) if picked else 1.0)
            parts[id(weight)] = max(part, parts.get(id(weight), 0.0))
            sizes[id(weight)] = weight.numel() * weight.element_size()
    return cache + sum(size * parts[key] for key, size in sizes.items())


def _peaks_of(kind: torch.dtype, device: torch.device, own: Peaks) -> Peaks:
    """The peaks of another precision, where the step has such products."""
    names = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
    name = names.get(kind, own.precision)
    return own if name == own.precision else peaks(device, name)


def _eager(compiled: bool) -> contextlib.AbstractContextManager[object]:
    """Inside, a compiled network runs as if it were not."""
    return torch.compiler.set_stance("force_eager") if compiled else contextlib.nullcontext()
