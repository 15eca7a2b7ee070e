"""A step, watched operation by operation: what each computes, moves, and how long it takes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bigmodel_cli.bench import named
from bigmodel_cli.bench.sizes import form_of
from bigmodel_cli.device import is_cuda
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.models.describe import convolution_gradient_flops
from bigmodel_cli.parts.counted import pairs_seen


@dataclass(frozen=True)
class Call:
    """One call of an operation on tensors.

    `flops` of matrix products, convolutions and attention (others: 0); `bytes` that it has to read
    and write, each once; `kind` is the precision of what it reads; `form` and `sizes` set its rate,
    as `form_of` gives them.
    """

    name: str
    flops: float
    bytes: float
    kind: torch.dtype
    seconds: float
    form: str = ""
    sizes: tuple[int, ...] = ()


def watched(step: Callable[[], object], device: torch.device, tries: int = 3) -> list[Call]:
    """The operations of a step, each with the median of its times.

    Where steps differ in their operations, they are those of the shortest step.
    """
    return seen(step, device, tries)[0]


def seen(
    step: Callable[[], object], device: torch.device, tries: int, extra: float = 0.0
) -> tuple[list[Call], int]:
    """As `watched`, each time without `extra` seconds; and how many operations were called, views
    among them.
    """
    taken, dispatched = [], 0
    for _ in range(tries):
        calls, dispatched = _once(step, device)
        taken.append([replace(c, seconds=max(0.0, c.seconds - extra)) for c in calls])
    if len({tuple(call.name for call in calls) for calls in taken}) > 1:
        return min(taken, key=lambda calls: sum(call.seconds for call in calls)), dispatched
    middle = [
        replace(calls[0], seconds=statistics.median(call.seconds for call in calls))
        for calls in zip(*taken, strict=True)
    ]
    return middle, dispatched


def _once(step: Callable[[], object], device: torch.device) -> tuple[list[Call], int]:
    watching = watch(lambda: _timer(device))
    with watching:
        step()
    return list(watching.done()), watching.dispatched


def overhead(device: torch.device) -> float:
    """Seconds that watching adds to the time of an operation."""
    x = torch.zeros(1, device=device)
    count = 200
    for _ in range(count):
        x.add_(1)
    start = time.perf_counter()
    for _ in range(count):
        x.add_(1)
    alone = (time.perf_counter() - start) / count
    calls, _ = _once(lambda: [x.add_(1) for _ in range(count)], device)
    return max(0.0, statistics.median(call.seconds for call in calls) - alone)


def watch(
    timer: Callable[[], Any],
    answers: Mapping[str, Callable[..., Any]] | None = None,
    changes: Mapping[str, Callable[..., Sequence[Any]]] | None = None,
    aside: Callable[..., Any] | None = None,
) -> Any:
    """A context which notes each operation, with a new `timer`; views and what allocates alone are
    only counted.

    `answers`, by operations' names, are called in the place of these operations, and `changes` make
    other arguments of theirs. `aside` is asked for an operation first; NotImplemented is no answer.
    """
    from torch.utils._python_dispatch import TorchDispatchMode

    instead, changed = answers or {}, changes or {}

    class Watching(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()  # type: ignore[no-untyped-call]
            self.names = Names()
            self.dispatched = 0
            self.found: list[tuple[Any, ...]] = []

        def __torch_dispatch__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            name = function._overloadpacket.__name__
            if aside and (known := aside(function, args, kwargs)) is not NotImplemented:
                return known
            if name in instead:
                return instead[name](*args, **(kwargs or {}))
            if name in changed:
                args = changed[name](*args)
            if function.namespace == "prim":  # what a tensor is asked, not computed
                return function(*args, **(kwargs or {}))
            if _is_composite(function):  # as where gradients are not recorded: see its parts
                with self:
                    return function.decompose(*args, **(kwargs or {}))
            self.dispatched += 1
            timing = timer()
            result = function(*args, **(kwargs or {}))
            timing.end()
            if _is_view(function) or name in named.FREE:
                return result
            bound = _bound(function, args, kwargs or {})
            flops = flops_of(function, args, kwargs or {}, result)
            moved = bytes_of(function, name, bound, result)
            own = self.names(function, name, bound)
            form = form_of(name, bound, _tensors(list(bound.values())))
            self.found.append((own, flops, moved, _kind(bound), timing, *form))
            return result

        def done(self) -> list[Call]:
            """The calls, once the device is through with them."""
            return [
                Call(name, flops, moved, kind, timing.seconds(), form, sizes)
                for name, flops, moved, kind, timing, form, sizes in self.found
            ]

    return Watching()


class _Clock:
    """Of a CPU, whose operations are over when they return."""

    def __init__(self) -> None:
        self.start = time.perf_counter()

    def end(self) -> None:
        """The operation has returned."""
        self.taken = time.perf_counter() - self.start

    def seconds(self) -> float:
        """How long it took."""
        return self.taken


class _Events:
    """Of a GPU, which works through its queue by itself."""

    def __init__(self) -> None:
        self.first = torch.cuda.Event(enable_timing=True)
        self.last = torch.cuda.Event(enable_timing=True)
        self.first.record()

    def end(self) -> None:
        """The operation is in the queue."""
        self.last.record()

    def seconds(self) -> float:
        """Waits until it is over."""
        self.last.synchronize()
        return float(self.first.elapsed_time(self.last)) / 1000


def _timer(device: torch.device) -> Any:
    return _Events() if is_cuda(device) else _Clock()


def _is_composite(function: Any) -> bool:
    """Whether it is made of other operations, whatever the device: none has a kernel of its own, as
    they have for the gradient of SiLU.
    """
    keys = torch._C.DispatchKey
    own = any(function.has_kernel_for_dispatch_key(key) for key in (keys.CPU, keys.CUDA))
    return not own and bool(function.has_kernel_for_dispatch_key(keys.CompositeImplicitAutograd))


def _is_view(function: Any) -> bool:
    returns = function._schema.returns
    return any(r.alias_info is not None and not r.alias_info.is_write for r in returns)


def _bound(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments by the schema's names."""
    names = [argument.name for argument in function._schema.arguments]
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _tensors(value: Any) -> list[Tensor]:
    from torch.utils._pytree import tree_leaves

    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def _kind(bound: Mapping[str, Any]) -> torch.dtype:
    kinds = [t.dtype for t in _tensors(list(bound.values())) if t.dtype.is_floating_point]
    return kinds[0] if kinds else torch.float32


def size_of(tensor: Tensor) -> int:
    """Its bytes in memory, those of repeated rows once."""
    count = 1
    for length, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= length if stride else min(1, length)
    return count * tensor.element_size()


def bytes_of(function: Any, name: str, bound: Mapping[str, Any], result: Any) -> float:
    """What it has to read and to write, each once."""
    inputs = _tensors(list(bound.values()))
    written = [a.name for a in function._schema.arguments if _is_written(a)]
    changed = _tensors([bound[name] for name in written if name in bound])
    known = {id(t) for t in inputs}
    fresh = sum(size_of(t) for t in _tensors(result) if id(t) not in known)
    if name in named.WRITING:
        return sum(size_of(t) for t in inputs)
    if name in named.ADDING:
        return 3 * size_of(inputs[-1])
    if name in named.PICKING and inputs:
        return 2 * fresh + sum(size_of(t) for t in inputs[1:])
    return sum(size_of(t) for t in inputs) + sum(size_of(t) for t in changed) + fresh


def _is_written(argument: Any) -> bool:
    return argument.alias_info is not None and argument.alias_info.is_write


def flops_of(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> float:
    """Of products, convolutions and attention, of which causal pairs alone count."""
    from torch.utils.flop_counter import flop_registry

    name, bound = function._overloadpacket.__name__, _bound(function, args, kwargs)
    if name.startswith("_scaled_dot_product"):
        q, k, v = (bound[key] for key in ("query", "key", "value"))
        pairs = pairs_seen(q.shape[2], k.shape[2], bool(bound.get("is_causal")), None)
        flops = float(2 * q.shape[0] * q.shape[1] * pairs * (q.shape[3] + v.shape[3]))
        return 2 * flops if "backward" in name else flops
    if name == "convolution_backward":
        values = [v.shape if isinstance(v, torch.Tensor) else v for v in bound.values()]
        return float(convolution_gradient_flops(*values))
    if name == named.LINEAR:
        return float(2 * args[0].numel() * len(args[1]))
    counted = flop_registry.get(function._overloadpacket)
    if counted is None:
        return 0.0
    return float(counted(*args, **kwargs, out_val=result))


class Names:
    """Names of calls: of a linear layer's three products (output, and both gradients) one."""

    def __init__(self) -> None:
        self.linear: dict[tuple[int, ...], str] = {}

    def __call__(self, function: Any, name: str, bound: Mapping[str, Any]) -> str:
        """For people."""
        if name.startswith("_scaled_dot_product"):
            return named.ATTENTION
        if name in named.PRODUCTS:
            return self.product(name, bound)
        if name in ("convolution", "convolution_backward"):
            columns, inputs, *kernel = bound["weight"].shape
            size = " x ".join(str(n) for n in kernel)
            return f"convolution {inputs:,} x {columns:,}, {size}"
        if name.startswith(named.UPDATES):
            return named.OPTIMIZER
        if name in named.NAMES:
            return named.NAMES[name]
        return named.ELEMENTWISE if torch.Tag.pointwise in function.tags else name.strip("_")

    def product(self, name: str, bound: Mapping[str, Any]) -> str:
        """The first of three that have the same sizes is the layer's output."""
        factors = [t for t in _tensors(list(bound.values())) if t.dim() >= 2][-2:]
        if len(factors) < 2:
            return "products with vectors"
        rows, inputs, columns = *factors[0].shape[-2:], factors[1].shape[-1]
        if name == named.LINEAR:
            rows, (columns, inputs) = factors[0].numel() // inputs, factors[1].shape
            factors[0] = factors[0].flatten(0, -2)
        title = "batched product" if factors[0].dim() > 2 else "linear"
        key = (factors[0].dim(), *sorted((rows, inputs, columns)))
        return self.linear.setdefault(key, f"{title} {inputs:,} x {columns:,}")
