"""The machine's peaks, measured: FLOP/s of matrix products, and bytes/s of copies.

They are kept for a day below the cache's folder, for this machine, torch, number of threads and
precision; whoever shows them says when they were measured.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from bigmodel_cli.bench.machine import processor
from bigmodel_cli.cache_home import cache_directory
from bigmodel_cli.console import quantity, say
from bigmodel_cli.device import describe_device, dtype_of, is_cuda, synchronize
from bigmodel_cli.errors import BigmodelError
from bigmodel_cli.lazy import nn, torch
from bigmodel_cli.products import applies, product

Shape = tuple[int, int, int]
SHAPES: dict[str, tuple[Shape, ...]] = {
    "cuda": ((4096, 4096, 4096), (8192, 8192, 8192), (16384, 8192, 8192)),
    "cpu": ((512, 512, 512), (1024, 1024, 1024), (8192, 512, 512), (2048, 2048, 2048)),
}
"""Rows, inputs and columns of the products that are tried, by the kind of device; the best counts.
"""
LEAST, SECONDS, LONGEST = 3, 0.25, 0.3
"""Tries of each, and about how long; a product that is likely to take longer is not tried."""
DAY = 24 * 3600.0
KEPT = "2"
"""How they are measured; kept ones of another number are not used."""
FASTER = 1.03
"""By how much the machine may be faster than its peaks were before they are measured anew."""
Best = Callable[[Callable[[], object], "torch.device"], float]


@dataclass(frozen=True)
class Peaks:
    """FLOP/s of the best of several products, and bytes/s that copies read and write.

    `shape` is that product's: rows, inputs, columns. `date` is when they were measured (seconds
    since 1970, UTC).
    """

    matrix_rate: float
    copy_rate: float
    shape: Shape
    precision: str
    threads: int
    date: float

    def __str__(self) -> str:
        size = " x ".join(f"{n:,}" for n in self.shape)
        when = datetime.datetime.fromtimestamp(self.date).astimezone()
        threads = f"{self.threads} thread{'' if self.threads == 1 else 's'}, "
        return (
            f"{self.precision} products of {size}: {quantity(self.matrix_rate, 'FLOP/s')}; copies:"
            f" {quantity(self.copy_rate, 'B/s')}; {threads}measured {when:%Y-%m-%d %H:%M}"
        )


def peaks(device: torch.device, precision: str) -> Peaks:
    """Those that are kept, or, where there are none of this machine of the last day, measured.

    Kept ones are tried by one shape: where the machine is faster now, all are measured again, so
    that no share is of less than what the machine does.
    """
    place = _place(device, precision)
    kept = None if place is None else _read(place)
    now = time.time()
    if kept is not None and 0 <= now - kept.date < DAY:
        if _rate(kept.shape, device, kept.precision, best) <= FASTER * kept.matrix_rate:
            return kept
        say("the machine is faster than its peaks were: they are measured again")
    found = measured_peaks(device, precision)
    if kept is not None and now - kept.date < DAY:  # the better of both
        found = replace(found, copy_rate=max(found.copy_rate, kept.copy_rate))
        if kept.matrix_rate > found.matrix_rate:
            found = replace(
                found,
                matrix_rate=kept.matrix_rate,
                shape=kept.shape,
                precision=kept.precision,
            )
    if place is not None:
        with contextlib.suppress(OSError):  # a full disk: it is measured again next time
            part = place.with_suffix(f".{os.getpid()}")
            part.write_text(json.dumps(asdict(found)), encoding="utf-8")
            part.replace(place)
    return found


def forget() -> None:
    """Peaks that are kept are measured anew when they are asked for."""
    with contextlib.suppress(BigmodelError, OSError):
        for place in cache_directory("peaks").glob("*.json"):
            place.unlink(missing_ok=True)


def measured_peaks(device: torch.device, precision: str, best_of: Best | None = None) -> Peaks:
    """By products of several shapes and a copy; `best_of` gives the seconds of a work.

    On a CPU that has no instructions for a precision its products are slower than those of fp32, in
    which the same numbers can be multiplied: then the peak is that of fp32.
    """
    best_of = best_of or best
    matrix_rate, best_shape = _best_product(device, precision, best_of)
    if device.type == "cpu" and precision != "fp32":
        plain, shape = _best_product(device, "fp32", best_of)
        if plain > matrix_rate:
            matrix_rate, best_shape, precision = plain, shape, "fp32"
    size = 1 << (30 if is_cuda(device) else 27)
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copies = 2 * size / best_of(lambda: target.copy_(source), device)
    threads = int(torch.get_num_threads())
    return Peaks(matrix_rate, copies, best_shape, precision, threads, time.time())


def _best_product(device: torch.device, precision: str, best_of: Best) -> tuple[float, Shape]:
    """FLOP/s of the fastest product, and its shape."""
    matrix_rate, best_shape = 0.0, SHAPES["cpu"][0]
    for shape in SHAPES.get(device.type, SHAPES["cpu"]):
        if matrix_rate and _flops(shape) / matrix_rate > LONGEST:
            continue
        rate = _rate(shape, device, precision, best_of)
        if rate > matrix_rate:
            matrix_rate, best_shape = rate, shape
    return matrix_rate, best_shape


def best(work: Callable[[], object], device: torch.device) -> float:
    """The least seconds that it takes, of several tries."""
    found, tries = float("inf"), 0
    deadline = time.perf_counter() + SECONDS
    while tries < LEAST or time.perf_counter() < deadline:
        synchronize(device)
        start = time.perf_counter()
        work()
        synchronize(device)
        found, tries = min(found, time.perf_counter() - start), tries + 1
    return found


def _rate(shape: Shape, device: torch.device, precision: str, best_of: Best) -> float:
    rows, inputs, columns = shape
    kind = dtype_of(precision)
    a = torch.randn(rows, inputs, device=device).to(kind)
    b = torch.randn(columns, inputs, device=device).to(kind).t()
    seconds = best_of(lambda: a @ b, device)
    if device.type == "cpu" and applies():  # where layers take another library than `@`
        weight = nn.Parameter(b.t(), requires_grad=False)
        with torch.no_grad():
            seconds = min(seconds, best_of(lambda: product(a, weight, None), device))
    return _flops(shape) / seconds


def _flops(shape: Shape) -> int:
    return 2 * shape[0] * shape[1] * shape[2]


def identity(device: torch.device) -> list[str]:
    """What measured rates are of: the machine, the device, torch, the number of threads."""
    own = [platform.node(), processor(), describe_device(device), device.type, torch.__version__]
    return [*own, str(torch.get_num_threads())]


def _place(device: torch.device, precision: str) -> Path | None:
    """The file of this machine's peaks; None where there is no cache."""
    own = [*identity(device), precision, KEPT]
    name = hashlib.sha256("\n".join(own).encode()).hexdigest()[:16]
    with contextlib.suppress(BigmodelError):
        return cache_directory("peaks") / f"{name}.json"
    return None


def _read(place: Path) -> Peaks | None:
    """What is kept there; None where that is nothing, or damaged."""
    try:
        found = json.loads(place.read_text(encoding="utf-8"))
        kept = Peaks(**{**found, "shape": tuple(found["shape"])})
        return kept if kept.matrix_rate > 0 and kept.copy_rate > 0 else None
    except (OSError, ValueError, TypeError, KeyError):
        return None
